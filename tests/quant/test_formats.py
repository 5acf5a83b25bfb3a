"""Each number format against something that knows it: torch, ml_dtypes, scikit-learn, scipy, worked values, theory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import haq
from haq import InputError, Policy, Precision, QuantizedModel
from haq.export import EXPORTERS, export
from haq.hardware import build_cost_model, load_profile
from haq.hardware.packing import parameter_bytes, weight_bytes
from haq.quant.calibration import calibrate_activation, calibrate_weight
from haq.quant.formats.all import coder
from haq.quant.formats.codebook import k_means
from haq.quant.formats.minifloat import NAMED
from haq.quant.formats.normal_float import LEVELS
from haq.quant.formats.power_of_two import shifted_products
from haq.quant.formats.product import looked_up_products
from haq.quant.histogram import Histogram
from haq.quant.settings import QuantizationConfig
from haq.trace import trace
from haq.training import TrainableModel
from haq.values.families import FAMILIES
from haq.values.formats import Format

BOTH = [
    *("fp8_e4m3", "fp8_e5m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "mxint8"),
    *("mx4", "mx6", "mx9", "nvfp4"),
]
WEIGHTS = ["nf4", "vs4_s4", "vs3_s6", "pot4", "pot2", "kmeans2", "kmeans5", "pq2_d4", "pq2_d2"]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_quantizer(rows: Tensor, name: str):
    return calibrate_weight(rows, Format.parse(name), scheme="symmetric", method="minmax", percentile=99.9)


def activation_quantizer(x: Tensor, name: str, axis: int = -1):
    seen = Histogram()
    seen.update(x)
    return calibrate_activation(seen, Format.parse(name), scheme="affine", method="mse", percentile=99.9, axis=axis)


def network() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, groups=2), nn.Flatten(), nn.Linear(6 * 49, 11)
    )


def inputs() -> Tensor:
    return gaussian(6, 3, 8, 8, seed=7)


def quantized(model: nn.Module, **settings) -> QuantizedModel:
    return QuantizedModel(model, quantization=QuantizationConfig(**settings), calibration=[(inputs(), None)])


def policy(name: str, activation: str = "int8") -> Policy:
    return Policy(
        dict.fromkeys(("0", "2", "4"), Precision(Format.parse(name), Format.parse(activation)))  # biases stay float
    )


# --- small floats


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)], ids=str
)
def test_fp8_is_torch_s_cast_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    number = NAMED[name]
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32)  # all float16 patterns: ties and subnormals of fp8 as well
    x = every.to(torch.int16).view(torch.float16).float()
    x = x[x.isfinite() & (x.abs() <= number.largest)]
    rounded = number.round(x)
    assert torch.equal(number.encode(rounded), x.to(dtype).view(torch.uint8))
    assert torch.equal(rounded, x.to(dtype).float())
    assert torch.equal(number.decode(number.encode(rounded)), rounded)
    assert number.round(torch.tensor([1e9, -1e9])).tolist() == [number.largest, -number.largest]  # saturates


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp6_e2m3", "float6_e2m3fn"), ("fp6_e3m2", "float6_e3m2fn"), ("fp4", "float4_e2m1fn")]
)
def test_6_and_4_bit_floats_are_those_of_ml_dtypes(name: str, dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    number = NAMED[name]
    x = torch.cat([gaussian(5000) * number.largest / 2, torch.linspace(-number.largest, number.largest, 4097)])
    x = x.clamp(-number.largest, number.largest)
    theirs = x.numpy().astype(getattr(ml_dtypes, dtype))
    np.testing.assert_array_equal(number.encode(number.round(x)).numpy(), theirs.view(np.uint8))


def test_fp8_scales_bring_the_largest_to_the_largest() -> None:
    rows = gaussian(5, 64)
    scale = rows.abs().amax(1, keepdim=True) / 448.0
    expected = (rows / scale).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(weight_quantizer(rows, "fp8_e4m3")(rows), expected)
    x = gaussian(4, 7)
    scale = x.abs().max() / 57344.0
    assert torch.equal(activation_quantizer(x, "fp8_e5m2")(x), (x / scale).to(torch.float8_e5m2).float() * scale)


# --- blocks


def test_worked_values_of_ocp_mxfp4() -> None:
    """Largest 7.3: scale 2^(2 - 2) = 1; values go to 0 .5 1 1.5 2 3 4 6, ties to even, beyond 6 to 6."""
    x = torch.zeros(1, 32)
    x[0, :10] = torch.tensor([7.3, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -5.01, -0.3])
    got = weight_quantizer(x, "mxfp4")
    assert got(x)[0, :10].tolist() == [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -6.0, -0.5]
    arrays = got.encode(x)
    assert arrays["exponent"].tolist() == [[127]]  # E8M0 code of 1
    assert arrays["codes"][0, :3].tolist() == [7, 0, 2]
    quarter = weight_quantizer(x / 4, "mxfp4").encode(x / 4)
    assert quarter["exponent"].tolist() == [[125]]
    assert torch.equal(quarter["codes"], arrays["codes"])


def test_worked_values_of_ocp_mxint8() -> None:
    """Largest 1.99: scale 1; values are 64ths, and 127.4 of them saturate to 127."""
    x = torch.zeros(1, 32)
    x[0, :4] = torch.tensor([1.99, -1.0, 0.5 / 64, 1.5 / 64])
    got = weight_quantizer(x, "mxint8")
    assert got(x)[0, :4].tolist() == [127 / 64, -1.0, 0.0, 2 / 64]


@pytest.mark.parametrize(
    ("name", "element", "emax"),
    [
        ("mxfp8_e4m3", "float8_e4m3fn", 8),
        ("mxfp8_e5m2", "float8_e5m2", 15),
        ("mxfp6_e2m3", "float6_e2m3fn", 2),
        ("mxfp6_e3m2", "float6_e3m2fn", 4),
        ("mxfp4", "float4_e2m1fn", 2),
    ],
)
def test_mx_blocks_by_the_specification(name: str, element: str, emax: int) -> None:
    """Section 6.3 of OCP MX 1.0 written out in numpy, on ml_dtypes' elements."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rows = gaussian(3, 70) * torch.tensor([[1e-3], [1.0], [1e4]])
    kind = getattr(ml_dtypes, element)
    largest = float(ml_dtypes.finfo(kind).max)
    expected = np.zeros((3, 70), np.float32)
    for row in range(3):
        for start in range(0, 70, 32):
            block = rows[row, start : start + 32].numpy().astype(np.float64)
            scale = 2.0 ** (np.floor(np.log2(np.abs(block).max())) - emax)
            held = np.clip(block / scale, -largest, largest).astype(np.float32).astype(kind).astype(np.float64)
            expected[row, start : start + 32] = held * scale
    assert np.array_equal(weight_quantizer(rows, name)(rows).numpy(), expected)


@pytest.mark.parametrize(("name", "mantissa"), [("mx9", 7), ("mx6", 4), ("mx4", 2)])
def test_shared_micro_exponents_by_their_definition(name: str, mantissa: int) -> None:
    rows = gaussian(4, 37, seed=3)
    expected = torch.zeros_like(rows)
    for row in range(4):
        for start in range(0, 37, 16):
            block = rows[row, start : start + 16]
            shared = int(np.floor(np.log2(float(block.abs().max()))))
            for at in range(start, min(start + 16, 37), 2):
                pair = rows[row, at : min(at + 2, start + 16)].double()
                shift = int(float(pair.abs().max()) < 2.0**shared)
                step = 2.0 ** (shared - shift - mantissa + 1)
                steps = (pair / step).round().clamp(-(2**mantissa) + 1, 2**mantissa - 1)
                expected[row, at : at + len(pair)] = (steps * step).float()
    assert torch.equal(weight_quantizer(rows, name)(rows), expected)


def test_nvfp4_by_its_definition() -> None:
    rows = gaussian(3, 50)
    tensor = rows.abs().max() / (6 * 448)
    expected = torch.zeros_like(rows)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    for row in range(3):
        for start in range(0, 50, 16):
            block = rows[row, start : start + 16]
            unit = (block.abs().max() / 6 / tensor).to(torch.float8_e4m3fn).float() * tensor
            level = (block.abs() / unit)[:, None].sub(grid).abs().argmin(1)
            expected[row, start : start + 16] = block.sign() * grid[level] * unit
    torch.testing.assert_close(weight_quantizer(rows, "nvfp4")(rows), expected, rtol=1e-6, atol=0)


def test_nf4_levels_are_quantiles_of_a_normal_distribution() -> None:
    """QLoRA's construction: 8 positive and 7 negative quantiles from a common offset, and 0."""
    norm = pytest.importorskip("scipy.stats").norm
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([positive, negative, [0.0]])) / positive.max()
    np.testing.assert_allclose(LEVELS.numpy(), levels, atol=1e-6)
    rows = gaussian(2, 130)
    got = weight_quantizer(rows, "nf4")(rows)
    for row in range(2):
        for start in (0, 64, 128):
            block = rows[row, start : start + 64]
            held = LEVELS * block.abs().max()
            error = (block[:, None] - held).abs().amin(1)
            torch.testing.assert_close((got[row, start : start + 64] - block).abs(), error, rtol=1e-4, atol=1e-6)


def test_vector_scales_are_integers_times_the_channel_s() -> None:
    rows = gaussian(4, 40)
    got = weight_quantizer(rows, "vs4_s6")(rows)
    for row in range(4):
        sizes = [float(part.abs().max()) / 7 for part in rows[row].split(16)]
        unit = max(sizes) / 63
        for part, held, size in zip(rows[row].split(16), got[row].split(16), sizes, strict=True):
            scale = round(size / unit) * unit
            torch.testing.assert_close(held, (part / scale).round().clamp(-7, 7) * scale, rtol=1e-5, atol=1e-6)


# --- codebooks and powers of two


def test_k_means_has_no_more_inertia_than_scikit_learn_s() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    weight = gaussian(3000, seed=5) ** 3
    for bits in (2, 4):
        ours = k_means(weight, 2**bits)
        start = torch.linspace(float(weight.min()), float(weight.max()), 2**bits)[:, None].double().numpy()
        values = weight[:, None].double().numpy()
        theirs = cluster.KMeans(2**bits, init=start, n_init=1, max_iter=1000, tol=0).fit(values)
        inertia = float((weight[:, None] - ours).square().amin(1).sum())
        assert inertia < 1.002 * theirs.inertia_


@pytest.mark.parametrize(("bits", "error"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_k_means_of_a_gaussian_is_lloyd_max(bits: int, error: float) -> None:
    rows = gaussian(400, 500)
    got = weight_quantizer(rows, f"kmeans{bits}")(rows)
    assert float((got - rows).square().mean()) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("bits", [6, 8])
def test_many_centroids_come_to_the_asymptote_of_panter_and_dite(bits: int) -> None:
    """Error sqrt(3) pi / 2 / N^2 of a unit Gaussian; a start of even steps alone is 2.6 times that at 8 bits."""
    rows = gaussian(400, 500)
    error = float((weight_quantizer(rows, f"kmeans{bits}")(rows) - rows).square().mean())
    assert error == pytest.approx(np.sqrt(3) * np.pi / 2 / 4**bits, rel=0.05)


def test_product_quantization_finds_what_is_made_of_codebooks() -> None:
    books, codes = gaussian(8, 12, seed=2), torch.arange(40) % 8
    rows = torch.cat([books[codes][:, :4], books[codes.flip(0)][:, 4:8], books[codes.roll(3)][:, 8:]], 1)
    got = weight_quantizer(rows, "pq3_d4")(rows)
    assert float((got - rows).square().sum() / rows.square().sum()) < 0.05
    finer = [
        float((weight_quantizer(w, f"pq{b}_d4")(w) - w).square().sum()) for w in [gaussian(64, 30)] for b in (2, 4)
    ]
    assert finer[1] < finer[0]


def test_tables_give_the_dequantized_product() -> None:
    rows, x = gaussian(32, 21), torch.randint(-8, 8, (5, 21)).float()
    quantizer = weight_quantizer(rows, "pq4_d4")
    arrays = quantizer.encode(rows)
    arrays["centroids"] = (arrays["centroids"] * 64).round()  # integers: no order of sums matters
    product = x @ quantizer.decode(arrays, 21).t()
    assert torch.equal(looked_up_products(x, arrays, 4), product)


def test_powers_of_two_are_the_nearest_ones() -> None:
    rows = gaussian(6, 300)
    got = weight_quantizer(rows, "pot4")(rows)
    for row, held in zip(rows, got, strict=True):
        last = float(held.abs().max())
        levels = torch.tensor([0.0, *(last / 2**k for k in range(7))])
        assert np.log2(last) % 1 == 0
        error = (row.abs()[:, None] - levels).abs().amin(1)
        torch.testing.assert_close((held - row).abs(), error, rtol=0, atol=1e-6)


def test_shifts_and_additions_give_the_product() -> None:
    rows, x = gaussian(9, 33), torch.randint(-128, 128, (4, 33))
    quantizer = weight_quantizer(rows, "pot5")
    arrays = quantizer.encode(rows)
    sums, exponents = shifted_products(x, arrays, 5)
    product = x.double() @ quantizer.decode(arrays, 33).double().t()
    assert torch.equal(sums.double() * torch.pow(2.0, exponents.double()), product)


# --- what all of them promise


@pytest.mark.parametrize("name", BOTH + WEIGHTS)
def test_codes_say_the_values_and_rounding_twice_changes_nothing(name: str) -> None:
    rows = torch.cat([gaussian(12, 45), torch.zeros(1, 45)])
    quantizer, decoder = weight_quantizer(rows, name), coder(Format.parse(name))
    once = quantizer(rows)
    arrays = quantizer.encode(rows)
    assert torch.equal(decoder.decode(arrays, 45), once)
    assert {key: tuple(value.shape) for key, value in arrays.items()} == decoder.shapes(13, 45)
    for key, width in decoder.widths.items():
        assert int(arrays[key].max()) < 2**width
    torch.testing.assert_close(quantizer(once), once, rtol=1e-6, atol=1e-7)
    if not name.startswith(("kmeans", "pq")):
        assert not once[-1].any()


@pytest.mark.parametrize("name", BOTH)
def test_activations_have_their_blocks_along_the_channels(name: str) -> None:
    x = gaussian(2, 40, 3, 3)
    quantizer = activation_quantizer(x, name, axis=-3)
    got = quantizer(x)
    turned = activation_quantizer(x, name)(x.movedim(1, -1).contiguous())
    assert torch.equal(got, turned.movedim(-1, 1))
    assert torch.equal(quantizer(x.half()).float(), quantizer(x.half().float()).half().float())
    leaf = x.clone().requires_grad_()
    quantizer(leaf).sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(x))


@pytest.mark.parametrize("name", BOTH + WEIGHTS)
def test_the_file_holds_the_bytes_that_are_predicted_and_the_model(tmp_path: Path, name: str) -> None:
    model, path = network(), tmp_path / "m.safetensors"
    wrapped = quantized(model)
    wrapped.apply(policy(name, name if name in BOTH else "int8"))
    export(wrapped, model, path, inputs=None, format="torch")
    with safe_open(str(path), framework="pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys() if ".weight_" in key}  # noqa: SIM118
    for layer in trace(model, (inputs()[:1],)).layers:
        form = Format.parse(name)
        predicted = weight_bytes(layer, form) + parameter_bytes(
            layer, form, granularity="channel", group_size=1, scheme="symmetric"
        )
        arrays = [tensor for key, tensor in stored.items() if key.startswith(f"{layer.name}.")]
        assert sum(tensor.numel() * tensor.element_size() for tensor in arrays) == predicted
    restored = haq.load_quantized(network(), path)
    with torch.no_grad():
        assert torch.equal(restored(inputs()), wrapped(inputs()))


@pytest.mark.parametrize("granularity", ["tensor", "group"])
def test_fp8_takes_the_settings_granularity(tmp_path: Path, granularity: str) -> None:
    model, path = network(), tmp_path / "m.safetensors"
    wrapped = quantized(model, weight_granularity=granularity, group_size=100)
    wrapped.apply(policy("fp8_e4m3", "fp8_e4m3"))
    export(wrapped, model, path, inputs=None, format="torch")
    with torch.no_grad():
        assert torch.equal(haq.load_quantized(network(), path)(inputs()), wrapped(inputs()))


@pytest.mark.parametrize("name", ["fp8_e4m3", "mxfp4", "mx6", "nvfp4", "nf4", "vs4_s4", "pot4", "kmeans3", "pq2_d2"])
def test_every_format_trains_and_is_deployed_as_trained(tmp_path: Path, name: str) -> None:
    model = network()
    wrapped = quantized(model)
    trainable = TrainableModel(model, wrapped)
    chosen = policy(name, name if name in BOTH else "int8")
    wrapped.apply(chosen)
    trainable.apply(chosen)
    with torch.no_grad():
        torch.testing.assert_close(trainable(trainable.prepared(inputs())), wrapped(inputs()), rtol=0, atol=1e-5)
    optimizer = torch.optim.SGD([*trainable.parameter_groups()[0], *trainable.parameter_groups()[1]], lr=0.02)
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(trainable(trainable.prepared(inputs())), torch.arange(6))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trainable.bounded()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    trainable.module.eval()
    path = tmp_path / "m.safetensors"
    export(trainable, model, path, inputs=None, format="torch")
    with torch.no_grad():
        trained = trainable(trainable.prepared(inputs()))
        torch.testing.assert_close(haq.load_quantized(model, path)(inputs()), trained, rtol=0, atol=1e-4)


def test_the_gradient_of_a_centroid_is_the_sum_of_its_weights_gradients() -> None:
    model = nn.Sequential(nn.Linear(30, 4, bias=False))
    wrapped = QuantizedModel(model, calibration=[(gaussian(8, 30), None)])
    chosen = Policy({"0": Precision.parse("wkmeans2afp32")})
    trainable = TrainableModel(model, wrapped)
    trainable.apply(chosen)
    (slot,) = (slot for (kind, _, _), slot in trainable.slots() if kind == "weight")
    x, aim = gaussian(5, 30, seed=9), gaussian(5, 4, seed=8)
    (trainable(x) * aim).sum().backward()
    weight_gradient = (aim.t() @ x).flatten()
    codes = slot.active[0].codes.flatten().long()
    expected = torch.zeros(4).index_add_(0, codes, weight_gradient)
    torch.testing.assert_close(slot.active[0].centroids.grad, expected)


def test_names_round_trip_through_precisions() -> None:
    for name in BOTH + WEIGHTS:
        activation = name if name in BOTH else "fp16"
        precision = Precision(Format.parse(name), Format.parse(activation))
        assert Precision.parse(str(precision)) == precision == Precision.from_doc(precision.to_doc())
    assert {coder(Format.parse(name)) is not None for name in BOTH + WEIGHTS} == {True}
    assert {family.name for family in FAMILIES} == set(haq.quant.formats.all.FORMATS)


def test_plots_tell_them_apart() -> None:
    from haq.report.figures.style import format_color

    four = ("int4", "int4_g32", "mxfp4", "nvfp4", "nf4", "vs4_s4", "pot4", "kmeans4")
    assert len({format_color(name) for name in four}) == len(four)
    assert all(len(format_color(name)) == 7 for name in BOTH + WEIGHTS)


@pytest.mark.parametrize("name", ["int4_g8", "fp8_e4m3", "mxfp4", "nf4", "kmeans3", "pq3_d4"])
def test_embeddings_are_stored_and_looked_up_in_them(tmp_path: Path, name: str) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Embedding(40, 30), nn.Flatten(), nn.Linear(150, 20))
    ids = torch.randint(40, (6, 5))
    wrapped = QuantizedModel(model, calibration=[(ids, None)])
    chosen = Precision.parse(f"w{name}a8")
    wrapped.apply(Policy(dict.fromkeys(wrapped.layers, chosen)))
    path = tmp_path / "m.safetensors"
    export(wrapped, model, path, inputs=None, format="torch")
    with safe_open(str(path), framework="pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys() if ".weight_" in key}  # noqa: SIM118
    for layer in trace(model, (ids[:1],)).layers:
        predicted = weight_bytes(layer, chosen.weight) + parameter_bytes(
            layer, chosen.weight, granularity="channel", group_size=1, scheme="symmetric"
        )
        held = sum(t.numel() * t.element_size() for key, t in stored.items() if key.startswith(f"{layer.name}."))
        assert held == predicted
    with torch.no_grad():
        assert torch.equal(haq.load_quantized(model, path)(ids), wrapped(ids))


@pytest.mark.parametrize("name", WEIGHTS)
def test_formats_of_weights_are_none_of_activations(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is a format of weights only"):
        Precision.parse(f"w4a{name}")


@pytest.mark.parametrize("format", sorted(set(EXPORTERS) - {"torch"}))
def test_exporters_that_lack_a_format_say_so_and_write_nothing(tmp_path: Path, format: str) -> None:
    pytest.importorskip("onnxruntime")
    model = network()
    wrapped = quantized(model)
    wrapped.apply(policy("mxfp4"))
    with pytest.raises(InputError, match=f"--format {format}: layer 0 has mxfp4 weights, .* use --format torch"):
        export(wrapped, model, tmp_path / "m", inputs=inputs(), format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weight", "activation"),
    [("fp8_e4m3", "fp8_e4m3"), ("fp8_e4m3", "fp8_e5m2"), ("fp8_e5m2", "fp16"), ("int8", "fp8_e4m3")],
)
def test_onnx_runtime_computes_8_bit_floats(tmp_path: Path, weight: str, activation: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.Flatten(), nn.Linear(294, 11)
    ).eval()
    wrapped = quantized(model)
    wrapped.apply(Policy(dict.fromkeys(("0", "3", "5"), Precision(Format.parse(weight), Format.parse(activation)))))
    path = tmp_path / "m.onnx"
    export(wrapped, model, path, inputs=inputs(), format="onnx")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: inputs().numpy()})
    with torch.no_grad():
        expected = wrapped(inputs())
    difference = (torch.from_numpy(got) - expected).abs()
    # A value on the edge between two levels, which are 6 % apart, may fall to the other side.
    assert float(difference.median()) < 1e-3
    assert float(difference.max()) < 0.1


def test_onnx_refuses_scales_of_8_bit_floats_that_it_cannot_say(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = network()
    wrapped = quantized(model)
    for activation, message in (
        ("fp8_e4m3", "layer 2 has fp8_e4m3 weights with a scale for each channel"),
        ("int8", "layer 0 has fp8_e4m3 weights and reads int8; ONNX Runtime would make 8-bit integers"),
    ):
        wrapped.apply(policy("fp8_e4m3", activation))
        with pytest.raises(InputError, match=message):
            export(wrapped, model, tmp_path / "m", inputs=inputs(), format="onnx")
    assert not list(tmp_path.iterdir())


# --- devices and costs


DEVICE = """
title = "A device that knows codebooks and blocks"
kind = "capability"
batch = 8
[device]
vendor = "none"
chip = "none"
[provenance]
source = "made up"
date = 2026-01-01
derived = "nothing"
[[formats]]
pairs = ["w8a8", "wkmeans4a8", "wpq2_d4a8", "wmxfp4amxfp4"]
"""


def device(tmp_path: Path):
    path = tmp_path / "own.toml"
    path.write_text(DEVICE)
    return build_cost_model(load_profile(str(path)))


def test_a_layer_that_is_too_small_for_a_codebook_is_refused(tmp_path: Path) -> None:
    cost_model = device(tmp_path)
    small, large = trace(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 64)), (gaussian(1, 5),)).layers
    offered = {str(choice) for choice in cost_model.supported(small)}
    assert "wkmeans4a8" not in offered
    assert "wkmeans4a8" in {str(choice) for choice in cost_model.supported(large)}
    with pytest.raises(InputError, match="layer '0' is too small for kmeans4: 16 centroids for 15 weights"):
        cost_model.layer_cost(small, Precision.parse("wkmeans4a8"))
    with pytest.raises(InputError, match="codebooks of 4 sub-vectors for 3 output channels"):
        cost_model.layer_cost(small, Precision.parse("wpq2_d4a8"))
    wrapped = QuantizedModel(nn.Sequential(nn.Linear(5, 3)), calibration=[(gaussian(4, 5), None)])
    with pytest.raises(InputError, match="too small for kmeans4"):
        wrapped.apply(Policy({"0": Precision.parse("wkmeans4a8")}))


def test_scales_of_blocks_are_in_sizes_and_in_what_moves(tmp_path: Path) -> None:
    cost_model = device(tmp_path)
    (layer,) = trace(nn.Sequential(nn.Linear(100, 64)), (gaussian(1, 100),)).layers
    choice = Precision.parse("wmxfp4amxfp4")
    assert cost_model.layer_cost(layer, choice).size_bytes == 64 * 100 // 2 + 64 * 4
    batch = cost_model.batch
    assert cost_model.moved_bytes(layer, choice) == (3200 + 256, (164 * batch) / 2 + -(-164 * batch // 32))
    kmeans = cost_model.layer_cost(layer, Precision.parse("wkmeans4a8")).size_bytes
    product = cost_model.layer_cost(layer, Precision.parse("wpq2_d4a8")).size_bytes
    assert (kmeans, product) == (3200 + 16 * 4, 64 * 25 * 2 // 8 + 4 * 100 * 4)


@pytest.mark.parametrize("kind", ["bismo_edge", "bitfusion"])
def test_integer_devices_refuse_formats_that_are_no_integers(tmp_path: Path, kind: str) -> None:
    profile = load_profile(kind)
    text = (profile.folder / f"{kind}.toml").read_text()
    start = text.index("weights = [")
    path = tmp_path / "own.toml"
    path.write_text(text[: start + len("weights = [")] + '"nf4", ' + text[start + len("weights = [") :])
    with pytest.raises(InputError, match="remove nf4 from formats"):
        load_profile(str(path))
