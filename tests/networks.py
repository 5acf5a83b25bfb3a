"""Layers and networks written down by hand, for tests of everything that needs no model."""

from __future__ import annotations

from haq.values.network import Join, LayerSpec, Network, Step, Tensor


def conv(
    name: str, inputs: int, outputs: int, kernel: int, size: int, *, groups: int = 1, stride: int = 1, calls: int = 1
) -> LayerSpec:
    """A square convolution without bias that pads to keep `size` (over `stride`)."""
    after, weights = size // stride, outputs * inputs // groups * kernel**2
    return LayerSpec(
        name=name,
        kind="conv2d",
        weight_shape=(outputs, inputs // groups, kernel, kernel),
        macs=calls * weights * after**2,
        params=weights,
        bias_elements=0,
        input_shape=(inputs, size, size),
        output_shape=(outputs, after, after),
        input_elements=calls * inputs * size**2,
        output_elements=calls * outputs * after**2,
        groups=groups,
        stride=(stride, stride),
        calls=calls,
    )


def transposed(name: str, inputs: int, outputs: int, kernel: int, size: int) -> LayerSpec:
    """A transposed convolution whose stride is its kernel size."""
    after, weights = size * kernel, inputs * outputs * kernel**2
    return LayerSpec(
        name=name,
        kind="conv_transpose2d",
        weight_shape=(inputs, outputs, kernel, kernel),
        macs=weights * size**2,
        params=weights,
        bias_elements=0,
        input_shape=(inputs, size, size),
        output_shape=(outputs, after, after),
        input_elements=inputs * size**2,
        output_elements=outputs * after**2,
        stride=(kernel, kernel),
    )


def linear(name: str, inputs: int, outputs: int, *, rows: int = 1) -> LayerSpec:
    shapes = ((inputs,), (outputs,)) if rows == 1 else ((rows, inputs), (rows, outputs))
    return LayerSpec(
        name=name,
        kind="linear",
        weight_shape=(outputs, inputs),
        macs=rows * inputs * outputs,
        params=inputs * outputs,
        bias_elements=outputs,
        input_shape=shapes[0],
        output_shape=shapes[1],
        input_elements=rows * inputs,
        output_elements=rows * outputs,
    )


def residual() -> Network:
    """stem, a block whose output is added to the stem's, two 1x1 convolutions that are added, depthwise, linear."""
    layers = (
        conv("stem", 3, 16, 3, 8),
        conv("block.conv1", 16, 16, 3, 8),
        conv("block.conv2", 16, 16, 3, 8),
        conv("left", 16, 32, 1, 8),
        conv("right", 16, 32, 1, 8),
        conv("depthwise", 32, 32, 3, 8, groups=32),
        linear("fc", 32, 10),
    )
    tensors = (
        Tensor("x", None, ("stem",), 192),
        Tensor("relu", "stem", ("block.conv1",), 1024),
        Tensor("relu_1", "block.conv1", ("block.conv2",), 1024),
        Tensor("add", "block.conv2", ("left", "right"), 1024),
        Tensor("add_1", "right", ("depthwise",), 2048),
        Tensor("mean", "depthwise", ("fc",), 32),
    )
    joins = (
        Join("add", "add", "block.conv2", (("stem", 1024),), 1024),
        Join("add_1", "add", "right", (("left", 2048),), 2048),
    )
    steps = (
        Step("stem", ((None, 192), ("stem", 1024))),
        Step("block.conv1", (("stem", 1024), ("block.conv1", 1024))),
        Step("block.conv2", (("stem", 1024), ("block.conv1", 1024), ("block.conv2", 1024))),
        Step("left", (("block.conv2", 1024), ("left", 2048))),
        Step("right", (("block.conv2", 1024), ("left", 2048), ("right", 2048))),
        Step("depthwise", (("right", 2048), ("depthwise", 2048))),
        Step("fc", (("depthwise", 32), ("fc", 10))),
    )
    return Network(layers, tensors, joins, steps)


def mobilenet_v2() -> Network:
    """The 53 layers of MobileNetV2 at 224 x 224 pixels and 1000 classes, without the graph around them."""
    layers, channels, size = [conv("features.0", 3, 32, 3, 224, stride=2)], 32, 112
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, repeats, first_stride in blocks:
        for index in range(repeats):
            stride, hidden, name = first_stride if index == 0 else 1, channels * expansion, f"features.{len(layers)}"
            if expansion > 1:
                layers.append(conv(f"{name}.expand", channels, hidden, 1, size))
            layers.append(conv(f"{name}.depthwise", hidden, hidden, 3, size, groups=hidden, stride=stride))
            size //= stride
            layers.append(conv(f"{name}.project", hidden, outputs, 1, size))
            channels = outputs
    layers += [conv("features.last", channels, 1280, 1, size), linear("classifier", 1280, 1000)]
    return Network(tuple(layers), ())
