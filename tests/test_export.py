"""Export: what onnxruntime computes is what torch computes, at sizes that the file never saw."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests import volumes
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.data.volumes.preparation import Preparation
from trainer.data.volumes.volume_file import open_volumes
from trainer.errors import InputError
from trainer.export import export, main
from trainer.model import load_model
from trainer.networks.build import build
from trainer.networks.description import parse_network

pytestmark = pytest.mark.slow
Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def exported(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("exported") / "out"
    assert main([str(trained.folder / "model/best.pt"), "--out", str(out)]) == 0
    return out


def run(file: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file)
    return np.asarray(session.run(None, {"image": image})[0])


def test_every_file_is_there(exported: Path) -> None:
    names = sorted(path.name for path in exported.iterdir())
    assert names == ["model.json", "model.onnx", "model.safetensors"]


@pytest.mark.parametrize("size", [(8, 8), (36, 20), (4, 68)])
@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_equals_the_trained_model(
    exported: Path, trained: Any, size: tuple[int, int], batch: int
) -> None:
    model = load_model(trained.folder / "model/best.pt", "cpu")
    rng = np.random.default_rng(batch)
    pixels = rng.integers(0, 256, (batch, 3, *size)).astype(np.float32)
    with torch.inference_mode():
        inputs = model.transform.inputs(torch.from_numpy(pixels))
        expected = model.network.probabilities(model.network(inputs)).numpy()
    found = run(exported / "model.onnx", pixels / 255)
    assert found.shape == expected.shape == (batch, 1, *size)
    assert np.abs(found - expected).max() < 1e-5


def test_the_five_lines_of_the_readme_give_the_mask_of_predict(
    exported: Path, trained: Any, data: Path
) -> None:
    facts = json.loads((exported / "model.json").read_text())
    path = next((data / "test/inputs").glob("*.png"))
    image = Image.open(path).convert("RGB").resize(facts["input"]["size"])
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
    found = run(exported / "model.onnx", pixels)[0]
    model = load_model(trained.folder / "model/best.pt", "cpu")
    expected = model.probabilities(np.asarray(Image.open(path).convert("RGB").resize(image.size)))
    assert np.abs(found - expected).max() < 1e-5


def test_the_description_says_how_it_is_used(exported: Path) -> None:
    facts = json.loads((exported / "model.json").read_text())
    assert facts["input"] == {
        "name": "image",
        "type": "float32",
        "axes": ["batch", "channel", "height", "width"],
        "channels": 3,
        "order": "RGB",
        "scaling": "pixel / 255",
        "size": facts["input"]["size"],
        "multiple_of": 4,
    }
    assert facts["output"]["classes"] == ["background", "foreground"]
    assert facts["output"]["threshold"] == 0.5


def test_safetensors_starts_a_training_again(exported: Path, trained: Any) -> None:
    state = load_checkpoint(exported / "model.safetensors")["state"]
    own = load_checkpoint(trained.folder / "model/best.pt")["state"]
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)


def test_nothing_is_overwritten(exported: Path, trained: Any, capsys: Any) -> None:
    before = (exported / "model.onnx").read_bytes()
    arguments = [str(trained.folder / "model/best.pt"), "--out", str(exported)]
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert (exported / "model.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no model"),
        (["MODEL", "--format", "onxx"], "unknown name 'onxx'"),
    ],
)
def test_mistakes_are_told(
    trained: Any, tmp_path: Path, capsys: Any, arguments: list[str], words: str
) -> None:
    model = str(trained.folder / "model/best.pt")
    told = [model if text == "MODEL" else text for text in arguments]
    assert main([*told, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_network_that_differs_is_not_written(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(trained.folder / "model/best.pt", "cpu")
    monkeypatch.setattr("trainer.export.TOLERANCE", 0.0)
    with pytest.raises(InputError, match="differs from torch"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_of_arrays_takes_them_as_they_are(tmp_path: Path, python: Python) -> None:
    """Three channels that are no colours: nothing is scaled or swapped."""
    rng = np.random.default_rng(3)
    images = rng.normal(0, 50, (6, 3, 8, 8)).astype(np.float32)
    truth = (images[:, :1] > images[:, 2:]).astype(np.float32)
    for name, arrays in (("x", images), ("y", truth)):
        np.savez(tmp_path / f"{name}.npz", **{str(n): one for n, one in enumerate(arrays)})
    shape = {"batch_input_shape": [None, None, None, 3], "filters": 1, "kernel_size": 1}
    layers = [{"class_name": "Conv2D", "config": {"name": "c", **shape, "activation": "sigmoid"}}]
    content = {
        "layers": layers,
        "num_epochs": 3,
        "checkpoints": {"save": "model"},
        "data": {"type": "numpy", "input_path": "x.npz", "target_path": "y.npz"},
        "optimizer": {"type": "Adam", "learning_rate": 0.1},
        "loss": {"function": "BCE"},
    }
    (tmp_path / "c.json").write_text(json.dumps({"neural_network": content}))
    assert python("-m", "trainer", "--config=c.json", cwd=tmp_path).returncode == 0
    assert main([str(tmp_path / "model/best.pt"), "--out", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out/model.json").read_text())["input"]
    assert (facts["scaling"], facts["order"]) == ("none", "as in the arrays of the training")
    model = load_model(tmp_path / "model/best.pt", "cpu")
    with torch.inference_mode():
        expected = model.network(torch.from_numpy(images)).sigmoid().numpy()
    assert np.abs(run(tmp_path / "out/model.onnx", images) - expected).max() < 1e-5
    with pytest.raises(InputError, match="trained on arrays"):
        model.predict(np.zeros((8, 8, 3), np.uint8))


def test_a_network_of_one_size_says_so(tmp_path: Path, python: Python) -> None:
    for kind in ("a", "b"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for index in range(3):
            pixels = np.full((10, 12), 200 if kind == "a" else 20, np.uint8)
            Image.fromarray(pixels + index).save(tmp_path / "data" / kind / f"{index}.png")
    layers = [
        {"class_name": "Flatten", "config": {"name": "f", "batch_input_shape": [None, 10, 12, 1]}},
        {"class_name": "Dense", "config": {"name": "d", "units": 2, "activation": "softmax"}},
    ]
    content = {
        "layers": layers,
        "checkpoints": {"save": "model"},
        "data": {"input_type": "images", "target_type": "labels", "input_path": "data"},
        "optimizer": {"type": "Adam"},
        "loss": {"function": "NLL"},
    }
    (tmp_path / "c.json").write_text(json.dumps({"neural_network": content}))
    done = python("-m", "trainer", "--config=c.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert main([str(tmp_path / "model/best.pt"), "--out", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out/model.json").read_text())
    assert facts["input"]["size"] == [12, 10] and facts["output"]["classes"] == ["a", "b"]
    found = run(tmp_path / "out/model.onnx", np.full((4, 1, 10, 12), 0.8, np.float32))
    assert found.shape == (4, 2) and np.allclose(found.sum(axis=1), 1)


NETWORKS_OF_VOLUMES: list[dict[str, Any]] = [
    {"network": "unet", "downsampling": "stride", "normalization": "instance"},
    {"network": "unet", "upsampling": "nearest", "normalization": "group", "half_first": True},
    {"network": "unet", "upsampling": "transpose_same", "convolution_bias": True},
    {"network": "monai.UNet", "divisor": 4},
    {"network": "monai.DynUNet", "divisor": 4},
]


@pytest.mark.parametrize("keys", NETWORKS_OF_VOLUMES)
def test_networks_of_volumes_at_sizes_that_are_no_cubes(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    small: dict[str, Any] = {"width": 8, "depth": 2}
    if keys["network"] == "monai.UNet":
        small = {"arguments": {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1}}
    if keys["network"] == "monai.DynUNet":
        kernels = {"kernel_size": [3, 3, 3], "upsample_kernel_size": [2, 2]}
        small = {"arguments": {**kernels, "strides": [1, 2, 2], "filters": [4, 8, 8]}}
    fitting = {"dimensions": 3, "in_channels": 2, "classes": 3}
    described = parse_network({**keys, **small, **fitting}, "layers.json")
    torch.manual_seed(1)
    state = build(described).body.state_dict()
    use = {"scaling": "none", "task": "classes", "class_names": ["other", "liver", "lesion"]}
    content = {"network": described.model_dump(), "state": state, "use": use}
    save_checkpoint(tmp_path / "volumes.pt", content)
    assert main([str(tmp_path / "volumes.pt"), "--out", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out/model.json").read_text())
    assert facts["input"]["axes"] == ["batch", "channel", "depth", "height", "width"]
    assert (facts["input"]["multiple_of"], facts["input"]["size"]) == (4, None)
    model = load_model(tmp_path / "volumes.pt", "cpu")
    volume = torch.rand(3, 2, 8, 20, 12)
    with torch.inference_mode():
        expected = model.network.probabilities(model.network(volume)).numpy()
    weights = load_file(tmp_path / "out/model.safetensors")
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[key], state[key]) for key in state)
    found = run(tmp_path / "out/model.onnx", volume.numpy())
    assert found.shape == expected.shape == (3, 3, 8, 20, 12)
    assert np.abs(found - expected).max() < 1e-5


def test_a_trained_model_of_volumes_says_how_scans_are_prepared(
    tmp_path: Path, python: Python
) -> None:
    folder = volumes.write_volumes(tmp_path / "data")
    config = volumes.configuration(folder, checkpoints={"save": "model/"}, num_epochs=1)
    (tmp_path / "c.json").write_text(json.dumps(config))
    assert python("-m", "trainer", "--config=c.json", cwd=tmp_path).returncode == 0
    given = [
        str(tmp_path / "model/best.pt"),
        "--out",
        str(tmp_path / "out"),
        "--format",
        "safetensors",
    ]
    assert main(given) == 0
    facts = json.loads((tmp_path / "out/model.json").read_text())
    assert facts["channels"] == ["CT"] and facts["windows"]["size"] == [16, 16, 16]
    assert (
        Preparation(**facts["preparation"]) == open_volumes(folder / "train.h5").header.preparation
    )
