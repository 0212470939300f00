"""The published tutorials at a small size: the smoke test, labels from folders, frozen layers,
weights from another network, inpainting, and what the published scripts read of it all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.test_trainer import EVAL_LINE, STAMP, TRAIN_LINE, lines

pytestmark = pytest.mark.slow
Python = Callable[..., Any]

SMOKE_LAYERS: list[dict[str, Any]] = [
    {
        "class_name": "Conv2D",
        "config": {
            "name": "conv1",
            "batch_input_shape": [None, 28, 28, 1],
            "filters": 10,
            "kernel_size": [5, 5],
        },
    },
    {"class_name": "MaxPooling2D", "config": {"name": "pool1", "pool_size": [2, 2]}},
    {"class_name": "Activation", "config": {"name": "relu1", "activation": "relu"}},
    {"class_name": "Conv2D", "config": {"name": "conv2", "filters": 20, "kernel_size": [5, 5]}},
    {"class_name": "SpatialDropout2D", "config": {"name": "drop", "rate": 0}},
    {"class_name": "MaxPooling2D", "config": {"name": "pool2", "pool_size": [2, 2]}},
    {"class_name": "Activation", "config": {"name": "relu2", "activation": "relu"}},
    {"class_name": "Flatten", "config": {"name": "flat"}},
    {"class_name": "Dense", "config": {"name": "fc1", "units": 50}},
    {"class_name": "Activation", "config": {"name": "relu3", "activation": "relu"}},
    {"class_name": "Dropout", "config": {"name": "dropout", "rate": 0}},
    {"class_name": "Dense", "config": {"name": "fc2", "units": 2}},
    {"class_name": "Activation", "config": {"name": "end", "activation": "log_softmax"}},
]
"""The small classifier of the smoke test, as its configuration has it inline."""


def digit(number: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A zero (a ring) or a one (a stroke) of 28x28 pixels, anywhere near the middle."""
    y, x = np.mgrid[:28, :28]
    cy, cx = 13.5 + rng.uniform(-2, 2, 2)
    if number == 0:
        radius = np.hypot((y - cy) / rng.uniform(7, 9), (x - cx) / rng.uniform(4.5, 7))
        ink = np.exp(-(((radius - 1) / 0.25) ** 2))
    else:
        lean = rng.uniform(-0.35, 0.35)
        ink = np.exp(-(((x - cx - lean * (y - cy)) / 1.6) ** 2)) * (abs(y - cy) < 9)
    noisy = 255 * ink + rng.normal(0, 8, ink.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/mnist_jpg/{training,testing}/{0,1}: 200 and 20 images."""
    folder = tmp_path_factory.mktemp("smoke")
    rng = np.random.default_rng(5)
    for part, count in (("training", 100), ("testing", 10)):
        for number in (0, 1):
            here = folder / "data/mnist_jpg" / part / str(number)
            here.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(digit(number, rng)).save(here / f"{index}.jpg")
    return folder


def smoke() -> dict[str, Any]:
    return {
        "outfile": "out_dnn_mnist_sgd.txt",
        "num_epochs": 10,
        "data": {
            "input_type": "images",
            "input_path": "./data/mnist_jpg/training/",
            "test_input_path": "./data/mnist_jpg/testing/",
            "target_type": "labels",
            "batch_size": 16,
            "training_tag": "training",
            "test_tag": "testing",
            "grayscale": True,
            "transforms": [{"resize": [28, 28]}],
        },
        "optimizer": {"type": "SGD", "learning_rate": 0.01, "momentum": 0.5},
        "loss": {"function": "NLL"},
        "layers": SMOKE_LAYERS,
    }


def go(python: Python, folder: Path, content: dict[str, Any], name: str = "c.json") -> str:
    """One run of `python -m trainer --config=NAME` in a folder; what it printed."""
    (folder / name).write_text(json.dumps({"neural_network": content}))
    done = python("-m", "trainer", f"--config={name}", "--device", "cpu", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return str(done.stdout)


@pytest.fixture(scope="module")
def smoked(python: Python, digits: Path) -> str:
    """What the smoke test prints."""
    return go(python, digits, smoke())


def test_the_smoke_test_learns_its_digits(smoked: str, digits: Path) -> None:
    files = [digits / f"out_dnn_mnist_sgd_{part}.txt" for part in ("train", "test")]
    train, test = (file.read_text().splitlines() for file in files)
    assert len(train) == 10 * 13 and len(test) == 10
    epoch, loss, accuracy = re.findall(r"[0-9]*\.?[0-9]+", test[-1])
    assert (int(epoch), float(accuracy)) == (10, 1.0) and float(loss) < 0.05


def test_the_smoke_test_prints_what_its_readers_look_for(smoked: str) -> None:
    assert "RocketML : 1 MPI process\n" in smoked
    assert re.search(r"Total parameters +: 21432\n", smoked)
    assert re.search(r"Num of operations +: 14\n", smoked)
    assert re.search(r"Number of class labels: 2\n", smoked)
    assert smoked.rstrip().endswith("All done (return value = 0).")
    told = lines(smoked, "Train Epoch")
    assert len(told) == 130 and all(TRAIN_LINE.search(line) for line in told)
    evaluated = lines(smoked, "Eval  Epoch")
    assert evaluated
    for line in evaluated:
        match = EVAL_LINE.search(line)
        assert match and match[6] is not None, line
    assert all(re.match(STAMP, line) for line in smoked.splitlines() if line)


def test_predictions_are_groups_of_classes(python: Python, digits: Path) -> None:
    content = smoke() | {"num_epochs": 3, "checkpoints": {"save": "model/", "interval": 2}}
    del content["outfile"]
    go(python, digits, content, "train.json")
    assert sorted(p.name for p in (digits / "model").glob("model_*")) == ["model_checkpoint_2.pt"]
    data = {
        "input_type": "images",
        "test_input_path": "./data/mnist_jpg/testing/",
        "test_output_path": "./predictions/",
        "grayscale": True,
    }
    inference = {"checkpoints": {"load": "./model/model_checkpoint_2.pt"}, "data": data}
    printed = go(python, digits, inference, "test.json")
    assert "Accuracy" not in printed and "Loss" not in "".join(lines(printed, "Eval"))
    found: dict[str, list[int]] = {}
    with h5py.File(digits / "predictions/output_1.h5") as file:
        for name, group in file.items():  # as the published script walks it
            for image, scores in group.items():
                assert image.endswith(".jpg") and scores.shape == (2,)
                assert scores.dtype == np.float32
                assert np.exp(scores[:]).sum() == pytest.approx(1, abs=1e-5)
                found.setdefault(name, []).append(int(np.argmax(scores[:])))
    assert {name: len(of) for name, of in found.items()} == {"0": 10, "1": 10}
    right = np.mean([guess == int(name) for name, of in found.items() for guess in of])
    assert right > 0.9


def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, **config}}


def encoder(trainable: bool = True) -> list[dict[str, Any]]:
    """Two convolutions with batch normalisation, 16x16 RGB -> 8x8x8."""
    first = {"batch_input_shape": [None, 16, 16, 3], "filters": 8, "kernel_size": [3, 3]}
    normal = {"momentum": 0.9, "epsilon": 1e-3, "trainable": trainable}
    return [
        layer("Conv2D", "conv_1", **first, padding="same", use_bias=False, trainable=trainable),
        layer("BatchNormalization", "bn_1", **normal),
        layer("Activation", "relu_1", activation="relu"),
        layer("MaxPooling2D", "pool_1", pool_size=[2, 2]),
    ]


def decoder() -> list[dict[str, Any]]:
    up = {"filters": 3, "kernel_size": [4, 4], "strides": [2, 2], "padding": "same"}
    return [layer("Conv2DTranspose", "up_1", **up, activation="sigmoid")]


def head(name: str) -> list[dict[str, Any]]:
    return [
        layer("GlobalAveragePooling2D", "pool_2"),
        layer("Dense", name, units=2, activation="log_softmax"),
    ]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """natural/{training,testing}/{blue,red}: 24 and 8 coloured squares on grey."""
    folder = tmp_path_factory.mktemp("natural")
    rng = np.random.default_rng(8)
    for part, count in (("training", 12), ("testing", 4)):
        for name, channel in (("blue", 2), ("red", 0)):
            here = folder / "natural" / part / name
            here.mkdir(parents=True)
            for index in range(count):
                image = rng.integers(60, 120, (16, 16, 3)).astype(np.uint8)
                y, x = rng.integers(0, 8, 2)
                image[y : y + 8, x : x + 8, channel] = 250
                Image.fromarray(image).save(here / f"{name}_{index}.png")
    return folder


def classifier(**more: Any) -> dict[str, Any]:
    data = {
        "input_type": "images",
        "target_type": "labels",
        "input_path": "./natural/training/",
        "test_input_path": "./natural/testing",
        "batch_size": 8,
        "preload": True,
        "transforms": [{"resize": [16, 16]}],
    }
    return {
        "num_epochs": 2,
        "data": data,
        "optimizer": {"type": "Adam", "learning_rate": 0.01},
        "loss": {"function": "NLL"},
        **more,
    }


def test_an_inpainting_network_gives_its_encoder_to_a_classifier(
    python: Python, colours: Path
) -> None:
    """Published: first the patches are restored, then the classes are learned from there."""
    data = {
        "type": "images",
        "input_path": "./natural/training/",
        "target_path": "./natural/training/",
        "batch_size": 8,
        "preload": True,
        "transforms": [{"resize": [16, 16]}, {"random_patches": {"number": 3, "size": 4}}],
    }
    first = {
        "num_epochs": 2,
        "layers": encoder() + decoder(),
        "checkpoints": {"save": "./features/", "interval": 2},
        "data": data,
        "optimizer": {"type": "Adam", "learning_rate": 0.001},
        "loss": {"function": "BCE"},
    }
    printed = go(python, colours, first)
    assert "Eval" not in printed  # there is no test set
    second = classifier(
        layers=encoder() + head("dense_1"),
        checkpoints={"load": "./features/model_checkpoint_2.pt"},
    )
    printed = go(python, colours, second)
    assert [re.sub(STAMP, "", line) for line in lines(printed, "Skipping")] == [
        "   Skipping layer dense_1: not found in model",
        "   Skipping parameter dense_1.weight: not found in model",
        "   Skipping parameter dense_1.bias: not found in model",
    ]
    assert "Loading model checkpoint from file: ./features/model_checkpoint_2.pt" in printed


def test_frozen_layers_keep_weights_and_statistics(python: Python, colours: Path) -> None:
    layers = encoder(trainable=False) + head("dense_1")
    go(python, colours, classifier(layers=layers, checkpoints={"save": "frozen/"}))
    one, two = (
        torch.load(colours / f"frozen/model_checkpoint_{n}.pt", weights_only=True)["state"]
        for n in (1, 2)
    )
    frozen = [name for name in one if name.startswith(("conv_1", "bn_1"))]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(one[name], two[name]) for name in frozen)
    assert not torch.equal(one["dense_1.weight"], two["dense_1.weight"])


@pytest.mark.parametrize("name", ["LARS", "LAMB", "Hessian"])
def test_the_rarer_optimizers_reduce_the_loss(python: Python, digits: Path, name: str) -> None:
    content = smoke() | {"num_epochs": 2}
    rates = {"LARS": 20.0, "LAMB": 0.01, "Hessian": 0.01}
    content["optimizer"] = {"type": name, "learning_rate": rates[name], "max_iterations": 4}
    printed = go(python, digits, content, "rare.json")
    losses = [float(m[5]) for line in lines(printed, "Train") if (m := TRAIN_LINE.search(line))]
    assert np.mean(losses[-13:]) < 0.8 * losses[0]


def test_a_class_that_a_part_lacks_is_told(python: Python, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data/mnist_jpg/testing/1")
    printed = go(python, tmp_path, smoke() | {"num_epochs": 1})
    assert [line for line in printed.splitlines() if "no test image has the class '1'" in line]


def test_more_classes_than_outputs_are_told(python: Python, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "data", tmp_path / "data")
    part = tmp_path / "data/mnist_jpg/training"
    shutil.copytree(part / "1", part / "2")
    (tmp_path / "c.json").write_text(json.dumps({"neural_network": smoke()}))
    done = python("-m", "trainer", "--config=c.json", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "2 outputs, but there are 3 classes: 0, 1, 2" in done.stderr


def masks_of(folder: Path, foreground: int, border: int | None = None) -> None:
    """pairs/{inputs,targets}: squares and their masks; `border` is the value around them."""
    rng = np.random.default_rng(2)
    for name in ("inputs", "targets"):
        (folder / "pairs" / name).mkdir(parents=True)
    for index in range(8):
        image, mask = rng.integers(0, 60, (16, 16)), np.zeros((16, 16))
        y, x = rng.integers(2, 8, 2)
        if border is not None:
            mask[y - 1 : y + 7, x - 1 : x + 7] = border
        image[y : y + 6, x : x + 6] += 180
        mask[y : y + 6, x : x + 6] = foreground
        Image.fromarray(image.astype(np.uint8)).save(folder / f"pairs/inputs/{index}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"pairs/targets/{index}.png")


def two_classes(**loss: Any) -> dict[str, Any]:
    first = {"batch_input_shape": [None, None, None, 1], "filters": 4, "kernel_size": 3}
    return {
        "num_epochs": 25,
        "outfile": "out.txt",
        "layers": [
            layer("Conv2D", "a", **first, padding="same", activation="relu"),
            layer("Conv2D", "b", filters=2, kernel_size=1, activation="softmax"),
        ],
        "data": {
            "type": "images",
            "input_path": "pairs/inputs",
            "target_path": "pairs/targets",
            "test_input_path": "pairs/inputs",
            "test_target_path": "pairs/targets",
            "batch_size": 4,
            "target_grayscale": True,
            "target_is_mask": True,
            "transforms": [{"resize": [16, 16]}],
        },
        "optimizer": {"type": "Adam", "learning_rate": 0.05},
        "loss": {"source": "softmax", **loss},
    }


@pytest.mark.parametrize("foreground", [1, 255])
def test_two_outputs_for_two_classes(python: Python, tmp_path: Path, foreground: int) -> None:
    masks_of(tmp_path, foreground)
    printed = go(python, tmp_path, two_classes(function="NLL"))
    last = (tmp_path / "out_test.txt").read_text().splitlines()[-1]
    assert float(last.split("Accuracy: ")[1]) > 0.95, printed


def test_an_ignored_value_counts_neither_in_the_loss_nor_in_the_scores(
    python: Python, tmp_path: Path
) -> None:
    masks_of(tmp_path, foreground=1, border=255)
    go(python, tmp_path, two_classes(function="NLL", ignore_index=255))
    last = (tmp_path / "out_test.txt").read_text().splitlines()[-1]
    assert float(last.split("Accuracy: ")[1]) == 1.0
    (tmp_path / "c.json").write_text(json.dumps({"neural_network": two_classes(function="NLL")}))
    mask = np.array(Image.open(tmp_path / "pairs/targets/0.png"))
    Image.fromarray(np.where(mask == 255, 7, mask)).save(tmp_path / "pairs/targets/0.png")
    done = python("-m", "trainer", "--config=c.json", cwd=tmp_path)
    assert done.returncode == 2 and "holds what no class names: 7 (" in done.stderr


def test_the_score_of_a_volume_does_not_depend_on_its_padding(
    python: Python, tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    truth = (rng.random((10, 13, 17)) > 0.3).astype(np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = truth + rng.normal(0, 0.4, truth.shape)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["y"] = truth
    first = {"batch_input_shape": [None, None, None, None, 1], "kernel_size": 1}
    layers = [layer("Conv3D", "a", **first, filters=2, activation="softmax")]
    both = {"type": "hdf5", "test_input_path": "x.h5", "test_target_path": "y.h5"}
    paths = {**both, "input_path": "x.h5", "target_path": "y.h5"}
    whole = {"name": "whole", "sizes": [10, 13, 17]}
    training = {
        "layers": layers,
        "checkpoints": {"save": "model"},
        "data": {**paths, "slicers": [whole]},
        "optimizer": {"type": "Adam", "learning_rate": 0.1},
        "loss": {"function": "NLL"},
    }
    go(python, tmp_path, training)
    told = set()
    for slicer in (
        whole,
        {"sizes": [4, 6, 8]},
        {"sizes": [5, 13, 17], "padding": [1, 2, 0]},
        {"sizes": [10, 13, 17], "padded_sizes": [13, 16, 17]},
    ):
        content = {
            "checkpoints": {"load": "model/model_checkpoint_1.pt"},
            "data": {**both, "slicers": [slicer], "test_batch_size": 2},
            "loss": {"function": "NLL"},
        }
        line = lines(go(python, tmp_path, content), "Eval")[-1]
        match = EVAL_LINE.search(line)
        assert match
        told.add(match[6])
    assert len(told) == 1


@pytest.mark.parametrize(
    ("normalize", "of"),
    [({"std": 0.003921568}, [0, 1]), ({"mean": 1 / 255, "std": 1 / 255}, [1, 2]),
     ({"std": 50 / 255}, [0, 50])],
)  # fmt: skip
def test_normalised_masks_are_class_numbers_at_both_sizes(
    python: Python, tmp_path: Path, normalize: dict[str, float], of: list[int]
) -> None:
    """As the published pets have them; images of twice the network's size."""
    masks_of(tmp_path, foreground=1)
    for path in (tmp_path / "pairs").glob("*/*.png"):
        image = np.array(Image.open(path))
        image = np.array(of, np.uint8)[image] if path.parent.name == "targets" else image
        Image.fromarray(image).resize((32, 32), Image.Resampling.NEAREST).save(path)
    content = two_classes(function="NLL")
    content["data"]["target_transforms"] = [{"normalize": normalize}]
    printed = go(python, tmp_path, content)
    last = (tmp_path / "out_test.txt").read_text().splitlines()[-1]
    assert float(last.split("Accuracy: ")[1]) > 0.95, printed
    told = re.search(r"Foreground Dice: (\d\.\d+)", lines(printed, "Foreground Dice")[-1])
    assert told and float(told[1]) > 0.9


def rows() -> list[dict[str, Any]]:
    first = {"batch_input_shape": [None, 16, 16, 1], "filters": 2, "kernel_size": 1}
    return [layer("Conv2D", "a", **first), layer("Reshape", "b", target_shape=[256, 2])]


SHRINKS = layer("MaxPooling2D", "p", pool_size=2)
UNFIT: list[tuple[list[dict[str, Any]], str, str]] = [
    (rows(), "masks", "gives an output of 1 axes, the targets have 2"),
    ([*two_classes()["layers"], SHRINKS], "masks", "gives 8 x 8 for 16 x 16"),
    ([*two_classes()["layers"], *head("d")], "masks", "the targets are masks"),
    (two_classes()["layers"], "labels", "the targets are classes of whole samples"),
]


@pytest.mark.parametrize(("layers", "targets", "words"), UNFIT)
def test_an_output_that_does_not_fit_the_targets_is_told(
    python: Python, tmp_path: Path, layers: list[dict[str, Any]], targets: str, words: str
) -> None:
    masks_of(tmp_path, foreground=1)
    content = two_classes(function="NLL") | {"layers": layers}
    if targets == "labels":
        for key in ("input_path", "test_input_path"):
            content["data"][key] = "pairs"
        content["data"] |= {"type": None, "input_type": "images", "target_type": "labels"}
    del content["loss"]["source"]
    (tmp_path / "c.json").write_text(json.dumps({"neural_network": content}))
    done = python("-m", "trainer", "--config=c.json", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize("ignored", [-100, -1, 300])
def test_an_ignored_value_that_no_image_has(python: Python, tmp_path: Path, ignored: int) -> None:
    masks_of(tmp_path, foreground=1)
    content = two_classes(function="NLL", ignore_index=ignored) | {"num_epochs": 1}
    go(python, tmp_path, content)


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("checkpoints.save", {"checkpoints": {"save": "/proc/none"}}),
        ("outfile", {"outfile": "/proc/none/out.txt"}),
    ],
)
def test_a_folder_that_cannot_be_made_is_told(
    python: Python, tmp_path: Path, key: str, section: dict[str, Any]
) -> None:
    masks_of(tmp_path, foreground=1)
    content = two_classes(function="NLL") | section
    (tmp_path / "c.json").write_text(json.dumps({"neural_network": content}))
    done = python("-m", "trainer", "--config=c.json", cwd=tmp_path)
    assert done.returncode == 2 and f"Error: {key}: the folder '/proc/none'" in done.stderr


def test_an_evaluation_that_is_not_a_number_ends_the_run(python: Python, tmp_path: Path) -> None:
    masks_of(tmp_path, foreground=1)
    content = two_classes(function="NLL") | {"num_epochs": 1, "checkpoints": {"save": "model"}}
    content["data"]["batch_size"] = 8  # one step, whose own loss is before it
    content["optimizer"] = {"type": "SGD", "learning_rate": 1e38}
    (tmp_path / "c.json").write_text(json.dumps({"neural_network": content}))
    done = python("-m", "trainer", "--config=c.json", cwd=tmp_path)
    assert done.returncode == 4 and "the evaluation's loss is" in done.stderr, done.stderr
    assert not list((tmp_path / "model").glob("*.pt"))
