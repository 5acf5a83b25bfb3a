"""Modules taken apart compute what torch's own compute, and leave the model that they came from alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from haq.modules import plain_paths, prepare

ATTENTION = {
    "plain": {},
    "no_bias": {"bias": False},
    "learned_keys": {"add_bias_kv": True},
    "zero_key": {"add_zero_attn": True},
    "other_widths": {"kdim": 6, "vdim": 10},
}


def close(ours, theirs):
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [leaf for entry in value for leaf in flat(entry)]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_with_masks_weights_and_both_layouts(kind, batch_first):
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(8, 2, batch_first=batch_first, **ATTENTION[kind]).eval()
    split = prepare(packed)
    inputs = [torch.randn(3, 5, 8), torch.randn(3, 7, packed.kdim), torch.randn(3, 7, packed.vdim)]
    inputs = inputs if batch_first else [x.transpose(0, 1) for x in inputs]
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 5:] = True
    hidden = torch.rand(5, 7) > 0.7
    hidden[:, 0] = False
    for mask in (None, hidden, torch.randn(5, 7), torch.randn(6, 5, 7)):
        for rows in (None, padding if mask is None or mask.dtype == torch.bool else padding * -1e9):
            for keys in ({"need_weights": False}, {}, {"average_attn_weights": False}):
                ours = split(*inputs, key_padding_mask=rows, attn_mask=mask, **keys)
                theirs = packed(*inputs, key_padding_mask=rows, attn_mask=mask, **keys)
                assert close(ours[0], theirs[0])
                assert (ours[1] is None and theirs[1] is None) or close(ours[1], theirs[1])
    one = [x[0] if batch_first else x[:, 0] for x in inputs]
    assert all(map(close, flat(split(*one)), flat(packed(*one))))


RECURRENT = {
    "lstm": (nn.LSTM, {}),
    "lstm_deep_both_ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "lstm_projected": (nn.LSTM, {"proj_size": 3, "bidirectional": True}),
    "gru": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "gru_no_bias": (nn.GRU, {"bias": False, "batch_first": True}),
    "rnn": (nn.RNN, {}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_with_states_and_without_batch(kind):
    torch.manual_seed(1)
    cls, keys = RECURRENT[kind]
    packed = cls(4, 6, **keys).eval()
    unrolled = prepare(packed)
    for x in (torch.randn(5, 3, 4), torch.randn(5, 4)):
        wanted = packed(x)
        assert all(map(close, flat(unrolled(x)), flat(wanted)))
        assert all(map(close, flat(unrolled(x, wanted[1])), flat(packed(x, wanted[1]))))


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(cls):
    torch.manual_seed(2)
    packed, x = cls(4, 6), torch.randn(3, 4)
    state = packed(x)
    for given in ((x,), (x, state)):
        assert all(map(close, flat(prepare(packed)(*given)), flat(packed(*given))))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_with_padding_and_offsets(mode):
    torch.manual_seed(3)
    packed = nn.EmbeddingBag(10, 4, mode=mode, padding_idx=2)
    bag, ids = prepare(packed), torch.randint(0, 10, (3, 5))
    assert close(bag(ids), packed(ids))
    offsets = torch.tensor([0, 4, 4, 9])
    assert close(bag(ids.flatten(), offsets), packed(ids.flatten(), offsets))


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old_weight_norm": nn.utils.weight_norm,
    "old_spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_become_plain_ones_in_a_copy(kind):
    torch.manual_seed(4)
    model = nn.Sequential(COMPUTED[kind](nn.Linear(6, 6))).eval()
    x = torch.randn(4, 6)
    wanted, before = model(x), copy.deepcopy(dict(model.state_dict()))
    plain = prepare(model)
    assert [name for name, _ in plain.named_parameters()] in (["0.bias", "0.weight"], ["0.weight", "0.bias"])
    assert type(plain[0]) is nn.Linear
    assert close(plain(x), wanted)
    assert close(model(x), wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_encoders_leave_their_fused_path_for_good():
    torch.manual_seed(5)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    split, x = prepare(model), torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    calls = []
    split.layers[1].self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        ours, theirs = split(x, src_key_padding_mask=padding), model(x, src_key_padding_mask=padding)
    assert calls
    assert close(ours[~padding], theirs[~padding])


def test_the_switch_is_put_back():
    assert torch.backends.mha.get_fastpath_enabled()
    with plain_paths():
        assert not torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError), plain_paths():
        _ = 1 / 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_needs_no_change_is_returned_as_it_is_and_parameters_are_shared():
    plain = nn.Sequential(nn.Linear(2, 2))
    assert prepare(plain) is plain
    model = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4))
    made = prepare(model)
    assert made[0].weight is model[0].weight
    assert made[1].l0.hh.weight is model[1].weight_hh_l0
    assert isinstance(model[1], nn.GRU)
    assert prepare(made) is made
    assert prepare(prepare(model, keep=lambda name, _: name == "1"))[1].__class__ is nn.GRU
