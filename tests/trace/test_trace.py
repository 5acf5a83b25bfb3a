"""`trace` against hand counts, torch's own flop counter and shapes recorded by hooks."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from haq.trace import trace
from haq.values.errors import InputError
from haq.values.network import Join, Network, Step
from haq.zoo import MODELS

ZOO_SHAPES = {"digits_cnn": (1, 8, 8), "mobilenet_v2_small": (1, 28, 28), "resnet20": (1, 28, 28)}


class Functional(nn.Module):
    """Modules by name, and a forward given as a function of this module and the inputs."""

    def __init__(self, run: Callable[..., object], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = run

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return self.run(self, *args, **kwargs)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, "bias": False, **options})


def residual() -> Functional:
    """Stem, a branch of two convolutions, a projected shortcut, an add, a head."""

    def run(m: Functional, x: Tensor) -> Tensor:
        x = F.relu(m.bn(m.stem(x)))
        return m.head(F.relu(m.bn2(m.b(F.relu(m.a(x), inplace=True))) + m.shortcut(x)))

    return Functional(
        run,
        stem=conv(1, 4),
        bn=nn.BatchNorm2d(4),
        a=conv(4, 8, stride=2),
        b=conv(8, 8),
        bn2=nn.BatchNorm2d(8),
        shortcut=conv(4, 8, 1, stride=2),
        head=conv(8, 2, 1),
    )


class Attention(nn.Module):
    """A transformer encoder block of plain linear layers."""

    def __init__(self, *, fused: bool, width: int = 8, heads: int = 2, length: int = 5) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.position = nn.Parameter(torch.zeros(1, length, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT / 2).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def peak(network: Network) -> int:
    return max(sum(elements for _, elements in step.live) for step in network.steps)


def reads(network: Network) -> dict[str, tuple[str | None, int]]:
    """Layer -> producer and elements of the one tensor that it reads."""
    return {name: (tensor.producer, tensor.elements) for tensor in network.tensors for name in tensor.consumers}


# Layers and counts


@pytest.mark.parametrize("name", sorted(ZOO_SHAPES))
def test_macs_of_the_zoo_are_half_of_torchs_flops(name: str) -> None:
    model, x = MODELS[name]().eval(), torch.zeros(2, *ZOO_SHAPES[name])
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert 2 * 2 * trace(model, x).macs == counter.get_total_flops()


@pytest.mark.parametrize("name", sorted(ZOO_SHAPES))
def test_shapes_of_the_zoo_are_those_that_hooks_see(name: str) -> None:
    model, x, seen = MODELS[name]().eval(), torch.zeros(1, *ZOO_SHAPES[name]), {}
    network = trace(model, x)
    for layer, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda _, args, out, layer=layer: seen.update({layer: (args[0].shape[1:], out.shape[1:])})
            )
    model(x)
    assert {layer.name: (layer.input_shape, layer.output_shape) for layer in network.layers} == seen
    assert list(network.layer_names) == list(seen)  # execution order
    assert all(layer.input_elements == math.prod(layer.input_shape) for layer in network.layers)


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "kind", "output"),
    [
        pytest.param(nn.Conv1d(3, 4, 3), (3, 8), 6 * 4 * 3 * 3, "conv1d", (4, 6), id="conv1d"),
        pytest.param(nn.Conv2d(3, 4, 3), (3, 8, 8), 36 * 4 * 3 * 9, "conv2d", (4, 6, 6), id="conv2d"),
        pytest.param(nn.Conv2d(4, 6, 3, groups=2), (4, 8, 8), 36 * 6 * 2 * 9, "conv2d", (6, 6, 6), id="grouped"),
        pytest.param(nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8), 36 * 8 * 9, "conv2d", (8, 6, 6), id="depthwise"),
        pytest.param(nn.Conv2d(3, 4, 3, dilation=2), (3, 8, 8), 16 * 4 * 3 * 9, "conv2d", (4, 4, 4), id="dilated"),
        pytest.param(nn.Conv2d(3, 4, 3, padding="same"), (3, 8, 8), 64 * 4 * 3 * 9, "conv2d", (4, 8, 8), id="same"),
        pytest.param(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
            (3, 8, 8),
            64 * 4 * 3 * 9,
            "conv2d",
            (4, 8, 8),
            id="circular",
        ),
        pytest.param(
            nn.ConvTranspose2d(4, 6, (2, 3), 2, groups=2),
            (4, 5, 5),
            25 * 6 * 4 * 3,
            "conv_transpose2d",
            (6, 10, 11),
            id="transposed",
        ),
        pytest.param(nn.Linear(6, 5), (6,), 30, "linear", (5,), id="linear"),
        pytest.param(nn.Linear(6, 5), (7, 3, 6), 21 * 30, "linear", (7, 3, 5), id="linear_rows"),
    ],
)
def test_macs_and_shapes_by_hand(
    layer: nn.Module, shape: tuple[int, ...], macs: int, kind: str, output: tuple[int, ...]
) -> None:
    (spec,) = trace(nn.Sequential(layer), torch.zeros(3, *shape)).layers
    assert (spec.macs, spec.kind, spec.input_shape, spec.output_shape) == (macs, kind, shape, output)
    assert (spec.params, spec.bias_elements) == (layer.weight.numel(), layer.bias.numel())
    assert (spec.input_elements, spec.output_elements) == (math.prod(shape), math.prod(output))
    assert (spec.in_channels, spec.out_channels) == (shape[-1 if kind == "linear" else 0], len(layer.bias))


def test_subclass_of_a_layer_is_that_layer() -> None:
    class SamePadded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (0, 1, 0, 1)))

    (spec,) = trace(nn.Sequential(SamePadded(3, 4, 2)), torch.zeros(1, 3, 6, 6)).layers
    assert (spec.kind, spec.macs, spec.input_shape, spec.output_shape) == (
        "conv2d",
        36 * 4 * 3 * 4,
        (3, 6, 6),
        (4, 6, 6),
    )


def test_module_called_twice_is_one_layer_with_both_calls() -> None:
    model = Functional(lambda m, x: m.fc(F.relu(m.fc(x))), fc=nn.Linear(4, 4))
    network = trace(model, torch.zeros(2, 3, 4))
    (spec,) = network.layers
    assert (spec.calls, spec.macs, spec.input_elements, spec.output_elements) == (2, 2 * 3 * 16, 24, 24)
    assert [(tensor.producer, tensor.consumers) for tensor in network.tensors] == [(None, ("fc",)), ("fc", ("fc",))]


def test_alias_and_shared_weight_count_under_the_first_name() -> None:
    shared = nn.Linear(4, 4)
    twin = nn.Linear(4, 4)
    twin.weight = shared.weight
    model = Functional(lambda m, x: m.twin(m.alias(m.first(x))), first=shared, alias=shared, twin=twin)
    assert [(spec.name, spec.calls) for spec in trace(model, torch.zeros(1, 4)).layers] == [("first", 3)]


def test_layer_that_is_never_called_is_left_out() -> None:
    model = Functional(lambda m, x: m.used(x), unused=nn.Linear(4, 4), used=nn.Linear(4, 2))
    assert trace(model, torch.zeros(1, 4)).layer_names == ("used",)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        pytest.param(MODELS["mobilenet_v2_small"](), (1, 28, 28), id="mobilenet"),
        pytest.param(Attention(fused=True), (5, 8), id="attention"),
        pytest.param(Attention(fused=False), (5, 8), id="attention_by_hand"),
        pytest.param(
            Functional(lambda m, x: m.b(F.relu(m.a(x.transpose(0, 1)))), a=nn.Linear(4, 3), b=nn.Linear(3, 2)),
            (5, 4),
            id="sequence_first",
        ),
        pytest.param(
            Functional(
                lambda m, x: m.b(m.a(x.flatten(0, 1)).mean((2, 3)).unflatten(0, (-1, 6))),
                a=conv(1, 4),
                b=nn.Linear(4, 2),
            ),
            (6, 1, 5, 5),
            id="frames_folded_into_the_batch",
        ),
        pytest.param(
            Functional(
                lambda m, x: m.q(m.latents) @ m.k(x).mT,
                latents=nn.Parameter(torch.zeros(1, 3, 4)),
                q=nn.Linear(4, 4),
                k=nn.Linear(4, 4),
            ),
            (5, 4),
            id="learned_queries",
        ),
    ],
)
def test_batch_size_does_not_matter(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert trace(model, torch.zeros(1, *shape)) == trace(model, torch.zeros(4, *shape))


def test_json_round_trip() -> None:
    network = trace(residual(), torch.zeros(1, 1, 8, 8))
    assert Network.from_doc(json.loads(json.dumps(network.to_doc()))) == network


# Tensors, ties and joins


def test_residual_block_has_its_ties() -> None:
    network = trace(residual(), torch.zeros(2, 1, 8, 8))
    assert network.shared_reads() == (("a", "shortcut"),)
    assert network.joined_writes() == (("shortcut", "b"),)
    assert network.joins == (Join("add", "add", "shortcut", (("b", 128),), 128),)
    assert reads(network) == {
        "stem": (None, 64),
        "a": ("stem", 256),
        "shortcut": ("stem", 256),
        "b": ("a", 128),
        "head": ("shortcut", 128),
    }


def test_resnet20_ties() -> None:
    network = trace(MODELS["resnet20"](), torch.zeros(1, 1, 28, 28))
    assert network.shared_reads() == tuple(
        (f"stage{s}.0.conv1", f"stage{s}.0.shortcut.0") for s in (2, 3)
    )  # identity shortcuts are read by an add, not by a layer
    assert len(network.joins) == 9
    assert network.joined_writes()[:4] == (
        ("stage1.0.conv2", "conv1"),
        ("stage1.1.conv2", "stage1.0.conv2"),
        ("stage1.2.conv2", "stage1.1.conv2"),
        ("stage2.0.shortcut.0", "stage2.0.conv2"),
    )


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lambda x: F.max_pool2d(x, 2), id="pool"),
        pytest.param(lambda x: F.interpolate(x, scale_factor=2.0), id="interpolate"),
        pytest.param(lambda x: F.pad(x, (1, 1, 1, 1)), id="pad"),
        pytest.param(lambda x: F.hardswish(F.layer_norm(x, x.shape[1:])) * 2 + 1, id="elementwise"),
        pytest.param(lambda x: x * torch.sigmoid(x), id="swish_by_hand"),
        pytest.param(lambda x: torch.cat([x.chunk(2, 1)[1], x[:, :2]], 1), id="channel_shuffle"),
        pytest.param(lambda x: F.pixel_unshuffle(x, 2)[:, ::4], id="pixel_unshuffle"),
        pytest.param(lambda x: x.add_(1).clamp_(0), id="in_place"),
    ],
)
def test_looks_through_to_the_producer_without_a_join(between: Callable[[Tensor], Tensor]) -> None:
    model = Functional(lambda m, x: m.b(between(m.a(x))), a=conv(1, 4), b=conv(4, 2))
    network = trace(model, torch.zeros(2, 1, 8, 8))
    elements = between(torch.zeros(1, 4, 8, 8)).numel()
    assert reads(network)["b"] == ("a", elements)
    assert network.joins == ()
    assert network["b"].input_elements == elements


def test_views_of_one_tensor_are_one_tensor() -> None:
    model = Functional(
        lambda m, x: (
            m.a(x.flatten(1).unsqueeze(1)),
            m.b(x.permute(0, 2, 1).reshape(-1, 8)),
            m.c(x.clone().view(-1, 8)),
        ),
        a=nn.Linear(8, 2),
        b=nn.Linear(8, 2),
        c=nn.Linear(8, 2),
    )
    assert trace(model, torch.zeros(3, 2, 4)).shared_reads() == (("a", "b", "c"),)


def test_parts_of_a_tensor_are_tensors_of_their_own() -> None:
    def run(m: Functional, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = m.stem(x).chunk(2, 1)
        return m.a(left), m.b(right)

    network = trace(Functional(run, stem=conv(1, 6), a=conv(3, 1), b=conv(3, 1)), torch.zeros(2, 1, 4, 4))
    assert network.shared_reads() == ()
    assert reads(network) == {"stem": (None, 16), "a": ("stem", 48), "b": ("stem", 48)}


@pytest.mark.parametrize(
    ("join", "kind", "channels"),
    [
        pytest.param(lambda a, b: a + b, "add", 4, id="add"),
        pytest.param(lambda a, b: a.sub_(b), "add", 4, id="sub_in_place"),
        pytest.param(lambda a, b: torch.cat([b, a], 1), "concat", 8, id="cat"),
        pytest.param(lambda a, b: torch.stack([a, b], 2).flatten(1, 2), "concat", 8, id="stack"),
        pytest.param(lambda a, b: a * b, "mul", 4, id="mul"),
        pytest.param(lambda a, b: a @ b, "matmul", 4, id="matmul"),
        pytest.param(lambda a, b: torch.einsum("bcij,bcjk->bcik", a, b), "matmul", 4, id="einsum"),
        pytest.param(torch.maximum, "other", 4, id="maximum"),
        pytest.param(lambda a, b: torch.where(a > 0, a, b), "other", 4, id="where"),
    ],
)
def test_join_of_two_layers(join: Callable[[Tensor, Tensor], Tensor], kind: str, channels: int) -> None:
    model = Functional(lambda m, x: m.c(join(m.a(x), m.b(x))), a=conv(1, 4), b=conv(1, 4), c=conv(channels, 1))
    network = trace(model, torch.zeros(2, 1, 4, 4))
    (found,) = network.joins
    assert (found.kind, found.owner, found.others, found.elements) == (kind, "b", (("a", 64),), channels * 16)
    assert reads(network)["c"] == ("b", channels * 16)


def test_join_with_the_network_input() -> None:
    model = Functional(lambda m, x: m.b(x + m.a(x)), a=conv(2, 2), b=conv(2, 2))
    network = trace(model, torch.zeros(1, 2, 4, 4))
    assert network.joins == (Join("add", "add", "a", ((None, 32),), 32),)
    assert network.joined_writes() == ()


def test_writing_into_slices_is_a_concat() -> None:
    def run(m: Functional, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 6)
        out[:, :2] = m.a(x)
        out[:, 2:] = m.b(x)
        return m.c(out)

    model = Functional(run, a=nn.Linear(3, 2), b=nn.Linear(3, 4), c=nn.Linear(6, 1))
    network = trace(model, torch.zeros(2, 3))
    assert [(join.kind, join.owner, join.others[0][0]) for join in network.joins] == [("concat", "b", "a")]
    assert reads(network)["c"] == ("b", 6)


def test_u_net_concatenates_skip_and_transposed_convolution() -> None:
    def run(m: Functional, x: Tensor) -> Tensor:
        skip = F.relu(m.down(x))
        return m.out(torch.cat([m.up(F.relu(m.mid(F.max_pool2d(skip, 2)))), skip], 1))

    model = Functional(run, down=conv(1, 4), mid=conv(4, 8), up=nn.ConvTranspose2d(8, 4, 2, 2), out=conv(8, 1))
    network = trace(model, torch.zeros(2, 1, 8, 8))
    assert network.joins == (Join("cat", "concat", "up", (("down", 256),), 512),)
    assert reads(network) == {"down": (None, 64), "mid": ("down", 64), "up": ("mid", 128), "out": ("up", 512)}


def test_dense_block_concatenates_all_before() -> None:
    def run(m: Functional, x: Tensor) -> Tensor:
        features = [x]
        for layer in m.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)

    model = Functional(run, layers=nn.ModuleList([conv(2, 3), conv(5, 3), conv(8, 3)]))
    network = trace(model, torch.zeros(2, 2, 4, 4))
    assert [(join.owner, [name for name, _ in join.others]) for join in network.joins] == [
        ("layers.0", [None]),
        ("layers.1", [None, "layers.0"]),
        ("layers.2", [None, "layers.0", "layers.1"]),
    ]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "by_hand"])
def test_attention_block(fused: bool) -> None:
    network = trace(Attention(fused=fused), torch.zeros(2, 5, 8))
    assert network.shared_reads() == (("q", "k", "v"),)
    assert reads(network) == {
        **dict.fromkeys("qkv", (None, 40)),
        "out": ("v", 40),
        "mlp.0": ("out", 40),
        "mlp.3": ("mlp.0", 80),
    }
    matmuls = [(join.owner, [name for name, _ in join.others]) for join in network.joins if join.kind == "matmul"]
    assert matmuls == ([("v", ["q", "k"])] if fused else [("k", ["q"]), ("v", ["k"])])
    assert [join.owner for join in network.joins if join.kind == "add"] == ["out", "mlp.3"]


def test_squeeze_and_excite_is_a_product_of_two_layers() -> None:
    def run(m: Functional, x: Tensor) -> Tensor:
        x = F.silu(m.depthwise(x))
        gate = m.excite(F.silu(m.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return m.project(x * gate)

    model = Functional(
        run, depthwise=conv(8, 8, groups=8), squeeze=conv(8, 2, 1), excite=conv(2, 8, 1), project=conv(8, 4, 1)
    )
    network = trace(model, torch.zeros(2, 8, 4, 4))
    assert network.joins == (Join("mul", "mul", "excite", (("depthwise", 128),), 128),)
    assert reads(network)["squeeze"] == ("depthwise", 8)


# Inputs and outputs of all sorts


def test_token_ids_keyword_mask_tied_embedding_and_dict_output() -> None:
    embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    model = Functional(
        lambda m, ids, mask: {"logits": [m.head(m.fc(m.embed(ids) * mask.unsqueeze(-1)))]},
        embed=embedding,
        fc=nn.Linear(4, 4),
        head=head,
    )
    network = trace(model, torch.zeros(2, 5, dtype=torch.int64), example_kwargs={"mask": torch.ones(2, 5)})
    assert reads(network) == {"fc": ("embed", 20), "head": ("fc", 20)}
    assert network.macs == 5 * (16 + 40)
    assert [(join.kind, join.owner, join.others) for join in network.joins] == [("mul", "embed", ((None, 5),))]
    assert network.shared_weights == (("embed", "head"),)
    assert (network["embed"].params, network["head"].params, network.params) == (0, 40, 56)


def test_several_inputs_of_which_one_has_no_batch() -> None:
    model = Functional(lambda m, x, y, table: m.c(m.a(x) + m.b(y) + m.t(table)), **{n: nn.Linear(4, 4) for n in "abct"})
    network = trace(model, (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(3, 4)))
    assert reads(network) == {"a": (None, 12), "b": (None, 12), "t": (None, 12), "c": ("t", 12)}
    assert {layer.macs for layer in network.layers} == {48}


def test_no_grad_and_autocast_regions_are_seen_through() -> None:
    def run(m: Functional, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = m.a(x)
            with torch.autocast("cpu", torch.bfloat16):
                x = F.relu(m.b(x))
        return m.c(x.float())

    network = trace(Functional(run, **{n: nn.Linear(4, 4) for n in "abc"}), torch.zeros(2, 4))
    assert reads(network) == {"a": (None, 4), "b": ("a", 4), "c": ("b", 4)}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_gradient_mode_of_the_caller_does_not_matter(context: Callable[[], object]) -> None:
    expected = trace(Attention(fused=True), torch.zeros(1, 5, 8))
    with context():
        assert trace(Attention(fused=True), torch.zeros(1, 5, 8)) == expected


def test_bfloat16_model_is_traced_like_the_float_one() -> None:
    model, x = MODELS["digits_cnn"](), torch.zeros(1, 1, 8, 8)
    assert trace(copy.deepcopy(model).bfloat16(), x.bfloat16()) == trace(model, x)


# Memory


def test_steps_of_a_chain() -> None:
    model = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    network = trace(model, torch.zeros(2, 1, 8, 8))
    assert network.steps == (
        Step("0", ((None, 64), ("0", 256))),  # normalised and rectified in place
        Step("max_pool2d", (("0", 256), ("0", 64))),
        Step("5", (("0", 64), ("5", 10))),
    )
    assert peak(network) == 320


def test_steps_of_a_residual_network() -> None:
    network = trace(residual(), torch.zeros(2, 1, 8, 8))
    assert network.steps == (
        Step("stem", ((None, 64), ("stem", 256))),
        Step("a", (("stem", 256), ("a", 128))),
        Step("b", (("stem", 256), ("a", 128), ("b", 128))),  # the stem's output waits for the shortcut
        Step("shortcut", (("stem", 256), ("b", 128), ("shortcut", 128))),  # the add writes over the shortcut
        Step("head", (("shortcut", 128), ("head", 32))),
    )
    assert peak(network) == 512


def test_value_with_a_later_reader_is_not_overwritten() -> None:
    model = Functional(lambda m, x: m.b(F.relu(y := m.a(x))) + y, a=conv(1, 4), b=conv(4, 4))
    network = trace(model, torch.zeros(1, 1, 2, 2))
    assert network.steps == (
        Step("a", ((None, 4), ("a", 16))),
        Step("relu", (("a", 16), ("a", 16))),
        Step("b", (("a", 16), ("a", 16), ("b", 16))),
    )


def test_outputs_stay_to_the_end_and_inputs_wait_from_the_start() -> None:
    model = Functional(lambda m, x, late: (m.a(x), m.b(x) + m.c(late)), **{n: nn.Linear(4, 4) for n in "abc"})
    network = trace(model, (torch.zeros(1, 4), torch.zeros(1, 4)))
    assert [step.live for step in network.steps] == [
        ((None, 4), (None, 4), ("a", 4)),
        ((None, 4), (None, 4), ("a", 4), ("b", 4)),
        ((None, 4), ("a", 4), ("b", 4), ("c", 4)),
    ]


# The model stays as it was


class Stateful(nn.Module):
    """Keeps what it saw, as careless research code does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.fc, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.seen.append(x)
        return F.dropout(self.bn(self.fc(x)), training=self.training)


def test_model_is_left_as_it_was() -> None:
    model = Stateful().train()
    model.bn.eval()  # a frozen layer inside a model in training
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    random_state = torch.get_rng_state()
    trace(model, torch.zeros(2, 4))
    assert model.training
    assert model.fc.training
    assert not model.bn.training
    assert not hasattr(model, "last")
    assert model.seen == []
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_model_is_left_as_it_was_after_a_failure() -> None:
    model = Stateful().train()
    with pytest.raises(InputError):
        trace(model, torch.zeros(2, 5))
    assert model.training
    assert model.seen == []


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Functional(lambda m, x: x if x.sum() > 0 else -x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(MODELS["digits_cnn"](), torch.zeros(1, 1, 8, 8))
        with pytest.raises(InputError):
            trace(model, torch.zeros(1, 4))
    assert capfd.readouterr() == ("", "")


# What cannot be quantized


def test_multi_head_attention_is_taken_apart_and_can_be_left_in_float() -> None:
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(2, 5, 8)
    split = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
    assert trace(model, x).layer_names == (*split, "linear1", "linear2")
    assert trace(model, x, float_modules=["self_*"]).layer_names == ("linear1", "linear2")


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        pytest.param(
            Functional(
                lambda m, x: m.fc(x) @ m.mix + F.linear(x, m.table.weight),
                fc=nn.Linear(4, 4),
                mix=nn.Parameter(torch.zeros(4, 4)),
                table=nn.Embedding(4, 4),
            ),
            (4,),
            r"the model itself \(Functional\) .* parameter mix in matmul.*\['mix'\]; likewise table.weight",
            id="functional",
        ),
        pytest.param(
            Functional(lambda m, x: F.linear(x, m.fc.weight), fc=nn.Linear(4, 4)),
            (4,),
            r"the model itself .* fc.weight in linear",
            id="weight_of_a_layer_that_is_not_called",
        ),
    ],
)
def test_weights_out_of_reach_are_refused(model: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        trace(model, torch.zeros(2, *shape))
    assert "\n" not in str(caught.value)


def test_float_modules_are_looked_through() -> None:
    rnn = nn.GRU(6, 3, batch_first=True)
    model = Functional(lambda m, x: m.b(m.rnn(m.a(x))[0]), a=nn.Linear(4, 6), rnn=rnn, b=nn.Linear(3, 2))
    network = trace(model, torch.zeros(2, 5, 4), float_modules=["rnn"])
    assert reads(network) == {"a": (None, 20), "b": ("a", 15)}


def test_layer_in_float_modules_is_no_layer() -> None:
    model = nn.Sequential(conv(1, 4), nn.Sequential(conv(4, 4), conv(4, 4)), conv(4, 1))
    network = trace(model, torch.zeros(1, 1, 4, 4), float_modules=["1"])
    assert network.layer_names == ("0", "2")
    assert reads(network)["2"] == ("0", 64)


def branches(m: Functional, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        pytest.param(
            nn.Sequential(nn.Linear(4, 4), Functional(branches)),
            torch.zeros(1, 4),
            r"module '1' \(Functional\), test_trace.py:\d+ `.*`: control flow depends on .*torch.where",
            id="data_dependent_branch",
        ),
        pytest.param(
            Functional(lambda m, x: m.fc(x[x[:, 0] > 0]), fc=nn.Linear(4, 4)),
            torch.zeros(2, 4),
            r"the model itself .*size depends on the data \(index\)",
            id="data_dependent_shape",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4)),
            torch.zeros(1, 4),
            r"module '1' \(Linear\): torch.export cannot capture it \(RuntimeError: .*runs on the example inputs",
            id="shapes_do_not_fit",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(4, 4)), (torch.zeros(1, 4),) * 2, r"TypeError.*example inputs", id="too_many_inputs"
        ),
        pytest.param(
            nn.Sequential(nn.LazyLinear(4)),
            torch.zeros(1, 4),
            r"'0.weight' .*not initialised.*run the model",
            id="lazy",
        ),
        pytest.param(
            nn.Sequential(nn.ReLU()), torch.zeros(1, 4), r"Sequential has no layer to quantize", id="no_layer"
        ),
        pytest.param(nn.Linear(4, 4), torch.zeros(1, 4), r"bare Linear.*torch.nn.Sequential", id="bare_layer"),
        pytest.param(
            nn.Sequential(conv(1, 2)), torch.zeros(1, 4, 4), r"layer '0' .*\(1, 4, 4\).*batch dimension", id="unbatched"
        ),
        pytest.param(nn.Sequential(conv(1, 2)), torch.zeros(0, 1, 4, 4), r"at least one sample", id="empty_batch"),
        pytest.param(nn.Sequential(conv(1, 2)), (), r"the first example input is no tensor", id="no_input"),
        pytest.param(nn.Sequential(conv(1, 2)), {"x": torch.zeros(1)}, r"is a dict.*example_kwargs", id="dict_input"),
    ],
)
def test_unusable_models_and_inputs_get_one_line(model: nn.Module, inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        trace(model, inputs)
    assert "\n" not in str(caught.value)


def test_float_modules_that_match_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"float_modules: 'backbone' matches no module and no parameter"):
        trace(nn.Sequential(conv(1, 2)), torch.zeros(1, 1, 4, 4), float_modules=["backbone"])
