"""Weights from Keras's HDF5 files, and what a run says of those that do not fit."""

from __future__ import annotations

import copy
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import SIDE, Ended
from tests.keras_reference import (
    chain,
    channels_last,
    functional,
    layer,
    random_weights,
    reference,
)
from trainer.checkpoint import load_checkpoint
from trainer.errors import InputError
from trainer.networks.keras.graph import read_graph
from trainer.networks.keras.module import KerasNetwork
from trainer.networks.keras.weights_h5 import keras_array, read_h5, state_of, torch_array

Build = Callable[..., dict[str, Any]]
Train = Callable[..., Ended]


def everything() -> dict[str, Any]:
    """Every kind of layer that has weights, in two dimensions."""
    return functional(
        [16, 16, 3],
        layer("conv1/conv", "Conv2D", "input", filters=4, kernel_size=3, padding="same"),
        layer("conv1/bn", "BatchNormalization", "conv1/conv", scale=False),
        layer("deep", "DepthwiseConv2D", "conv1/bn", kernel_size=3, depth_multiplier=2),
        layer("sep", "SeparableConv2D", "deep", filters=6, kernel_size=3),
        layer("bare", "BatchNormalization", "sep", scale=False, center=False),
        layer("norm", "LayerNormalization", "bare"),
        layer("up", "Conv2DTranspose", "norm", filters=5, kernel_size=4, strides=2),
        layer("flat", "Flatten", "up"),
        layer("out", "Dense", "flat", units=7),
    )


def volumes() -> dict[str, Any]:
    return chain(
        [6, 5, 4, 2],
        ("Conv3D", {"filters": 3, "kernel_size": [1, 2, 3]}),
        ("Conv3DTranspose", {"filters": 4, "kernel_size": [2, 1, 3]}),
        ("BatchNormalization", {}),
    )


def signals() -> dict[str, Any]:
    return chain(
        [9, 2],
        ("Conv1D", {"filters": 3, "kernel_size": 2}),
        ("SeparableConv1D", {"filters": 4, "kernel_size": 2}),
        ("Conv1DTranspose", {"filters": 4, "kernel_size": 3}),
    )


def write_keras_2(path: Path, model: Any, whole: bool, colon: str = ":0") -> None:
    """The layout that Keras 2 writes, from the Keras model (whose names have | for /)."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        if whole:
            file.create_group("optimizer_weights").attrs["weight_names"] = [b"Adam/iter:0"]
        names = [one.name.replace("|", "/") for one in model.layers]
        root.attrs["layer_names"] = [name.encode() for name in names]
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.8.0"
        for one, name in zip(model.layers, names, strict=True):
            group = root.require_group(name)
            depthwise = "Depthwise" in type(one).__name__
            told = []
            for variable in one.weights:
                short = variable.name
                short = "depthwise_kernel" if depthwise and short == "kernel" else short
                told.append(f"{name}/{short}{colon}")
                group[told[-1]] = variable.value.detach().numpy()
            group.attrs["weight_names"] = np.array([text.encode() for text in told], dtype="S")


def compared(content: dict[str, Any], path: Path, model: Any) -> None:
    """A network that is filled from the file computes what the model does."""
    graph = read_graph(content, "x")
    network = KerasNetwork(graph)
    state = state_of(graph, read_h5(path)["keras"])
    missing = network.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    lacking = {key for key in missing.missing_keys if not key.endswith("num_batches_tracked")}
    assert lacking == {name for _, name, p in graph.named_parameters() if not p.in_file}
    x = torch.rand(2, *[int(side or 1) for side in graph.input_shape])
    expected = model(x, training=False).detach().numpy()
    found = channels_last(graph, network.eval()(x.movedim(-1, 1)))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("content", [everything, volumes, signals])
@pytest.mark.parametrize("whole", [True, False])
def test_files_of_keras_2(tmp_path: Path, content: Any, whole: bool) -> None:
    model = reference(content())
    random_weights(model)
    write_keras_2(tmp_path / "w.h5", model, whole)
    compared(content(), tmp_path / "w.h5", model)


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5"])
@pytest.mark.parametrize("content", [volumes, signals])
def test_files_that_keras_3_writes(tmp_path: Path, content: Any, name: str) -> None:
    model = reference(content())
    random_weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (model.save_weights if ".weights" in name else model.save)(tmp_path / name)
    compared(content(), tmp_path / name, model)


def test_names_may_be_texts_and_lists_may_be_cut(tmp_path: Path) -> None:
    model = reference(volumes())
    random_weights(model)
    write_keras_2(tmp_path / "w.h5", model, whole=False)
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        names = [str(name) for name in file.attrs["layer_names"]]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:2], names[2:]
    compared(volumes(), tmp_path / "w.h5", model)


def test_the_network_comes_with_a_whole_model(tmp_path: Path) -> None:
    model = reference(volumes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "w.h5")
    network = read_h5(tmp_path / "w.h5")["network"]
    graph = read_graph(json.loads(network["keras"]), "x")
    assert graph.parameters == read_graph(volumes(), "x").parameters


def test_arrays_go_there_and_back() -> None:
    for content in (everything(), volumes(), signals()):
        for _, _, parameter in read_graph(content, "x").named_parameters():
            array = np.random.default_rng(0).random(parameter.keras_shape)
            turned = torch_array(parameter, array)
            assert turned.shape == parameter.shape
            assert np.array_equal(keras_array(parameter, turned), array)


@pytest.mark.parametrize("make", ["text", "empty", "foreign", "lacking", "words", "unnamed"])
def test_files_that_are_no_weights_of_keras(tmp_path: Path, make: str) -> None:
    path = tmp_path / "w.h5"
    if make == "text":
        path.write_text("no HDF5")
    else:
        with h5py.File(path, "w") as file:
            if make == "foreign":
                file["images"] = np.zeros(3)
            elif make == "lacking":
                file.attrs["layer_names"] = ["conv"]
            elif make == "words":
                file.attrs["layer_names"] = ["conv"]
                file.create_group("conv").attrs["weight_names"] = ["kernel:0"]
                file["conv/kernel:0"] = "a text"
            elif make == "unnamed":
                file["layers/conv2d/vars/0"] = np.zeros(3)
    with pytest.raises(InputError, match=r"w\.h5") as caught:
        load_checkpoint(path)
    assert "Keras" in str(caught.value)


def test_an_archive_of_libtorch_is_recognised(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "jit.pt"))
    with zipfile.ZipFile(tmp_path / "cpp.pt", "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"archive/{name}", b"3\n")
    for name in ("jit.pt", "cpp.pt"):
        with pytest.raises(InputError, match="archive of libtorch") as caught:
            load_checkpoint(tmp_path / name)
        assert "give the .h5" in str(caught.value)


# ---- in a run ----


def segmenter(**first: Any) -> dict[str, Any]:
    """A network for the tests' images; its second batch normalisation has no gamma in Keras."""
    return functional(
        [SIDE, SIDE, 3],
        layer("conv", "Conv2D", "input", filters=8, kernel_size=3, padding="same", **first),
        layer("bn", "BatchNormalization", "conv"),
        layer("relu", "Activation", "bn", activation="relu"),
        layer("bn_data", "BatchNormalization", "relu", scale=False),
        layer("dense_1", "Conv2D", "bn_data", filters=1, kernel_size=1, activation="sigmoid"),
    )


def saved(path: Path, content: dict[str, Any]) -> Any:
    model = reference(content)
    random_weights(model)
    write_keras_2(path, model, whole=True)
    return model


def log_lines(ended: Ended) -> list[str]:
    return [line for line in ended.out.splitlines() if "Skipping" in line or "Loading" in line]


def started_from(
    train: Train, build: Build, path: Path, content: Any, name: str = "run", **changes: Any
) -> Ended:
    layers = path.parent / "layers.json"
    layers.write_text(json.dumps(content))
    return train(build(layers=str(layers), checkpoints={"load": str(path)}, **changes), name)


def test_a_training_starts_from_an_h5_file(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    path = tmp_path / "w.h5"
    saved(path, segmenter())
    ended = started_from(train, configuration, path, segmenter())
    assert ended.code == 0, ended.err
    assert [line.split("] ")[-1] for line in log_lines(ended)] == [
        f"Loading model checkpoint from HDF5 file: {path}",
        "   Skipping parameter bn_data.weight (bn_data/gamma:0): not found in model",
    ]
    state = load_checkpoint(ended.folder / "checkpoints/best.pt")
    assert json.loads(state["network"]["keras"]) == segmenter()
    assert torch.is_tensor(state["state"]["dense_1.weight"])


def test_missing_layers_and_other_shapes_are_named(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    path = tmp_path / "w.h5"
    other = segmenter(strides=1)
    other["config"]["layers"][5]["name"] = other["config"]["layers"][5]["config"]["name"] = "old"
    other["config"]["output_layers"] = [["old", 0, 0]]
    saved(path, other)
    content = segmenter()
    wider = copy.deepcopy(content)
    wider["config"]["layers"][1]["config"]["kernel_size"] = 5
    ended = started_from(train, configuration, path, wider, "wider")
    assert ended.code == 0, ended.err
    assert re.search(r"WARNING: .*w\.h5 fills \d\.\d% of the network's parameters", ended.out)
    kernel = "conv.weight (conv/kernel:0): [8, 3, 3, 3] in the file, [8, 3, 5, 5] in the network"
    assert f"   Skipping parameter {kernel}" in ended.out
    ended = started_from(train, configuration, path, content)
    assert ended.code == 0, ended.err
    assert [line.split("] ")[-1] for line in log_lines(ended)][1:] == [
        "   Skipping parameter bn_data.weight (bn_data/gamma:0): not found in model",
        "   Skipping layer dense_1: not found in model",
        "   Skipping parameter dense_1.weight (dense_1/kernel:0): not found in model",
        "   Skipping parameter dense_1.bias (dense_1/bias:0): not found in model",
    ]


def test_a_file_whose_kernel_lies_the_other_way_does_not_fit() -> None:
    graph = read_graph(chain([4], ("Dense", {"units": 6, "use_bias": False})), "x")
    state = state_of(graph, {"layer_1": {"kernel": np.zeros((6, 4), np.float32)}})
    assert state["layer_1.weight"].shape == (4, 6) != graph.nodes[1].layer.parameters[0].shape


def test_prediction_needs_all_but_what_keras_does_not_write(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    path = tmp_path / "w.h5"
    saved(path, segmenter())
    alone = {
        "data": {"input_path": None, "target_path": None, "test_output_path": "out/"},
        "optimizer": None,
    }
    ended = started_from(train, configuration, path, segmenter(), **alone)
    assert ended.code == 0, ended.err
    with h5py.File(ended.folder / "out/output_1.h5") as file:
        assert all(image.shape == (1, SIDE, SIDE) for image in file.values())
    with h5py.File(path, "r+") as file:
        del file["model_weights/bn/bn/gamma:0"]
        file["model_weights/bn"].attrs["weight_names"] = [
            b"bn/beta:0", b"bn/moving_mean:0", b"bn/moving_variance:0"
        ]  # fmt: skip
    ended = started_from(train, configuration, path, segmenter(), "lacking", **alone)
    assert ended.code == 2 and "bn.weight (bn/gamma:0): not found in model" in ended.err


def test_our_own_checkpoint_of_a_larger_network_fills_what_it_has(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    """A feature extractor with a decoder into a classifier: the dense_1 lines, and no others."""
    source = segmenter()
    layers = source["config"]["layers"]
    layers[-1]["name"] = layers[-1]["config"]["name"] = "decoder"
    source["config"]["output_layers"] = [["decoder", 0, 0]]
    (tmp_path / "layers.json").write_text(json.dumps(source))
    first = train(configuration(layers=str(tmp_path / "layers.json")), "first")
    assert first.code == 0, first.err
    best = first.folder / "checkpoints/best.pt"
    target = tmp_path / "target.json"
    target.write_text(json.dumps(segmenter()))
    ended = train(configuration(layers=str(target), checkpoints={"load": str(best)}), "second")
    assert ended.code == 0, ended.err
    assert [line.split("] ")[-1] for line in log_lines(ended)] == [
        f"Loading model checkpoint from file: {best}",
        "   Skipping layer dense_1: not found in model",
        "   Skipping parameter dense_1.weight: not found in model",
        "   Skipping parameter dense_1.bias: not found in model",
    ]


def test_weights_of_keras_for_another_kind_of_network(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    saved(tmp_path / "w.h5", segmenter())
    ended = train(configuration(checkpoints={"load": str(tmp_path / "w.h5")}))
    assert ended.code == 2 and "has weights of a Keras network" in ended.err


def test_frozen_layers_are_the_same_after_a_training(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    """Weights and running statistics, bit by bit, of the layers with `trainable` false."""
    path = tmp_path / "w.h5"
    content = segmenter()
    for one in content["config"]["layers"][1:3]:  # conv and bn
        one["config"]["trainable"] = False
    saved(path, content)
    ended = started_from(train, configuration, path, content, num_epochs=2)
    assert ended.code == 0, ended.err
    after = load_checkpoint(ended.folder / "checkpoints/best.pt")["state"]
    before = state_of(read_graph(content, "x"), read_h5(path)["keras"])
    same = {name for name, value in before.items() if torch.equal(after[name], value)}
    frozen = {name for name in before if name.split(".")[0] in ("conv", "bn")}
    assert same == frozen and len(frozen) == 2 + 4


def test_a_whole_model_of_keras_needs_no_network_file(
    train: Train, configuration: Build, tmp_path: Path
) -> None:
    model = reference(segmenter())
    random_weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "w.h5")
    given = configuration(
        layers=None,
        optimizer=None,
        checkpoints={"load": str(tmp_path / "w.h5")},
        data={"input_path": None, "target_path": None, "test_output_path": "out/"},
    )
    ended = train(given)
    assert ended.code == 0, ended.err
    with h5py.File(ended.folder / "out/output_1.h5") as file:
        assert all(image.shape == (1, SIDE, SIDE) for image in file.values())
