"""A study with a Keras network file, from the command line to a prediction with its best model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import studies
from trainer.predict import load_model

pytestmark = pytest.mark.slow


def layer(name: str, kind: str, *inputs: str, **config: Any) -> dict[str, Any]:
    nodes = [[[one, 0, 0, {}] for one in inputs]] if inputs else []
    config = {"name": name, **config}
    return {"class_name": kind, "config": config, "name": name, "inbound_nodes": nodes}


def network(classes: int = 1, channels: int = 3) -> dict[str, Any]:
    same = {"kernel_size": 3, "padding": "same"}
    layers = [
        layer("input", "InputLayer", batch_input_shape=[None, None, None, channels]),
        layer("a/conv", "Conv2D", "input", filters=8, activation="relu", **same),
        layer("pool", "MaxPooling2D", "a/conv"),
        layer("b", "Conv2D", "pool", filters=8, **same),
        layer("bn", "BatchNormalization", "b"),
        layer("up", "UpSampling2D", "bn"),
        layer("join", "Concatenate", "up", "a/conv"),
        layer("end", "Conv2D", "join", filters=classes, activation="sigmoid", **same),
    ]
    ends = {"input_layers": [["input", 0, 0]], "output_layers": [["end", 0, 0]]}
    return {"class_name": "Functional", "config": {"name": "tiny", "layers": layers, **ends}}


def study(here: Path, content: Any, *more: str) -> subprocess.CompletedProcess[str]:
    data = studies.make_data(here / "data")
    (here / "net.json").write_text(json.dumps(content))
    options = ["--data", str(data), "--layers", str(here / "net.json"), *studies.SMALL]
    return studies.driver(here, *options, "--num-trials", "1", "--study-name", "s", *more)


def test_a_study_with_a_keras_file(tmp_path: Path) -> None:
    as_keras_3_writes_it = network() | {"module": "keras", "registered_name": "Functional"}
    ended = study(tmp_path, as_keras_3_writes_it)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    model = load_model(tmp_path / "best_model")
    assert model.network.description.label == "tiny"
    image = np.random.default_rng(0).integers(0, 255, (24, 32), np.uint8)
    mask, probabilities = model.predict_with_probabilities(image)
    assert mask.shape == (24, 32) and probabilities.shape == (1, 16, 16)
    assert 0 <= probabilities.min() <= probabilities.max() <= 1
    use = [sys.executable, "-m", "trainer", "--config=best_model/config_test.json"]
    environment = {**os.environ, "PYTHONPATH": str(studies.ROOT)}
    used = subprocess.run(use, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert used.returncode == 0, used.stderr


@pytest.mark.parametrize(
    ("content", "more", "told"),
    [
        (
            network(classes=3),
            [],
            "its output has 3 channels, the masks have background, foreground",
        ),
        (network(channels=4), [], "its input has 2 dimensions and 4 channels"),
        (network(), ["--image-size", "17"], "tiny cannot take 17x17 pixels"),
        (network(), ["--weights", "imagenet"], "has no published weights"),
        ({**network(), "class_name": "Funktional"}, [], "did you mean 'Functional'?"),
    ],
)
def test_a_keras_file_that_does_not_fit_the_study(
    tmp_path: Path, content: Any, more: list[str], told: str
) -> None:
    ended = study(tmp_path, content, *more)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert told in ended.stderr and "Traceback" not in ended.stderr


def test_an_output_of_another_size_is_told_before_a_trial(tmp_path: Path) -> None:
    content = network()
    content["config"]["layers"].append(layer("half", "MaxPooling2D", "end"))
    content["config"]["output_layers"] = [["half", 0, 0]]
    ended = study(tmp_path, content)
    assert ended.returncode == 2
    assert "its output is 8x8 pixels for 16x16" in " ".join(ended.stderr.split())
