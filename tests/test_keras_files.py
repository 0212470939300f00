"""What is wrong in a Keras network file is told with the place, whatever it is."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from trainer.describe import described
from trainer.errors import InputError
from trainer.networks.build import build, parameter_counts
from trainer.networks.description import parse_network, read_network
from trainer.networks.keras.graph import read_graph
from trainer.networks.keras.module import KerasNetwork

Change = Callable[[dict[str, Any]], object]
CASES = int(os.environ.get("RML_FUZZ", "1000"))


def layer(name: str, kind: str, *inputs: str, **config: Any) -> dict[str, Any]:
    return {
        "class_name": kind,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": [[[one, 0, 0, {}] for one in inputs]] if inputs else [],
    }


def network() -> dict[str, Any]:
    """A small U-Net with most kinds of options."""
    layers = [
        layer("input", "InputLayer", batch_input_shape=[None, 32, 32, 3]),
        layer("pad", "ZeroPadding2D", "input", padding=[[1, 1], [1, 1]]),
        layer("conv", "Conv2D", "pad", filters=4, kernel_size=[3, 3], activation="relu"),
        layer("bn", "BatchNormalization", "conv", axis=[3], momentum=0.99, epsilon=0.001),
        layer("pool", "MaxPooling2D", "bn", pool_size=[2, 2], padding="same"),
        layer("sep", "SeparableConv2D", "pool", filters=4, kernel_size=3, padding="same"),
        layer("drop", "Dropout", "sep", rate=0.5),
        layer("add", "Add", "drop", "pool"),
        layer("up", "UpSampling2D", "add", size=[2, 2], interpolation="bilinear"),
        layer("join", "Concatenate", "up", "bn", axis=3),
        layer("back", "Conv2DTranspose", "join", filters=2, kernel_size=3, padding="same"),
        layer("shape", "Reshape", "back", target_shape=[32, 32, 2]),
        layer("end", "Conv2D", "shape", filters=1, kernel_size=1, activation="sigmoid"),
    ]
    return {
        "class_name": "Functional",
        "config": {
            "name": "small",
            "layers": layers,
            "input_layers": [["input", 0, 0]],
            "output_layers": [["end", 0, 0]],
        },
        "keras_version": "2.8.0",
    }


def at(content: dict[str, Any], name: str) -> dict[str, Any]:
    """The layer of that name."""
    layers: list[dict[str, Any]] = content["config"]["layers"]
    return next(one for one in layers if one["name"] == name)


def options(name: str, **changes: Any) -> Change:
    return lambda content: at(content, name)["config"].update(changes)


def inputs(name: str, *others: Any) -> Change:
    nodes = [[[other, 0, 0, {}] for other in others]]
    return lambda content: at(content, name).update(inbound_nodes=nodes)


def whole(**changes: Any) -> Change:
    return lambda content: content["config"].update(changes)


WRONG: list[tuple[Change, str]] = [
    (options("conv", filter=3), "layer 'conv' (Conv2D): unknown option 'filter'; did you mean"),
    (options("conv", filters=0), "layer 'conv' (Conv2D), filters: found 0"),
    (options("conv", filters=True), "filters: found True"),
    (options("conv", filters=10**400), "filters: found a number of more than 30 digits"),
    (options("conv", filters=None), "filters: found nothing"),
    (options("conv", kernel_size=[3, 3, 3]), "kernel_size: found [3, 3, 3]; accepted: 2 whole"),
    (options("conv", kernel_size=[40, 3]), "leaves nothing of its input (34, 34, 3)"),
    (options("conv", padding="sane"), "padding: found 'sane'; did you mean 'same'?"),
    (options("conv", activation="relv"), "did you mean 'relu'?"),
    (options("conv", activation=["relu"]), "activation: found ['relu']"),
    (options("conv", groups=2), "2 groups for 3 channels and 4 filters"),
    (options("conv", strides=2, dilation_rate=2), "together with strides above 1"),
    (options("conv", data_format="channels_first"), "'channels_first' is not supported"),
    (options("conv", kernel_constraint={"class_name": "MaxNorm"}), "is not supported"),
    (options("conv", kernel_regularizer={"class_name": "L3"}), "found 'L3'"),
    (options("conv", kernel_initializer="glorot"), "kernel_initializer: found 'glorot'"),
    (options("conv", trainable="no"), "trainable: found 'no'"),
    (options("bn", axis=1), "axis: found 1; accepted: -1 or 3, the channels"),
    (options("bn", axis=[1, 3]), "axis: found [1, 3]"),
    (options("bn", momentum=float("nan")), "momentum: found nan"),
    (options("bn", renorm=True), "renorm: True is not supported"),
    (options("drop", rate=1.5), "rate: found 1.5; accepted: a number from 0 to 1"),
    (options("up", interpolation="bicubic"), "interpolation: found 'bicubic'"),
    (options("up", size=3), "layer 'join' (Concatenate): its inputs have the shapes (48, 48, 4)"),
    (options("join", axis=0), "axis: found 0"),
    (options("shape", target_shape=[31, 32, 2]), "2048 values, cannot become [31, 32, 2]"),
    (options("shape", target_shape=[-1, -1]), "-1 once"),
    (options("input", batch_input_shape=[None, 32, 32, None]), "batch, up to three sizes"),
    (options("input", batch_input_shape=[None, 32, 3]), "accepted: (height, width, channels)"),
    (options("pad", padding=[[1, -1], [1, 1]]), "padding: found -1"),
    (inputs("add", "drop"), "layer 'add' (Add): has 1 inputs; accepted: 2 or more"),
    (inputs("conv", "pad", "input"), "layer 'conv' (Conv2D): has 2 inputs; accepted: one"),
    (inputs("conv", "paid"), "its input 'paid' does not exist; did you mean 'pad'?"),
    (inputs("conv", "end"), "is part of a circle"),
    (inputs("conv", 7), "inbound_nodes: found [7, 0, 0, {}]"),
    (lambda c: at(c, "conv").update(inbound_nodes=[]), "has 0 inputs; accepted: at least one"),
    (lambda c: at(c, "conv").update(inbound_nodes=[[["pad", 1, 0]]]), "another use of 'pad'"),
    (lambda c: at(c, "conv").update(inbound_nodes=[[["pad", 0, 0]]] * 2), "is used 2 times"),
    (lambda c: at(c, "conv").update(name="bn"), "2 layers have the name 'bn'"),
    (lambda c: at(c, "conv").update(name=5), "layer 3 (Conv2D), name: found 5"),
    (lambda c: at(c, "conv").update(class_name="Conv2d"), "did you mean 'Conv2D'?"),
    (lambda c: at(c, "conv").update(class_name="Lambda"), "the class Lambda is not supported"),
    (lambda c: at(c, "conv").update(class_name="Functional"), "a network inside of a network"),
    (lambda c: at(c, "conv").update(inbound=[]), "unknown key 'inbound'"),
    (lambda c: at(c, "conv").update(config=[]), "config: found []"),
    (lambda c: c["config"]["layers"].append(5), "layer 14: found 5"),
    (lambda c: c["config"]["layers"].append(layer("x", "ReLU", "bn")), "'x' (ReLU): leads to no"),
    (whole(output_layers=[["bn", 0, 0], ["end", 0, 0]]), "output_layers: 2 of them"),
    (whole(output_layers=[["ent", 0, 0]]), "there is no layer 'ent'; did you mean 'end'?"),
    (whole(output_layers=[["bn", 0, 0]]), "layer 'end' (Conv2D): leads to nothing"),
    (whole(input_layers=[]), "input_layers: found []"),
    (whole(layers=[]), "layers: found []"),
    (whole(layers={"a": 1}), "layers: found {'a': 1}"),
    (whole(name=5), "name: found 5"),
    (lambda c: c.update(class_name="Functionel"), "did you mean 'Functional'?"),
    (lambda c: c.update(class_name=5), "class_name: found 5"),
    (lambda c: c.update(config=None), "config: found nothing"),
]  # fmt: skip


def test_the_network_itself_is_right() -> None:
    graph = read_graph(network(), "net.json")
    assert graph.output_shape == (32, 32, 1) and graph.operations == 13 + 2
    assert graph.in_channels == 3 and graph.divisor is None and graph.dimensions == 2


@pytest.mark.parametrize(("change", "told"), WRONG, ids=[told[:50] for _, told in WRONG])
def test_a_fault_is_told_with_its_place(change: Change, told: str) -> None:
    content = network()
    change(content)
    with pytest.raises(InputError) as caught:
        read_graph(content, "net.json")
    message = str(caught.value).replace("\n  ", "; ")
    assert message.startswith("net.json") and told in message, message


def test_a_second_input_is_refused() -> None:
    content = network()
    content["config"]["layers"] += [
        layer("other", "InputLayer", batch_input_shape=[None, 32, 32, 1])
    ]
    with pytest.raises(InputError, match="the InputLayers are input, other"):
        read_graph(content, "net.json")


def test_layers_are_sorted_rather_than_trusted() -> None:
    content = network()
    expected = read_graph(content, "net.json")
    random.Random(3).shuffle(content["config"]["layers"])
    found = read_graph(content, "net.json")
    assert found.parameters == expected.parameters
    assert (found.nodes[0].name, found.nodes[-1].name) == ("input", "end")
    place = {node.name: number for number, node in enumerate(found.nodes)}
    assert all(place[one] < place[node.name] for node in found.nodes for one in node.inputs)


def test_the_forms_of_keras_3() -> None:
    """`__keras_tensor__` in args, one output without an outer list, batch_shape, dtype policies."""

    def tensor(name: str) -> dict[str, Any]:
        config = {"shape": [None], "dtype": "float32", "keras_history": [name, 0, 0]}
        return {"class_name": "__keras_tensor__", "config": config}

    content = network()
    for one in content["config"]["layers"]:
        names = [reference[0] for node in one["inbound_nodes"] for reference in node]
        tensors = [tensor(name) for name in names]
        args = tensors if len(tensors) == 1 else [tensors]
        one["inbound_nodes"] = [{"args": args, "kwargs": {"mask": None}}] if names else []
        one.update(module="keras.layers", registered_name=None, build_config={"input_shape": []})
        policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}}
        one["config"]["dtype"] = policy
    first = content["config"]["layers"][0]["config"]
    first["batch_shape"] = first.pop("batch_input_shape")
    content["config"]["output_layers"] = ["end", 0, 0]
    content["config"]["input_layers"] = ["input", 0, 0]
    assert read_graph(content, "x").parameters == read_graph(network(), "x").parameters


def test_huge_networks_cost_nothing_before_they_are_built() -> None:
    content = network()
    for name in ("conv", "sep"):
        at(content, name)["config"]["filters"] = 10**9
    at(content, "add")["inbound_nodes"] = [[["drop", 0, 0, {}], ["sep", 0, 0, {}]]]
    assert read_graph(content, "net.json").parameters > 10**18


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"class_name": ' * 50_000, "[" + "9" * 5000 + "]"]
)
def test_deep_nesting_and_long_numbers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "net.json"
    for closed in (text, text + "]" * text.count("[")):
        path.write_text(closed)
        with pytest.raises(InputError, match=r"net\.json"):
            read_network(path)


def test_a_deeply_nested_call_is_refused() -> None:
    content = network()
    nested: Any = []
    for _ in range(500):
        nested = [nested]
    at(content, "conv")["inbound_nodes"] = [{"args": nested, "kwargs": {}}]
    with pytest.raises(InputError, match="'conv'"):
        read_graph(content, "net.json")


# ---- fuzzing ----

STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([10**9, 2**31, -(10**30), 10**400, 1e308, float("nan"), float("inf"), 0.5]),
    st.text(max_size=4),
    st.sampled_from(
        ["same", "valid", "conv", "end", "input", "relu", "softmax", "\x1b[2J", "Conv3D"]
    ),
    st.lists(st.integers(-2, 5), max_size=4),
    st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["class_name", "config", "name"]), st.text(max_size=3)),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values inside of parsed JSON."""
    pairs: Any = []
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    return [found for k, v in pairs for found in [(*path, k), *places(v, (*path, k))]]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """The network with one to four values replaced, removed, doubled or moved."""
    content: Any = network()
    for _ in range(draw(st.integers(1, 4))):
        paths = places(content)
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        key = path[-1]
        match draw(st.sampled_from(["replace", "remove", "rename", "copy"])):
            case "replace":
                parent[key] = draw(STRANGE)
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=5))] = parent.pop(key)
            case "copy":
                source = content
                for part in draw(st.sampled_from(paths)):
                    inside = isinstance(source, dict) or (
                        isinstance(source, list) and isinstance(part, int) and part < len(source)
                    )
                    if not inside or (isinstance(source, dict) and part not in source):
                        break
                    source = source[part]
                parent[key] = copy.deepcopy(source)
    return content


@pytest.mark.slow
@settings(
    max_examples=CASES,
    deadline=None,
    derandomize="RML_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(mutated())
def test_a_broken_file_is_an_error_with_a_place_or_a_network(content: Any) -> None:
    """And what is accepted can be counted and described without being built; built, it computes
    what its shapes say."""
    if not isinstance(content, list) and "class_name" not in content:
        return
    try:
        graph = parse_network(content, "net.json").graph
    except InputError as error:
        assert error.where.startswith("net.json") and error.found
        assert "\x1b" not in str(error)
        return
    assert graph.parameters >= 0 and graph.operations >= 2
    graph.fits((64,) * graph.dimensions)
    json.dumps([graph.name, graph.input_shape, graph.output_shape, graph.divisor])
    size = [side or 16 for side in graph.input_shape[:-1]]
    small = graph.parameters < 10**6 and math.prod(size) * graph.in_channels < 10**6
    if small and graph.fits(size) and graph.activation_memory_bytes(size) < 10**8:
        shapes = graph.shapes(size)
        out = KerasNetwork(graph).eval()(torch.zeros(1, graph.in_channels, *size))
        *sides, channels = shapes[graph.nodes[-1].name]
        expected = (1, *sides, channels) if graph.literal_output else (1, channels, *sides)
        assert tuple(out.shape) == expected


# ---- --describe ----


def test_describe_at_a_size_that_the_network_cannot_take(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps(network()))
    with pytest.raises(InputError, match=r"'shape' \(Reshape\)(.|\n)*accepted: 32x32"):
        described(str(tmp_path / "net.json"), "64x48")


def test_describe_of_a_network_of_any_size(tmp_path: Path) -> None:
    content = network()
    at(content, "end")["inbound_nodes"] = [[["back", 0, 0, {}]]]
    content["config"]["layers"] = [
        one for one in content["config"]["layers"] if one["name"] != "shape"
    ]
    path = tmp_path / "net.json"
    path.write_text(json.dumps(content))
    pixels = 64 * 48
    facts = described(str(path), "64x48")
    assert facts == {
        "name": "small",
        "input_shape": [3, 48, 64],
        "output_shape": [1, 48, 64],
        "parameters": 9 * 3 * 4 + 4 + 8 + 9 * 4 + 4 * 4 + 4 + 9 * 8 * 2 + 2 + 2 + 1,
        "trainable_parameters": facts["parameters"],
        "operations": 12 + 2,
        "divisor": 2,
        "weights": None,
        "multiply_adds": pixels * (108 + (36 + 16) // 4 + 144 + 2),
        "activation_memory_bytes": 4
        * (pixels * (3 + 4 + 4 + 1 + 1 + 1 + 1 + 4 + 8 + 2 + 1) + 66 * 50 * 3),
    }


def test_describe_of_a_keras_file_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps(network()))
    program = (
        "import sys; from trainer.__main__ import main; "
        "code = main(['--describe', sys.argv[1], '--at', '32x32']); "
        "sys.exit(code or ('torch' in sys.modules) * 9)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "net.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["operations"] == 15


@pytest.mark.parametrize("size", ["64", "64x", "0x64", "64x64x64", "axb", "9999999999x1"])
def test_sizes_that_are_none(tmp_path: Path, size: str) -> None:
    (tmp_path / "net.json").write_text(json.dumps(network()))
    with pytest.raises(InputError, match="--at"):
        described(str(tmp_path / "net.json"), size)


@pytest.mark.slow
def test_describe_of_other_networks_counts_without_weights(tmp_path: Path) -> None:
    """Closed form: one level of the small U-Net."""
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"network": "unet", "width": 2, "depth": 1, "in_channels": 1}))
    facts = described(str(path), "8x8")
    full, half = 64, 16
    down = full * 9 * (1 * 2 + 2 * 2) + half * 9 * (2 * 4 + 4 * 4)
    up = half * 4 * 4 * 2 + full * 9 * (4 * 2 + 2 * 2) + full * 2
    assert facts["multiply_adds"] == down + up
    assert facts["input_shape"] == [1, 8, 8] and facts["operations"] is None


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0"])  # the second not on the meta device
def test_describe_of_networks_of_smp(tmp_path: Path, encoder: str) -> None:
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"network": "smp.Unet", "encoder": encoder}))
    facts = described(str(path), "64x32")
    assert facts["parameters"] == parameter_counts(build(read_network(path)))[0]
    assert facts["output_shape"] == [1, 32, 64]
    assert facts["multiply_adds"] > 10**7 and facts["activation_memory_bytes"] > 10**6


@pytest.mark.slow
def test_describe_at_a_size_that_a_library_refuses(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    path.write_text(json.dumps({"network": "smp.PAN", "encoder": "resnet18"}))
    with pytest.raises(InputError, match="PAN resnet18 cannot take 32x64"):
        described(str(path), "32x64")
