"""Controllers: bounds, thresholds, temperatures and rules against what is worked out beside them."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from haq import InputError
from haq.adaptive import Cascade, Fixed, Gate, Ladder, Rule, Signals, controller_of, replay, run_adaptive
from haq.adaptive.bounds import last_that_holds, lower_bound, upper_bound
from haq.adaptive.confidence import CONFIDENCES, temperature
from haq.adaptive.controller import save_controller
from haq.testing import check_controller


def members(samples, seed, *, quality=(1.0, 2.0, 4.0), classes=5):
    """Logits that know the class the better the larger the quality."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (samples,), generator=generator)
    noise = torch.randn(samples, classes, generator=generator)
    right = torch.nn.functional.one_hot(targets, classes)
    return [right * q + noise for q in quality], targets


@pytest.mark.parametrize(("hits", "samples"), [(0, 10), (7, 10), (10, 10), (95, 100), (999, 1000)])
def test_bounds_are_the_exact_binomial_ones(hits, samples):
    low = binomtest(hits, samples, alternative="greater").proportion_ci(0.95, "exact").low
    high = binomtest(hits, samples, alternative="less").proportion_ci(0.95, "exact").high
    assert lower_bound(hits, samples, 0.05) == pytest.approx(low)
    assert upper_bound(hits, samples, 0.05) == pytest.approx(high)


def test_the_first_failure_ends_the_search_for_a_threshold():
    assert last_that_holds([1, 2, 3, 4], lambda n: n != 3) == 2
    assert last_that_holds([1], lambda n: False) is None


def test_confidences_are_what_they_are_called():
    p = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.double)
    found = {name: of(p.log()).tolist() for name, of in CONFIDENCES.items()}
    assert found["probability"] == pytest.approx([0.7, 1 / 3])
    assert found["margin"] == pytest.approx([0.5, 0.0], abs=1e-9)
    entropy = -sum(x * np.log(x) for x in (0.7, 0.2, 0.1)) / np.log(3)
    assert found["entropy"] == pytest.approx([1 - entropy, 0.0], abs=1e-9)


def test_the_temperature_is_the_best_of_a_fine_grid():
    logits, targets = members(500, 1)
    grid = np.exp(np.linspace(-3, 3, 2001))
    losses = [float(torch.nn.functional.cross_entropy(3 * logits[1].double() / t, targets)) for t in grid]
    assert temperature(3 * logits[1], targets) == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)


def test_a_cascade_runs_the_next_member_where_it_is_not_sure():
    cascade = Cascade("probability", 0.8, (1.0, 1.0))
    sure, unsure = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    assert cascade.choose(Signals()) == 0
    assert cascade.choose(Signals(member=0, outputs=sure)) == 0
    assert cascade.choose(Signals(member=0, outputs=unsure)) == 1
    assert cascade.choose(Signals(member=1, outputs=unsure)) == 1
    with pytest.raises(InputError, match="needs the outputs"):
        cascade.choose(Signals(member=0))


def test_a_batch_runs_as_its_samples_do_one_by_one():
    logits, targets = members(40, 2)
    table = torch.stack(logits)
    cascade = Cascade.fit(logits, targets, costs=[1, 2, 4], cost=3.0)
    together = run_adaptive(lambda x, m: table[m][x], cascade, torch.arange(40), members=3)
    for sample in range(40):
        ran, outputs = [], None
        while not ran or cascade.choose(Signals(member=ran[-1], outputs=outputs)) != ran[-1]:
            ran.append(cascade.choose(Signals(member=ran[-1] if ran else None, outputs=outputs)))
            outputs = table[ran[-1]][sample : sample + 1]
        assert np.flatnonzero(together.ran[sample]).tolist() == ran
        assert together.answered[sample] == ran[-1]
        assert torch.equal(together.outputs[sample], outputs[0])


@pytest.mark.parametrize("confidence", list(CONFIDENCES))
def test_a_promised_accuracy_holds_on_new_samples(confidence):
    kept = 0
    for seed in range(60):
        logits, targets = members(300, seed)
        cascade = Cascade.fit(logits, targets, costs=[1, 2, 4], confidence=confidence, accuracy=0.85, delta=0.1)
        fresh, wanted = members(4000, 10_000 + seed)
        table = torch.stack(fresh)
        answered = _answered(cascade, table)
        kept += float((table[answered, torch.arange(4000)].argmax(1) == wanted).float().mean()) >= 0.85
    # At least 90 % of 60; fewer than 48 have a probability below 1 in 100 where the promise holds.
    assert kept >= 48


def _answered(cascade, table):
    found = torch.full((table.shape[1],), len(table) - 1)
    for member in reversed(range(len(table) - 1)):
        sure = CONFIDENCES[cascade.confidence](table[member] / cascade.temperatures[member]) >= cascade.threshold
        found = torch.where(sure, member, found)
    return found


def test_a_larger_target_never_makes_a_cascade_cheaper_and_an_impossible_one_says_what_is():
    logits, targets = members(2000, 3)
    spent = []
    for accuracy in (0.7, 0.8, 0.9, 0.95):
        cascade = Cascade.fit(logits, targets, costs=[1, 2, 4], accuracy=accuracy)
        spent.append(float(_answered(cascade, torch.stack(logits)).float().mean()))
    assert spent == sorted(spent)
    with pytest.raises(InputError, match=r"the best that can is 0\.9\d"):
        Cascade.fit(logits, targets, costs=[1, 2, 4], accuracy=0.9999)
    with pytest.raises(InputError, match="the least average that can is"):
        Cascade.fit(logits, targets, costs=[1, 2, 4], cost=0.9)
    with pytest.raises(InputError, match="accuracy or cost"):
        Cascade.fit(logits, targets, costs=[1, 2, 4])


def gate_data(samples, seed):
    """Two members: the cheap one is right only where the first feature is positive."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator)
    targets = torch.randint(3, (samples,), generator=generator)
    right = torch.nn.functional.one_hot(targets, 3).float()
    cheap = torch.where((x[:, :1] > 0), right, right.roll(1, dims=1))
    return x, [cheap, right], targets


def test_a_gate_learns_which_inputs_the_cheap_member_gets_right():
    gate = Gate.fit(gate_data(800, 1), gate_data(800, 2), costs=[1.0, 4.0], accuracy=0.97)
    x, logits, targets = gate_data(1000, 3)
    found = run_adaptive(
        lambda part, m: logits[m][:0] if not len(part) else _look(x, logits, part, m), gate, x, members=2
    )
    assert found.ran.sum(axis=1).max() == 1  # pays for one member
    cheap = found.answered == 0
    assert np.mean(cheap == (x[:, 0] > 0).numpy()) > 0.93
    assert float((found.outputs.argmax(1) == targets).float().mean()) > 0.96
    assert gate.parameters == 2 * 7
    with pytest.raises(InputError, match="6 features, these have 5"):
        gate.choose(Signals(inputs=x[:1, :5]))


def _look(x, logits, part, member):
    places = [int((x == row).all(dim=1).nonzero()[0]) for row in part]
    return logits[member][places]


def test_a_ladder_goes_down_at_once_and_up_slowly():
    ladder = Ladder((Rule("battery", (0.2, 0.5), hysteresis=0.05),), seconds_between=10)
    trace = [
        (0, 0.9),
        (1, 0.45),
        (2, 0.52),
        (3, 0.56),
        (12, 0.56),
        (13, 0.1),
        (14, 0.9),
        (24, 0.9),
        (30, 0.9),
        (40, 0.9),
    ]
    signals = [{"time": float(t), "battery": b} for t, b in trace]
    # 0.52 is within the hysteresis of 0.5, 3 s is too soon, and after 0.1 it climbs one member every 10 s.
    assert replay(ladder, signals) == [2, 1, 1, 1, 2, 0, 0, 1, 1, 2]


def test_heat_and_queues_forbid_what_battery_allows():
    ladder = Ladder((Rule("temperature", (60, 80)), Rule("battery", (0.2, 0.5))))
    signals = [{"battery": 0.9, "temperature": t} for t in (50, 70, 90, 50)]
    assert replay(ladder, signals) == [2, 1, 0, 1]
    with pytest.raises(InputError, match="the signal temperature is None"):
        ladder.choose(Signals(battery=0.5))
    with pytest.raises(InputError, match="trace, entry 0"):
        replay(ladder, [{"weather": 3}])


CONTROLLERS = [
    (Fixed(1), {}),
    (Cascade("margin", 0.5, (1.0, 2.0, 3.0)), {}),
    (Ladder((Rule("battery", (0.2, 0.5), 0.1),), 5.0), {"battery": 0.4, "time": 0.0}),
    (Gate(((0.1,) * 7,) * 3, (0.0,) * 6, (1.0,) * 6, (0.2, 0.5, 1.0), 0.3), {}),
]


@pytest.mark.parametrize(("controller", "signals"), CONTROLLERS, ids=lambda one: getattr(one, "kind", ""))
def test_every_controller_keeps_to_the_contract_and_to_its_file(controller, signals, tmp_path):
    check_controller(controller, members=3, inputs=torch.randn(4, 6), classes=5, **signals)
    save_controller(controller, tmp_path)
    assert controller_of(tmp_path, members=3).to_doc() == controller.to_doc()


class Endless:
    kind = "endless"

    def choose(self, signals):
        return 0 if signals.member is None else (signals.member + 1) % 3

    def to_doc(self):
        return {}

    @classmethod
    def from_doc(cls, document):
        return cls()


def test_a_controller_that_never_stops_fails_the_check():
    with pytest.raises(AssertionError, match="twice for one sample"):
        check_controller(Endless(), members=3, inputs=torch.randn(4, 6))
    with pytest.raises(InputError, match="goes on after every member has run"):
        run_adaptive(lambda x, m: torch.zeros(len(x), 2), Endless(), torch.zeros(2, 3), members=3)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "unknown; known: cascade, fixed, gate, ladder"),
        ({"controller": "os.system"}, "unknown"),
        ({"controller": "cascade", "confidence": "hope", "threshold": 1, "temperatures": [1]}, "confidence = 'hope'"),
        ({"controller": "cascade", "confidence": "margin", "threshold": "x", "temperatures": [1]}, "threshold = 'x'"),
        (
            {"controller": "cascade", "confidence": "margin", "threshold": 1, "temperatures": [0, 1, 1]},
            "temperatures = 0",
        ),
        ({"controller": "cascade", "confidence": "margin", "threshold": 1, "temperatures": [1, 1]}, "among 2 members"),
        ({"controller": "ladder", "rules": [{"signal": "mood", "levels": [1, 2]}]}, "signal = 'mood'"),
        ({"controller": "ladder", "rules": [{"signal": "queue", "levels": [2, 1]}]}, "expected rising numbers"),
        (
            {"controller": "gate", "weights": [[1]], "mean": [0], "deviation": [1], "costs": [1], "price": 0},
            "2 numbers",
        ),
    ],
)
def test_a_damaged_controller_is_one_line(tmp_path, document, message):
    (tmp_path / "controller.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=message) as caught:
        controller_of(tmp_path, members=3)
    assert "controller.json" in str(caught.value)
    assert "\n" not in str(caught.value)
