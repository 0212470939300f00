"""TensorBoard: real runs, their event files read back."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import Ended, environment
from tests.test_volume_training import events, run
from tests.volumes import configuration as volumes
from tests.volumes import write_volumes


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(
        str(folder), size_guidance={"images": 0, "scalars": 0, "histograms": 0}
    )
    return found.Reload()


def scalars(board: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in board.Scalars(tag)]


def picture(board: EventAccumulator, tag: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(board.Images(tag)[-1].encoded_image_string)))


@pytest.mark.slow
def test_a_training_of_volumes_is_told(tmp_path: Path) -> None:
    prepared = write_volumes(tmp_path / "prepared")
    content = volumes(prepared, num_epochs=4, tensorboard="logs/", tensorboard_interval=5)
    content["neural_network"]["evaluation"] = {"start_at": 2, "every": 2}
    run(content, tmp_path / "run")
    board = read(tmp_path / "run/logs")
    epochs = events(tmp_path / "run")
    steps = [5, 10, 15, 20, 24]  # of 4 epochs of 6 batches; the last one always
    assert [step for step, _ in scalars(board, "loss")] == steps
    assert scalars(board, "percent_complete") == [
        (step, pytest.approx(100 * step / 24, rel=1e-6)) for step in steps
    ]
    for name in ("loss", "learning_rate"):
        told = [(one["epoch"], pytest.approx(one[name], rel=1e-6)) for one in epochs]
        assert scalars(board, f"epoch/{name}") == told
    for name in ("accuracy", "foreground_dice", "evaluation_loss"):
        told = [(n, pytest.approx(epochs[n - 1][name], rel=1e-6)) for n in (2, 4)]
        assert scalars(board, f"epoch/{name}") == told
    dice = [(n, pytest.approx(epochs[n - 1]["class_dice"]["ball"], rel=1e-6)) for n in (2, 4)]
    assert scalars(board, "epoch/class_dice/ball") == dice
    counts = [one.histogram_value.num for one in board.Histograms("epoch/loss_of_batches")]
    assert counts == [6] * 4
    of_cases = board.Histograms("epoch/foreground_dice_of_cases")
    assert [one.histogram_value.num for one in of_cases] == [3, 3]
    kinds = ("ground_truth", "images", "predictions")
    assert sorted(board.Tags()["images"]) == [f"{kind}/{n}" for kind in kinds for n in range(3)]
    assert [one.step for one in board.Images("predictions/0")] == [2, 4]
    image, truth = picture(board, "images/0"), picture(board, "ground_truth/0")
    assert image.shape == truth.shape == picture(board, "predictions/0").shape
    assert (image[..., 0] == image[..., 1]).all()  # grey
    assert (truth != image).any()  # with the classes upon it


@pytest.mark.slow
def test_a_training_of_images_is_told(
    configuration: Callable[..., dict[str, Any]], train: Callable[..., Ended]
) -> None:
    ended = train(configuration(tensorboard="boards/run"))
    assert ended.code == 0, ended.err
    board = read(ended.folder / "boards/run")
    tags = board.Tags()["images"]
    assert {tag.partition("/")[0] for tag in tags} == {"images", "ground_truth", "predictions"}
    assert len(tags) == 9
    truth = picture(board, "ground_truth/0")
    assert set(np.unique(truth)) <= {0, 255} and truth.max() == 255
    assert picture(board, "images/0").shape == truth.shape
    assert scalars(board, "percent_complete")[-1][1] == 100


def test_without_the_key_nothing_of_it_is_imported(
    configuration: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(configuration(num_epochs=1)))
    code = "import sys; from trainer.__main__ import main; code = main(sys.argv[1:]); "
    code += "print(code, any(name.startswith('tensorboard') for name in sys.modules))"
    command = [sys.executable, "-c", code, "--config", str(path), "--run-folder", "run"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1] == "0 False", ended.stderr
    assert not list(tmp_path.rglob("events.out*"))
