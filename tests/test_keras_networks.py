"""Networks from Keras files compute what Keras computes, and what the published logs count."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.keras_reference import (
    carried,
    chain,
    difference,
    functional,
    keras,
    layer,
    random_weights,
    reference,
)
from trainer.errors import InputError, OutOfMemory
from trainer.networks.build import build
from trainer.networks.description import check_size, parse_network
from trainer.networks.keras.graph import folded, read_graph
from trainer.networks.keras.layers import LAYERS
from trainer.networks.keras.module import KerasNetwork

SHARED = Path(__file__).resolve().parent.parent.parent / "shared/data"
NETWORKS = SHARED / "networks"
FILES = {
    "layers_resunet": (32513559, 231, (64, 64)),
    "mnist_keras_net": (34826, 11, (28, 28)),
    "network_xception2D": (2055203, 73, (64, 96)),
    "unet3d_seismic": (13616580, 50, (16, 16, 16)),
}
"""Parameters and operations in the published logs, and a small size."""

SIZES = {1: (13,), 2: (13, 10), 3: (7, 6, 5)}
SAME_ON_EVEN = {"kernel_size": 3, "strides": 2, "padding": "same"}


def file(name: str) -> Any:
    if not NETWORKS.is_dir():
        pytest.skip("the published networks are not here")
    return json.loads((NETWORKS / f"{name}.json").read_text())


def resized(content: Any, size: tuple[int, ...]) -> Any:
    """The same network with another declared size, which Keras insists on."""
    content = copy.deepcopy(content)
    first = content["config"]["layers"][0]["config"]
    first["batch_input_shape"] = [None, *size, first["batch_input_shape"][-1]]
    return content


def network(content: Any) -> KerasNetwork:
    torch.manual_seed(0)
    return KerasNetwork(read_graph(content, "layers.json"))


def computed(content: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(content).eval()(x)


# ---- the published files ----


@pytest.mark.parametrize("name", FILES)
def test_published_counts(name: str) -> None:
    graph = read_graph(file(name), name)
    parameters, operations, _ = FILES[name]
    assert (graph.parameters, graph.operations) == (parameters, operations)
    module = KerasNetwork(graph)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_published_counts_of_the_inline_array() -> None:
    path = SHARED / "configs/smoke_tests__config_rmldnn_test.json"
    if not path.is_file():
        pytest.skip("the published configurations are not here")
    content = json.loads(path.read_text())["neural_network"]["layers"]
    described = parse_network(content, "config.json")
    graph = described.graph
    assert (graph.parameters, graph.operations, described.label) == (21432, 14, "Unknown")
    assert (described.activation, described.classes, described.in_channels) == ("log_softmax", 2, 1)
    module = build(described).train()  # with its dropouts of rate 0
    assert module(torch.rand(3, 1, 28, 28)).shape == (3, 2)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "layers_resunet")) for name in FILES],
)
def test_published_networks_compute_what_keras_does(name: str) -> None:
    content = resized(file(name), FILES[name][2])
    assert difference(content, FILES[name][2]) < 1e-3  # logits of some 100 before the sigmoid
    content["config"]["layers"][-1]["config"]["activation"] = "linear"  # nothing saturates
    assert difference(content, FILES[name][2]) < 1e-4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("MobileNet", 4231400),
        ("MobileNetV2", 3504296),
        pytest.param("DenseNet121", 7972584, marks=pytest.mark.slow),
        pytest.param("DenseNet201", 20007656, marks=pytest.mark.slow),
        pytest.param("ResNet50", 25577320, marks=pytest.mark.slow),
        pytest.param("ResNet50V2", 25562088, marks=pytest.mark.slow),
        pytest.param("ResNet101", 44595560, marks=pytest.mark.slow),
        pytest.param("InceptionV3", 23833992, marks=pytest.mark.slow),
        pytest.param("VGG16", 138356392, marks=pytest.mark.slow),
        pytest.param("VGG19", 143666088, marks=pytest.mark.slow),
    ],
)
def test_networks_of_keras_applications(name: str, parameters: int) -> None:
    """As Keras 3 writes them. The numbers are those of the published one-channel files."""
    side = 224 if name.startswith("VGG") or name == "MobileNet" else 96
    model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 1))
    content = json.loads(model.to_json())
    graph = read_graph(content, name)
    assert graph.parameters == parameters
    assert graph.activation == "softmax" and graph.output_shape == (1000,)
    content["config"]["layers"][-1]["config"]["activation"] = "linear"
    model.layers[-1].activation = keras.activations.linear
    assert difference(content, (side, side), model, batch=1) < 1e-4


def as_keras_2(content: Any, slash: bool = False) -> Any:
    """A file of Keras 3 as Keras 2 writes it; `slash`: with conv1/bn for conv1_bn, as DenseNets."""
    content = copy.deepcopy(content)

    def named(name: str) -> str:
        return name.replace("_", "/", 1) if slash else name

    for one in content["config"]["layers"]:
        for key in ("module", "registered_name", "build_config"):
            one.pop(key, None)
        config, calls = one["config"], one["inbound_nodes"]
        config["name"] = one["name"] = named(one["name"])
        config["dtype"] = "float32"
        if "batch_shape" in config:
            config["batch_input_shape"] = config.pop("batch_shape")
        if one["class_name"] == "BatchNormalization":
            config["axis"] = [config["axis"]] if isinstance(config["axis"], int) else config["axis"]
        tensors = calls[0]["args"][0] if calls else []
        tensors = tensors if isinstance(tensors, list) else [tensors]
        names = [tensor["config"]["keras_history"][0] for tensor in tensors]
        one["inbound_nodes"] = [[[named(name), 0, 0, {}] for name in names]] if names else []
    for key in ("input_layers", "output_layers"):
        name = content["config"][key][0]
        content["config"][key] = [[named(name if isinstance(name, str) else name[0]), 0, 0]]
    return {**content, "keras_version": "2.8.0"}


@pytest.mark.parametrize(
    ("name", "slash"),
    [("MobileNetV2", False), pytest.param("DenseNet121", True, marks=pytest.mark.slow)],
)
def test_the_forms_of_keras_2_and_3_are_the_same_network(name: str, slash: bool) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3))
    content = json.loads(model.to_json())
    new, old = (read_graph(c, name) for c in (content, as_keras_2(content, slash)))
    assert (new.parameters, new.operations) == (old.parameters, old.operations)
    assert (sum("/" in node.name for node in old.nodes) > 300) == slash
    for a, b in zip(new.nodes, old.nodes, strict=True):
        assert (a.class_name, a.shape) == (b.class_name, b.shape)
    assert difference(as_keras_2(content, slash), (64, 64), batch=1) < 1e-4


def test_the_pyramid_of_a_pspnet() -> None:
    """Pools that leave 6, 3, 2 and 1 positions of 24, bilinear enlargement by as much."""
    layers = [layer("a", "Conv2D", "input", filters=4, kernel_size=3, strides=2, padding="same")]
    names = ["a"]
    for number, factor in enumerate((4, 8, 12, 24)):
        pool = {"pool_size": factor, "strides": factor, "padding": "same"}
        one = {"filters": 3, "kernel_size": 1, "use_bias": False}
        up = {"size": factor, "interpolation": "bilinear"}
        layers += [
            layer(f"pool{number}", "AveragePooling2D", names[0], **pool),
            layer(f"conv{number}", "Conv2D", f"pool{number}", **one),
            layer(f"bn{number}", "BatchNormalization", f"conv{number}"),
            layer(f"relu{number}", "Activation", f"bn{number}", activation="relu"),
            layer(f"up{number}", "UpSampling2D", f"relu{number}", **up),
        ]  # fmt: skip
        names.append(f"up{number}")
    layers += [
        layer("join", "Concatenate", *names, axis=3),
        layer("drop", "SpatialDropout2D", "join", rate=0.1),
        layer("end", "Conv2D", "drop", filters=3, kernel_size=3, padding="same"),
        layer("up", "UpSampling2D", "end", size=2, interpolation="bilinear"),
        layer("softmax", "Activation", "up", activation="softmax"),
    ]
    content = functional([48, 48, 3], *layers)
    graph = read_graph(content, "x")
    assert graph.activation == "softmax" and graph.divisor == 48
    assert difference(content, (48, 48)) < 1e-4
    KerasNetwork(graph).train()(torch.rand(1, 3, 48, 48)).sum().backward()
    with pytest.raises(InputError, match="multiples of 48"):
        check_size(parse_network(content, "x"), (64, 64), "--image-size")


# ---- every layer class, in one to three dimensions ----


def windows() -> list[tuple[str, int, dict[str, Any]]]:
    made = []
    for n, padding, stride, k in itertools.product((1, 2, 3), ("valid", "same"), (1, 2), (2, 3)):
        window = {"strides": [stride] * n, "padding": padding}
        kernel = {"kernel_size": [k] * n, **window}
        made += [
            (f"Conv{n}D", n, {"filters": 6, "activation": "tanh", **kernel}),
            (f"Conv{n}DTranspose", n, {"filters": 6, "activation": "elu", **kernel}),
            (f"MaxPooling{n}D", n, {"pool_size": [k] * n, **window}),
        ]
        if n < 3:
            multiplied = {"depth_multiplier": 2, **kernel}
            made += [
                (f"DepthwiseConv{n}D", n, multiplied),
                (f"SeparableConv{n}D", n, {"filters": 5, **multiplied}),
            ]
        if padding == "valid":  # keras on torch repeats the border for same: see below
            made.append((f"AveragePooling{n}D", n, {"pool_size": [k] * n, **window}))
    for n in (1, 2, 3):
        dilated = {"kernel_size": 2, "dilation_rate": 2, "padding": "same", "use_bias": False}
        made += [
            (f"Conv{n}D", n, {"filters": 4, "groups": 2, "activation": "gelu", **dilated}),
            (f"Conv{n}DTranspose", n, {"filters": 3, "kernel_size": 2, "strides": 3}),
            (f"GlobalAveragePooling{n}D", n, {}),
            (f"GlobalAveragePooling{n}D", n, {"keepdims": True}),
            (f"GlobalMaxPooling{n}D", n, {}),
            (f"UpSampling{n}D", n, {"size": 3}),
            (f"ZeroPadding{n}D", n, {"padding": 2}),
            (f"Cropping{n}D", n, {"cropping": [[1, 2]] * n if n > 1 else [1, 2]}),
            ("BatchNormalization", n, {"axis": -1}),
            ("BatchNormalization", n, {"axis": [n + 1], "center": False, "scale": False}),
            ("LayerNormalization", n, {"axis": [n + 1]}),
            ("Dense", n, {"units": 5, "activation": "softmax"}),
            ("Flatten", n, {}),
            ("Dropout", n, {"rate": 0.5}),
            (f"SpatialDropout{n}D", n, {"rate": 0.5}),
            ("Softmax", n, {"axis": -1}),
        ]
    causal = {"filters": 3, "kernel_size": 3, "dilation_rate": 2, "padding": "causal"}
    return [
        *made,
        ("Conv1D", 1, causal),
        ("ZeroPadding2D", 2, {"padding": [[0, 1], [2, 3]]}),
        ("UpSampling2D", 2, {"size": [2, 3], "interpolation": "bilinear"}),
        ("ReLU", 2, {"max_value": 6.0, "negative_slope": 0, "threshold": 0}),
        ("ReLU", 2, {"max_value": 0.8, "negative_slope": 0.1, "threshold": 0.3}),
        ("LeakyReLU", 2, {"alpha": 0.1}),
        ("ELU", 2, {"alpha": 0.7}),
        ("Reshape", 2, {"target_shape": [-1, 4]}),
        ("Reshape", 2, {"target_shape": [520]}),
        ("Reshape", 2, {"target_shape": [10, 13, 4]}),
    ]


@pytest.mark.parametrize(
    ("kind", "n", "options"), windows(), ids=lambda value: str(value).replace(" ", "")[:60]
)
def test_a_layer_computes_what_keras_does(kind: str, n: int, options: dict[str, Any]) -> None:
    content = chain([*SIZES[n], 4], (kind, options))
    assert difference(content, SIZES[n]) < 1e-5


@pytest.mark.parametrize("name", ["linear", "relu", "relu6", "sigmoid", "softmax", "log_softmax",
    "tanh", "silu", "swish", "elu", "selu", "gelu", "softplus", "softsign", "hard_sigmoid",
    "exponential", "leaky_relu", "mish"])  # fmt: skip
def test_activations_in_any_case(name: str) -> None:
    one = ("Conv2D", {"filters": 4, "kernel_size": 1})
    content = chain([5, 4, 3], one, ("Activation", {"activation": name}), one)
    content["keras_version"] = "3.1.0"
    model = reference(content)
    content["config"]["layers"][2]["config"]["activation"] = name.upper()
    assert difference(content, (5, 4), model) < 1e-5


def test_the_hard_sigmoid_of_keras_2() -> None:
    content = chain([4, 4, 1], ("Activation", {"activation": "hard_sigmoid"}))
    x = torch.linspace(-4, 4, 16).view(1, 1, 4, 4)
    assert torch.allclose(computed(content, x), (0.2 * x + 0.5).clamp(0, 1))


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh", "Swish", "Log_Softmax", "LogSoftmax"])
def test_activations_that_are_layers_of_rmldnn(name: str) -> None:
    content = chain([4, 4, 3], (name, {}), ("Cropping2D", {"cropping": 1}))
    x = torch.randn(2, 3, 4, 4)
    expected = {
        "Sigmoid": x.sigmoid(),
        "Tanh": x.tanh(),
        "Swish": F.silu(x),
        "LogSoftmax": x.log_softmax(1),
    }[name.replace("_", "")]
    assert torch.allclose(computed(content, x), expected[:, :, 1:3, 1:3])


@pytest.mark.parametrize(
    "kind", ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"]
)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_layers_of_several_inputs(kind: str, n: int) -> None:
    one = layer("a", f"Conv{n}D", "input", filters=4, kernel_size=1)
    two = layer("b", f"Conv{n}D", "input", filters=4, kernel_size=1)
    content = functional([*SIZES[n], 3], one, two, layer("c", kind, "b", "a"))
    assert difference(content, SIZES[n]) < 1e-5


def test_squeeze_and_excitation_repeats_what_has_one_position() -> None:
    content = functional(
        [8, 8, 3],
        layer("conv", "Conv2D", "input", filters=4, kernel_size=3),
        layer("mean", "GlobalAveragePooling2D", "conv"),
        layer("image", "Reshape", "mean", target_shape=[1, 1, 4]),
        layer("gate", "Conv2D", "image", filters=4, kernel_size=1, activation="sigmoid"),
        layer("scaled", "Multiply", "conv", "gate"),
    )
    assert difference(content, (8, 8)) < 1e-5


def test_depthwise_and_separable_in_three_dimensions() -> None:
    """Not in Keras: against torch."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 5, 5)
    deep = network(
        chain([5, 5, 5, 2], ("DepthwiseConv3D", {"kernel_size": 3, "depth_multiplier": 2}))
    ).eval()
    weight = deep.state_dict()["layer_1.weight"]
    assert torch.allclose(deep(x), F.conv3d(x, weight, groups=2), atol=1e-6)
    separable = network(chain([5, 5, 5, 2], ("SeparableConv3D", {"kernel_size": 3, "filters": 7})))
    state = separable.state_dict()
    expected = F.conv3d(x, state["layer_1.depthwise.weight"], groups=2)
    expected = F.conv3d(
        expected, state["layer_1.pointwise.weight"], state["layer_1.pointwise.bias"]
    )
    assert torch.allclose(separable(x), expected, atol=1e-6)


@pytest.mark.parametrize(("padding", "pads"), [(1, (1, 1)), ([1, 0], (1, 0)), ([2], (2, 2))])
def test_padding_in_numbers_is_on_both_sides(padding: Any, pads: tuple[int, int]) -> None:
    """An extension of rmldnn."""
    options = {"filters": 3, "kernel_size": 3, "strides": 2, "padding": padding}
    module = network(chain([9, 9, 2], ("Conv2D", options))).eval()
    state = module.state_dict()
    x = torch.randn(1, 2, 9, 9)
    expected = F.conv2d(x, state["layer_1.weight"], state["layer_1.bias"], 2, pads)
    assert torch.allclose(module(x), expected, atol=1e-6)


def test_penalties_are_read_and_constraints_refused() -> None:
    penalty = {"class_name": "L2", "config": {"l2": 5e-4}}
    options = {"filters": 3, "kernel_size": 3, "kernel_regularizer": penalty}
    assert read_graph(chain([9, 9, 2], ("Conv2D", options)), "x").parameters == 57


def test_dropout_acts_in_training_alone_on_values_or_on_channels() -> None:
    x = torch.ones(2, 50, 8, 8)
    for kind, whole in (("Dropout", False), ("SpatialDropout2D", True)):
        module = network(chain([8, 8, 50], (kind, {"rate": 0.5})))
        assert torch.equal(module.eval()(x), x)
        y = module.train()(x)
        assert set(y.unique().tolist()) == {0.0, 2.0}
        alike = (y == y[:, :, :1, :1]).all(dim=(2, 3))
        assert bool(alike.all()) == whole


def test_every_layer_class_is_tested() -> None:
    source = Path(__file__).read_text()
    for name in LAYERS:
        generic = name.replace("1D", "{n}D").replace("2D", "{n}D").replace("3D", "{n}D")
        assert f'"{name}"' in source or f'"{generic}"' in source, name


# ---- the fifteen points where files and frameworks differ ----


@pytest.mark.parametrize("size", [(12, 12), (13, 12), (13, 15)])
def test_1_same_with_strides_pads_more_at_the_end(size: tuple[int, int]) -> None:
    """The first layers of MobileNet; the padding follows the size at run time."""
    for kind, options in (
        ("Conv2D", {"filters": 3, **SAME_ON_EVEN}),
        ("DepthwiseConv2D", SAME_ON_EVEN),
        ("MaxPooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}),
    ):
        assert difference(chain([*size, 2], (kind, options)), size) < 1e-5
        unknown = network(chain([None, None, 2], (kind, options))).eval()
        fixed = network(chain([*size, 2], (kind, options))).eval()
        x = torch.randn(1, 2, *size)
        assert torch.equal(unknown(x), fixed(x))


def test_1_the_padding_of_a_maximum_never_wins() -> None:
    content = chain([4, 4, 1], ("MaxPooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}))
    assert torch.equal(computed(content, -torch.ones(1, 1, 4, 4)), -torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("k", "stride", "side"), [(3, 1, 6), (3, 2, 6), (4, 3, 7), (2, 2, 5)])
def test_2_average_pooling_does_not_count_its_padding(
    n: int, k: int, stride: int, side: int
) -> None:
    """Closed form: sums over what is inside, by what is inside."""
    options = {"pool_size": k, "strides": stride, "padding": "same"}
    content = chain([side] * n + [2], (f"AveragePooling{n}D", options))
    x = torch.randn(2, 2, *[side] * n)
    found = computed(content, x)
    out = -(-side // stride)
    before = max((out - 1) * stride + k - side, 0) // 2
    for position in itertools.product(range(out), repeat=n):
        window = tuple(
            slice(max(p * stride - before, 0), min(p * stride - before + k, side)) for p in position
        )
        inside = x[(slice(None), slice(None), *window)]
        expected = inside.mean(dim=tuple(range(2, n + 2)))
        assert torch.allclose(found[(slice(None), slice(None), *position)], expected, atol=1e-6)


def test_3_bilinear_upsampling_has_half_pixel_centres() -> None:
    content = chain([1, 2, 1], ("UpSampling2D", {"size": [1, 2], "interpolation": "bilinear"}))
    found = computed(content, torch.tensor([[[[0.0, 1.0]]]]))
    assert found.flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    for factor in (4, 8, 16, 48):
        options = {"size": factor, "interpolation": "bilinear"}
        assert difference(chain([3, 2, 2], ("UpSampling2D", options)), (3, 2)) < 1e-5
    content = chain([1, 2, 1], ("UpSampling2D", {"size": [1, 2]}))
    assert computed(content, torch.tensor([[[[0.0, 1.0]]]])).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("k", "stride"), [(4, 2), (3, 1), (3, 2), (2, 3), (5, 3)])
def test_4_same_of_a_transposed_convolution_is_input_times_stride(k: int, stride: int) -> None:
    options = {"filters": 2, "kernel_size": k, "strides": stride, "padding": "same"}
    options |= {"output_padding": None, "groups": 1}
    for n in (2, 3):
        content = chain([5] * n + [3], (f"Conv{n}DTranspose", options))
        assert read_graph(content, "x").output_shape == (*[5 * stride] * n, 2)
        assert difference(content, (5,) * n) < 1e-5


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("k", "stride", "more"), [(3, 2, 1), (4, 3, 2), (2, 2, 0)])
def test_4_output_padding_of_a_transposed_convolution(
    padding: str, k: int, stride: int, more: int
) -> None:
    options = {"filters": 2, "kernel_size": k, "strides": stride, "output_padding": more}
    content = chain([5, 6, 3], ("Conv2DTranspose", {**options, "padding": padding}))
    assert difference(content, (5, 6)) < 1e-5


def test_5_batch_normalisation_is_always_affine() -> None:
    content = chain([4, 4, 3], ("BatchNormalization", {"center": False, "scale": False}))
    assert read_graph(content, "x").parameters == 6
    assert set(dict(network(content).named_parameters())) == {"layer_1.weight", "layer_1.bias"}
    assert difference(content, (4, 4)) < 1e-5  # they start at 1 and 0


@pytest.mark.parametrize(
    ("written", "kept"), [(0.99, 0.99), (0.999, 0.999), (0.1, 0.9), (0.5, 0.5)]
)
def test_6_a_momentum_below_a_half_is_torchs(written: float, kept: float) -> None:
    module = network(chain([4, 4, 1], ("BatchNormalization", {"momentum": written})))
    module.train()(torch.full((2, 1, 4, 4), 3.0))
    mean = module.state_dict()["layer_1.running_mean"].item()
    assert mean == pytest.approx(3.0 * (1 - kept), rel=1e-4)


def frozen() -> dict[str, Any]:
    return chain(
        [4, 4, 2],
        ("Conv2D", {"filters": 3, "kernel_size": 3, "trainable": False}),
        ("BatchNormalization", {"trainable": False}),
        ("Conv2D", {"filters": 2, "kernel_size": 1}),
        ("BatchNormalization", {}),
    )


def test_7_frozen_layers_keep_weights_and_statistics() -> None:
    graph = read_graph(frozen(), "x")
    assert (graph.parameters, graph.trainable_parameters) == (57 + 6 + 8 + 4, 8 + 4)
    module = KerasNetwork(graph).train()
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        module.train()(torch.randn(4, 2, 4, 4)).square().sum().backward()
        optimizer.step()
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    own = ("layer_3", "layer_4")
    assert changed == {key for key in before if key.startswith(own)}


def test_7_a_network_that_is_frozen_as_a_whole() -> None:
    content = frozen()
    content["config"]["trainable"] = False
    assert read_graph(content, "x").trainable_parameters == 0


@pytest.mark.parametrize("axis", [3, [3], -1])
def test_8_axes_of_channels(axis: Any) -> None:
    one = layer("a", "Conv2D", "input", filters=2, kernel_size=1, activation="softmax")
    two = layer("b", "BatchNormalization", "a", axis=axis)
    three = layer("c", "Concatenate", "a", "b", axis=axis if not isinstance(axis, list) else 3)
    assert difference(functional([4, 5, 3], one, two, three), (4, 5)) < 1e-5


def test_8_an_axis_of_rows_stays_one_of_rows() -> None:
    """As the heads of YOLO: (13, 13, 255) → (169, 255), one after another."""
    content = functional(
        [8, 8, 3],
        layer("a", "Conv2D", "input", filters=5, kernel_size=1),
        layer("b", "Conv2D", "input", filters=5, kernel_size=3, strides=2, padding="same"),
        layer("rows_a", "Reshape", "a", target_shape=[-1, 5]),
        layer("rows_b", "Reshape", "b", target_shape=[-1, 5]),
        layer("out", "Concatenate", "rows_a", "rows_b", axis=1),
    )
    graph = read_graph(content, "x")
    assert graph.output_shape == (80, 5) and graph.literal_output
    assert KerasNetwork(graph)(torch.zeros(2, 3, 8, 8)).shape == (2, 80, 5)
    assert difference(content, (8, 8)) < 1e-5


def test_9_flatten_and_reshape_are_in_the_order_of_keras() -> None:
    content = chain(
        [4, 6, 3],
        ("Conv2D", {"filters": 5, "kernel_size": 3}),
        ("Flatten", {}),
        ("Dense", {"units": 30}),
        ("Reshape", {"target_shape": [2, 3, 5]}),
        ("Conv2D", {"filters": 2, "kernel_size": 2}),
    )
    assert difference(content, (4, 6)) < 1e-5


def test_10_layers_may_lack_names_and_options() -> None:
    content = chain([6, 6, 1], ("Conv2D", {"filters": 2, "kernel_size": 3}), ("ReLU", {}))
    for one in content["config"]["layers"]:
        del one["name"]
    assert [n.name for n in read_graph(content, "x").nodes] == ["input", "layer_1", "layer_2"]


def test_10_an_array_and_a_sequential_are_chains() -> None:
    layers = [
        {"class_name": "Conv2D", "config": {"name": "c", "batch_input_shape": [None, 6, 6, 1],
                                            "filters": 2, "kernel_size": [3, 3]}},
        {"class_name": "Flatten", "config": {"name": "f"}},
        {"class_name": "Dense", "config": {"name": "d", "units": 3}},
    ]  # fmt: skip
    sequential = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    old = {"class_name": "Sequential", "config": layers}
    graphs = [read_graph(content, "x") for content in (layers, sequential, old)]
    assert [g.parameters for g in graphs] == [20 + 99] * 3
    assert [g.name for g in graphs] == ["Unknown", "s", "Unknown"]
    assert [g.operations for g in graphs] == [4] * 3
    assert difference(sequential, (6, 6)) < 1e-5


def test_11_names_with_a_slash_and_with_a_dot() -> None:
    one = layer("conv1/bn", "BatchNormalization", "input")
    two = layer("a.b%", "BatchNormalization", "conv1/bn")
    three = layer("type", "Conv2D", "a.b%", filters=1, kernel_size=1)  # nn.Module has a `type`
    module = network(functional([4, 4, 2], one, two, three))
    assert set(dict(module.named_parameters())) == {
        "conv1/bn.weight", "conv1/bn.bias", "a%2Eb%25.weight", "a%2Eb%25.bias",
        "type.weight", "type.bias",
    }  # fmt: skip
    module.load_state_dict(module.state_dict())
    assert module(torch.zeros(1, 2, 4, 4)).shape == (1, 1, 4, 4)


def test_12_the_size_of_the_input_is_advisory() -> None:
    content = chain([16, 16, 1], ("Conv2D", {"filters": 2, "kernel_size": 3, "padding": "same"}))
    assert network(content)(torch.zeros(1, 1, 40, 24)).shape == (1, 2, 40, 24)
    fixed = parse_network(
        chain([16, 16, 1], ("Flatten", {}), ("Dense", {"units": 2})), "layers.json"
    )
    assert fixed.graph.divisor is None
    check_size(fixed, (16, 16), "--image-size")
    with pytest.raises(InputError, match=r"layer_2.*has weights for 256 inputs, .* gives 512"):
        check_size(fixed, (32, 16), "--image-size")


def test_12_a_size_that_would_come_out_as_another_is_refused() -> None:
    content = chain(
        [None, None, 1],
        ("MaxPooling2D", {"pool_size": 2, "padding": "same"}),
        ("UpSampling2D", {"size": 2}),
    )
    described = parse_network(content, "layers.json")
    assert described.divisor == 2
    with pytest.raises(
        InputError, match=r"16x15.*\n?.*\(15, 16\) would come out as \(16, 16\)"
    ) as caught:
        check_size(described, (16, 15), "--image-size")
    assert "multiples of 2" in str(caught.value)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_13_one_value_a_channel_is_normalised_in_training(n: int) -> None:
    """It becomes the shift; the statistics take over its mean and a variance of 0, as in Keras."""
    content = chain([1] * n + [3], ("BatchNormalization", {"momentum": 0.9}))
    module = network(content).train()
    x = torch.randn(1, 3, *[1] * n, requires_grad=True)
    y = module(x)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    state = module.state_dict()
    assert torch.allclose(state["layer_1.running_mean"], 0.1 * x.detach().flatten())
    assert torch.allclose(state["layer_1.running_var"], torch.full((3,), 0.9))
    assert torch.equal(module.get_parameter("layer_1.bias").grad, torch.ones(3))  # type: ignore[arg-type]
    model = reference(content)
    expected = model(x.detach().movedim(1, -1), training=True)
    assert np.allclose(expected.detach().numpy(), 0.0)
    assert np.allclose(model.layers[1].moving_variance.value.detach().numpy(), 0.9)


def test_13_instance_normalisation_of_one_voxel() -> None:
    options = {"affine": False, "track_running_stats": False, "momentum": 0.1, "epsilon": 1e-5}
    content = chain([None] * 3 + [2], ("InstanceNormalization", options))
    module = network(content).train()
    assert torch.equal(module(torch.randn(2, 2, 1, 1, 1)), torch.zeros(2, 2, 1, 1, 1))
    x = torch.randn(2, 2, 4, 3, 5)
    assert torch.allclose(module(x), F.instance_norm(x, eps=1e-5), atol=1e-6)
    assert not list(module.parameters())
    affine = network(chain([None] * 3 + [2], ("InstanceNormalization", {"epsilon": 1e-5})))
    assert torch.allclose(affine(x), F.instance_norm(x, eps=1e-5), atol=1e-6)
    assert sum(p.numel() for p in affine.parameters()) == 4


@pytest.mark.parametrize("end", ["sigmoid", "softmax", "log_softmax", "log_softmax_v2", "relu"])
@pytest.mark.parametrize("fused", [True, False])
def test_14_the_final_activation_stands_apart(end: str, fused: bool) -> None:
    options: dict[str, Any] = {"filters": 3, "kernel_size": 1}
    layers = [("Conv2D", {**options, "activation": end})]
    if not fused:
        layers = [("Conv2D", options), ("Activation", {"activation": end})]
    described = parse_network(chain([4, 4, 2], *layers), "x")
    module = build(described)
    x = torch.randn(2, 2, 4, 4)
    logits = module(x)
    plain = F.conv2d(x, *(module.body.state_dict()[f"layer_1.{k}"] for k in ("weight", "bias")))
    expected = {"softmax": plain.softmax(1), "sigmoid": plain.sigmoid(), "relu": plain.relu()}
    assert torch.allclose(module.output(logits), expected.get(end, plain.log_softmax(1)), atol=1e-6)
    if end == "relu":
        assert described.activation is None and torch.allclose(logits, plain.relu(), atol=1e-6)
        return
    assert described.activation == end.removesuffix("_v2")
    assert torch.allclose(logits, plain, atol=1e-6)
    soft = plain.sigmoid() if end == "sigmoid" else plain.softmax(1)
    assert torch.allclose(module.probabilities(logits), soft, atol=1e-6)


def test_15_operations_are_layers_and_fused_activations() -> None:
    content = chain(
        [4, 4, 2],
        ("Conv2D", {"filters": 2, "kernel_size": 1, "activation": "relu"}),
        ("Conv2D", {"filters": 2, "kernel_size": 1, "activation": "linear"}),
        ("Activation", {"activation": "relu"}),
    )
    assert read_graph(content, "x").operations == 4 + 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_networks_of_all_dimensions_are_built_and_checked(n: int) -> None:
    one = {"filters": 4, "kernel_size": 3, "padding": "same"}
    content = chain([None] * n + [2], (f"Conv{n}D", one), (f"MaxPooling{n}D", {}),
                    (f"UpSampling{n}D", {}), (f"Conv{n}D", {**one, "filters": 1}))  # fmt: skip
    described = parse_network(content, "x")
    module = build(described)
    assert described.dimensions == n and described.divisor == 2
    size = (8, 6, 4)[:n]
    module.check(size)
    assert module(torch.rand(2, 2, *size)).shape == (2, 1, *size)
    with pytest.raises(InputError, match="multiples of 2"):
        check_size(described, (8, 7, 4)[-n:] if n > 1 else (7,), "here")


# ---- speed and memory ----


def test_even_padding_is_folded_into_what_follows() -> None:
    content = chain(
        [8, 8, 2],
        ("ZeroPadding2D", {"padding": 3}),
        ("Conv2D", {"filters": 2, "kernel_size": 7, "strides": 2, "activation": "relu"}),
        ("ZeroPadding2D", {"padding": 1}),
        ("MaxPooling2D", {"pool_size": 3, "strides": 2}),
    )
    kinds = [node.class_name for node in folded(read_graph(content, "x"))]
    assert kinds == ["InputLayer", "Conv2D", "MaxPooling2D"]
    assert difference(content, (8, 8)) < 1e-5


def test_zeros_before_a_maximum_stay_where_values_may_be_negative() -> None:
    content = chain([4, 4, 1], ("ZeroPadding2D", {"padding": 1}), ("MaxPooling2D", {}))
    found = computed(content, -torch.ones(1, 1, 4, 4))
    assert found[0, 0, 0, 0] == 0 and found[0, 0, 1, 1] == -1


def test_padding_that_two_layers_use_stays() -> None:
    content = functional(
        [6, 6, 2],
        layer("pad", "ZeroPadding2D", "input", padding=1),
        layer("a", "Conv2D", "pad", filters=2, kernel_size=3),
        layer("b", "Conv2D", "pad", filters=2, kernel_size=3),
        layer("sum", "Add", "a", "b"),
    )
    assert len(folded(read_graph(content, "x"))) == 5
    assert difference(content, (6, 6)) < 1e-5


def test_an_activation_overwrites_only_what_nobody_else_reads() -> None:
    content = functional(
        [6, 6, 2],
        layer("conv", "Conv2D", "input", filters=2, kernel_size=3, padding="same"),
        layer("relu", "ReLU", "conv"),
        layer("act", "Activation", "conv", activation="relu"),
        layer("sum", "Subtract", "conv", "act"),
        layer("all", "Add", "sum", "relu"),
    )
    assert difference(content, (6, 6)) < 1e-5
    network(content)(torch.randn(1, 2, 6, 6)).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers_resunet", "network_xception2D", "unet3d_seismic"])
def test_the_network_is_one_graph_under_compile(name: str) -> None:
    module = network(file(name))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.rand(2, module_channels(name), *FILES[name][2])
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-3, atol=1e-3)


def module_channels(name: str) -> int:
    return read_graph(file(name), name).in_channels


def test_a_small_network_of_odd_names_is_one_graph_under_compile() -> None:
    content = functional(
        [None, None, 3],
        layer("conv1/conv", "Conv2D", "input", filters=4, **SAME_ON_EVEN),
        layer("conv1/bn", "BatchNormalization", "conv1/conv"),
        layer("type.1", "Activation", "conv1/bn", activation="relu"),
        layer("p", "AveragePooling2D", "type.1", pool_size=3, strides=1, padding="same"),
        layer("up", "UpSampling2D", "p"),
    )
    module = network(content)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(compiled(x), module(x), atol=1e-6)


def test_the_layout_stays_channels_last() -> None:
    """No layer of an image network copies its result to another layout."""
    content = chain(
        [16, 16, 8],
        ("Conv2D", {"filters": 8, **SAME_ON_EVEN}),
        ("BatchNormalization", {}),
        ("Activation", {"activation": "relu"}),
        ("MaxPooling2D", {}),
        ("UpSampling2D", {}),
        ("Conv2DTranspose", {"filters": 8, **SAME_ON_EVEN}),
        ("LayerNormalization", {}),
        ("Dense", {"units": 8}),
    )
    module = build(parse_network(content, "x"))
    x = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    for count in range(1, 9):
        part = copy.deepcopy(module.body)
        part.steps, part.result = part.steps[:count], f"layer_{count}"
        assert part(x).stride(1) == 1, count


@pytest.mark.slow
def test_the_size_stays_free_in_an_export() -> None:
    """Padding that depends on the size is computed in the exported program, too."""
    content = chain(
        [None, None, 3],
        ("Conv2D", {"filters": 4, **SAME_ON_EVEN}),
        ("AveragePooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}),
        ("MaxPooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}),
        ("UpSampling2D", {"size": 8, "interpolation": "bilinear"}),
    )
    module = network(content).eval()
    free = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    program = torch.export.export(module, (torch.rand(3, 3, 37, 42),), dynamic_shapes={"x": free})
    for shape in ((2, 3, 40, 64), (5, 3, 33, 51)):
        x = torch.rand(shape)
        assert torch.allclose(program.module()(x), module(x), atol=1e-5)


# ---- initial weights ----


def test_a_network_that_the_memory_cannot_hold_is_told() -> None:
    content = chain([4, 4, 2], *[("Conv2D", {"filters": 2**31 - 1, "kernel_size": 1})] * 2)
    with pytest.raises(OutOfMemory, match="this machine has"):
        network(content)


@pytest.mark.parametrize(
    ("initializer", "deviation"),
    [
        ({"class_name": "GlorotUniform", "config": {"seed": None}}, (2 / (27 * 20)) ** 0.5),
        ("he_normal", (2 / 180) ** 0.5),
        ({"class_name": "HeUniform", "config": {}}, (2 / 180) ** 0.5),
        ({"class_name": "LecunNormal", "config": {}}, (1 / 180) ** 0.5),
        ({"class_name": "RandomNormal", "config": {"mean": 0.0, "stddev": 0.3}}, 0.3),
        ({"class_name": "RandomUniform", "config": {"minval": -0.3, "maxval": 0.3}}, 0.3 / 3**0.5),
        ({"class_name": "TruncatedNormal", "config": {"stddev": 1.0}}, 0.8796),
        ({"class_name": "VarianceScaling", "config": {"scale": 2.0, "mode": "fan_in",
          "distribution": "normal"}}, (2 / 180) ** 0.5),
        ({"class_name": "VarianceScaling", "config": {"scale": 1.0, "mode": "fan_avg",
          "distribution": "uniform"}}, (1 / ((180 + 360) / 2)) ** 0.5),
    ],
)  # fmt: skip
def test_initializers_have_the_deviations_of_keras(initializer: Any, deviation: float) -> None:
    options = {"filters": 40, "kernel_size": 3, "kernel_initializer": initializer}
    if isinstance(initializer, dict) and initializer["class_name"] == "GlorotUniform":
        deviation = (1 / ((9 * 20 + 9 * 40) / 2)) ** 0.5
    module = network(chain([4, 4, 20], ("Conv2D", options)))
    weight = module.get_parameter("layer_1.weight").detach()
    assert weight.std().item() == pytest.approx(deviation, rel=0.03)
    assert abs(weight.mean().item()) < deviation / 20


def test_the_seed_sets_the_weights() -> None:
    content = chain([4, 4, 2], ("Conv2D", {"filters": 3, "kernel_size": 3}))
    assert torch.equal(*(network(content).get_parameter("layer_1.weight") for _ in range(2)))
    assert isinstance(network(content).get_submodule("layer_1"), nn.Conv2d)


def test_weights_carry_over_in_training_mode_too() -> None:
    """One step of batch normalisation in training equals Keras's."""
    content = chain(
        [6, 6, 2], ("Conv2D", {"filters": 3, "kernel_size": 3}), ("BatchNormalization", {})
    )
    model = reference(content)
    random_weights(model)
    module = carried(model, read_graph(content, "x")).train()
    x = torch.randn(4, 2, 6, 6)
    found = module(x).detach()
    expected = model(x.movedim(1, -1), training=True).detach().movedim(-1, 1)
    assert torch.allclose(found, expected, atol=1e-5)
    mean = model.layers[2].moving_mean.value.detach()
    assert torch.allclose(module.state_dict()["layer_2.running_mean"], mean, atol=1e-6)
