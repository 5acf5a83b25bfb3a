"""Each compressor on one parameter: what its messages stand for, against the papers' own statements."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.distributed import COMPRESSORS, Compressor, ErrorFeedback, Place
from haq.distributed.elias import elias_bits, read_elias
from haq.distributed.packing import pack, packed_bytes, unpack

UNBIASED = {
    "terngrad": {"clip": None},
    "qsgd": {"levels": 4, "coding": "fixed"},
    "qsgd elias": {"levels": 1, "bucket": 16},
    "qsgd max": {"levels": 2, "norm": "max"},
    "randomk_unbiased": {"ratio": 0.25},
}
BIASED = {
    "onebit": {},
    "onebit column": {"reconstruction": "column"},
    "signsgd": {},
    "topk": {"ratio": 0.1},
    "randomk": {"ratio": 0.1},
}
EVERY = {**UNBIASED, **BIASED, "dgc": {"ratio": 0.1}}
SHAPES = [(1,), (2,), (7,), (513,), (5, 3, 3, 3), (17, 31)]


def _make(name: str, options: dict[str, object]) -> Compressor:
    return COMPRESSORS[name.split()[0]](**options)


def _sent(compressor: Compressor, values: torch.Tensor, place: Place) -> torch.Tensor:
    largest = compressor.largest(values, place) if compressor.needs_largest else 0.0
    return compressor.decode(compressor.encode(values, place, largest=largest), place)


def _values(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 32), st.integers(0, 40), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_packing_keeps_numbers_and_wastes_less_than_a_byte(width: int, count: int, seed: int) -> None:
    numbers = torch.randint(0, 2**width, (count,), generator=torch.Generator().manual_seed(seed))
    packed = pack(numbers, width)
    assert packed.numel() == packed_bytes(count, width) == -(-count * width // 8)
    assert torch.equal(unpack(packed, count, width).to(torch.int64), numbers)


@given(st.lists(st.integers(1, 2**40), max_size=20))
@settings(max_examples=40, deadline=None)
def test_elias_codes_keep_numbers_in_so_many_bits_as_the_code_has(numbers: list[int]) -> None:
    bits = elias_bits(torch.tensor(numbers, dtype=torch.int64))
    assert bits.numel() == sum(2 * (number.bit_length() - 1) + 1 for number in numbers)
    padded = torch.cat([bits, torch.zeros(5, dtype=torch.uint8)])
    read, used = read_elias(padded, len(numbers))
    assert read.tolist() == numbers
    assert used == bits.numel()


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_over_many_draws_is_the_gradient(name: str) -> None:
    compressor, values, draws = _make(name, UNBIASED[name]), _values(40), 600
    sent = torch.stack([_sent(compressor, values, Place("w", (40,), step=step)) for step in range(draws)])
    error = (sent.mean(0) - values).abs()
    # Five standard errors. A value so small that no draw sent it has none of its own: rounding between 0 and the
    # largest value has a variance of at most |value| x largest.
    spread = torch.maximum(sent.std(0), (values.abs() * values.abs().max()).sqrt())
    bound = 5 * spread / draws**0.5 + 1e-6
    assert (error <= bound).all()


def test_qsgd_keeps_to_the_variance_bound_of_the_paper() -> None:
    count, levels, values = 400, 8, _values(400)
    compressor = _make("qsgd", {"levels": levels, "bucket": count})
    errors = [(_sent(compressor, values, Place("w", (count,), step=s)) - values).square().sum() for s in range(200)]
    bound = min(count / levels**2, count**0.5 / levels) * values.square().sum()
    assert torch.stack(errors).mean() <= bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BIASED)
def test_biased_ones_contract(name: str, shape: tuple[int, ...]) -> None:
    place, compressor = Place("w", shape), _make(name, BIASED[name])
    values = _values(place.count)
    lost = (values - _sent(compressor, values, place)).square().sum() / values.square().sum()
    assert lost < 1.0 + 1e-6
    if name == "topk":
        assert lost <= 1 - max(1, 0.1 * place.count) / place.count + 1e-6
    if name != "randomk":
        assert lost < 1.0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BIASED)
def test_error_feedback_sends_everything_in_the_end(name: str, shape: tuple[int, ...]) -> None:
    compressor = ErrorFeedback(_make(name, BIASED[name]))
    total = torch.zeros(Place("w", shape).count)
    sent = total.clone()
    for step in range(20):
        place = Place("w", shape, step=step)
        values = _values(place.count, step)
        total, sent = total + values, sent + _sent(compressor, values, place)
    left = compressor.residual("w")
    assert left is not None
    torch.testing.assert_close(sent + left, total, atol=2e-4, rtol=1e-5)


def test_error_feedback_telescopes_to_the_last_bit_where_sums_are_exact() -> None:
    compressor, sent, total = ErrorFeedback(COMPRESSORS["topk"](ratio=0.05)), torch.zeros(101), torch.zeros(101)
    for step in range(30):
        values = torch.randint(-50, 50, (101,), generator=torch.Generator().manual_seed(step)).float()
        total, sent = total + values, sent + _sent(compressor, values, Place("w", (101,), step=step))
    assert torch.equal(sent + compressor.residual("w"), total)
    assert compressor.residual("w").abs().max() > 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_zeros_come_back_as_zeros_and_messages_have_equal_length(name: str, shape: tuple[int, ...]) -> None:
    compressor, place = _make(name, EVERY[name]), Place("w", shape)
    assert not _sent(compressor, torch.zeros(place.count), place).any()
    if compressor.fixed_size:
        lengths = {compressor.encode(_values(place.count, s), place, largest=9.0).numel() for s in range(3)}
        assert len(lengths) == 1


def test_the_vote_follows_the_majority_and_a_tie_stays() -> None:
    compressor, place = COMPRESSORS["signsgd"](scaled=False), Place("w", (3,))
    workers = [torch.tensor(v) for v in ([1.0, -2.0, 3.0], [5.0, -1.0, -1.0], [-9.0, -1.0, 1.0], [1.0, 4.0, -1.0])]
    messages = [compressor.encode(values, place) for values in workers]
    assert compressor.mean(messages, place).tolist() == [1.0, -1.0, 0.0]


def test_onebit_sends_the_mean_of_each_side() -> None:
    values = torch.tensor([1.0, 3.0, -2.0, -4.0, -6.0])
    assert _sent(COMPRESSORS["onebit"](), values, Place("w", (5,))).tolist() == [2.0, 2.0, -4.0, -4.0, -4.0]


def test_terngrad_sends_three_values_and_clips_what_stands_out() -> None:
    values = torch.cat([_values(200), torch.tensor([50.0])])
    sent = _sent(COMPRESSORS["terngrad"](clip=2.5), values, Place("w", (201,)))
    scale = float(sent.abs().max())
    assert set(sent.unique().tolist()) == {-scale, 0.0, scale}
    assert scale == pytest.approx(2.5 * float(values.std(correction=0)))


def test_dgc_holds_back_momentum_and_gradients_until_they_are_sent() -> None:
    """Against Algorithm 4 of the paper, written out for one value that is never the largest."""
    compressor, momentum = COMPRESSORS["dgc"](ratio=0.5, momentum=0.5), 0.5
    velocity = waiting = 0.0
    for step in range(4):
        place = Place("w", (2,), step=step)
        message = compressor.encode(torch.tensor([10.0, 1.0]), place)
        assert compressor.decode(message, place).tolist() == [10.0, 0.0]
        velocity = momentum * velocity + 1.0
        waiting += velocity
    assert compressor.state_dict()["waiting/w"].tolist() == [0.0, waiting]
    sent = compressor.decode(compressor.encode(torch.tensor([0.0, 0.0]), place), place)
    assert sent.tolist() == [0.0, waiting + momentum * velocity]


def test_dgc_warms_up_through_the_four_shares_of_the_paper() -> None:
    compressor = COMPRESSORS["dgc"](ratio=0.001, warmup_steps=4)
    counts = []
    for step in range(5):
        place = Place("w", (10_000,), step=step)
        counts.append(int(compressor.decode(compressor.encode(_values(10_000, step), place), place).count_nonzero()))
    assert counts == [2500, 625, 157, 40, 10]


@pytest.mark.parametrize(("name", "bits"), [("onebit", 1.0), ("signsgd", 1.0), ("terngrad", 1.6), ("topk", 0.49)])
def test_messages_are_as_short_as_their_bits(name: str, bits: float) -> None:
    place = Place("w", (100_000,))
    message = COMPRESSORS[name]().encode(_values(place.count), place, largest=5.0)
    assert message.dtype == torch.uint8
    assert bits * place.count / 8 <= message.numel() <= bits * place.count / 8 + 64


@pytest.mark.parametrize("count", [100, 10_000])
def test_elias_codes_of_a_sparse_gradient_are_shorter_than_fixed_ones(count: int) -> None:
    place, values = Place("w", (count,)), _values(count)
    fixed, elias = (COMPRESSORS["qsgd"](coding=c).encode(values, place) for c in ("fixed", "elias"))
    assert elias.numel() < fixed.numel()
