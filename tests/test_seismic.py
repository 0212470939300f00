"""A volume larger than the memory of its container: cut, trained on, predicted and put together."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.studies import our_image

pytestmark = [pytest.mark.docker, pytest.mark.slow]

LAYERS: list[dict[str, Any]] = [
    {
        "class_name": "Conv3D",
        "config": {
            "name": "conv",
            "batch_input_shape": [None, None, None, None, 1],
            "filters": 4,
            "kernel_size": [3, 3, 3],
            "padding": "same",
            "activation": "relu",
        },
    },
    {
        "class_name": "Conv3D",
        "config": {"name": "end", "filters": 4, "kernel_size": 1, "activation": "log_softmax"},
    },
]
SIZE = (2048, 1024, 256)
"""With 4 bytes a voxel: 2.1 GB."""


def write_volume(folder: Path, part: str, shape: tuple[int, ...], kind: str) -> None:
    """Four layers, one above the other, gently folded, with noise."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.05, (32, *shape[1:])).astype(kind)
    y, z = np.arange(shape[1])[None, :, None], np.arange(shape[2])[None, None, :]
    with (
        h5py.File(folder / f"input3D_{part}.h5", "w") as inputs,
        h5py.File(folder / f"target3D_{part}.h5", "w") as targets,
    ):
        image = inputs.create_dataset("input", shape, kind)
        truth = targets.create_dataset("target", shape, "u1")
        for at in range(0, shape[0], 32):
            x = np.arange(at, min(at + 32, shape[0]))[:, None, None]
            depth = z / shape[2] * 4 + 0.1 * np.sin(x / 90) + 0.1 * np.cos(y / 70)
            facies = depth.astype(int).clip(0, 3)
            truth[at : at + 32] = facies
            image[at : at + 32] = facies / 3 + noise[: len(x)]


def run(folder: Path, name: str, content: dict[str, Any]) -> str:
    """rmldnn --config=NAME in a container that has 2 GiB of memory; what it printed."""
    (folder / name).write_text(json.dumps({"neural_network": content}))
    user = f"{os.getuid()}:{os.getgid()}"
    command = ["docker", "run", "--rm", "--memory", "2g", "--memory-swap", "2g", "-u", user]
    command += ["-v", f"{folder}:/home/ubuntu", "-w", "/home/ubuntu", our_image()]
    ended = subprocess.run([*command, "rmldnn", f"--config={name}"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr
    return ended.stdout


def test_a_volume_that_no_memory_holds(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_volume(tmp_path / "data", "train", SIZE, "f4")
    write_volume(tmp_path / "data", "test", (78, 590, 1006), "f4")
    slicer = {"sizes": [64, 64, 256], "strides": [64, 64, 17], "discard_remainders": True}
    training = {
        "num_epochs": 1,
        "layers": LAYERS,
        "checkpoints": {"save": "./model/"},
        "data": {
            "type": "hdf5",
            "input_path": "./data/input3D_train.h5",
            "target_path": "./data/target3D_train.h5",
            "batch_size": 4,
            "preload": True,
            "slicers": [{"name": "samples", **slicer}],
        },
        "optimizer": {"type": "Adam", "learning_rate": 0.02},
        "loss": {"function": "NLL"},
    }
    printed = run(tmp_path, "train.json", training)
    assert "Full size: [2048, 1024, 256]" in printed
    assert "Num samples (total)      : 512" in printed
    (tmp_path / "data/input3D_train.h5").unlink()
    inference = {
        "checkpoints": {"load": "./model/model_checkpoint_1.pt"},
        "data": {
            "type": "hdf5",
            "test_input_path": "./data/input3D_test.h5",
            "test_target_path": "./data/target3D_test.h5",
            "hdf5_outfile": "./prediction.h5",
            "test_batch_size": 1,
            "slicers": [{"name": "pred", "sizes": [64, 64, 248], "discard_remainders": True}],
        },
        "loss": {"function": "Dice", "source": "log_softmax"},
    }
    assert "Accuracy: " in run(tmp_path, "predict.json", inference)
    with (
        h5py.File(tmp_path / "prediction.h5") as file,
        h5py.File(tmp_path / "data/target3D_test.h5") as truth,
    ):
        assert list(file) == ["pred"] and file["pred"].shape == (64, 576, 992, 4)
        found = np.argmax(file["pred"][:], axis=-1)  # as the published script reads it
        right = found == truth["target"][:64, :576, :992]
    assert right.mean() > 0.8
