"""trainer/data/slice_set.py: rows of slice arrays as samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.__main__ import main
from trainer.config import Slices
from trainer.data.slice_files import list_slices
from trainer.data.slice_set import SliceSet
from trainer.errors import InputError
from trainer.predict import main as predict

ROWS, SIDE = 130, 16


@pytest.fixture(scope="session")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """imgs and msks of 130 slices: the target lies where flair (channel 2) is bright."""
    folder = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    for part, rows in (("train", 64), ("test", ROWS)):
        images = rng.normal(size=(rows, SIDE, SIDE, 4)).astype(np.float32)
        masks = np.zeros((rows, SIDE, SIDE, 4), np.uint8)
        for row in range(rows):
            a, b = rng.integers(0, 8, 2)
            masks[row, a : a + 6, b : b + 6, 1 + row % 3] = 1
            images[row, a : a + 6, b : b + 6, 2] += 4
        np.save(folder / f"imgs_{part}.npy", images)
        np.save(folder / f"msks_{part}.npy", masks)
    return folder


def rows(folder: Path, **keys: Any) -> list[Any]:
    slices = Slices.model_validate(keys)
    return list_slices(str(folder / "imgs_test.npy"), str(folder / "msks_test.npy"), slices)


def test_channels_and_masks_are_chosen_by_name_or_number(arrays: Path) -> None:
    images = np.load(arrays / "imgs_test.npy")
    masks = np.load(arrays / "msks_test.npy")
    samples = SliceSet(rows(arrays, channels=["flair", 0], target=["wt"]), channels=2)
    for kept in (False, True):
        if kept:
            samples.preload(1)
        x, y = samples.batch(torch.tensor([3, 100]))
        assert x.dtype == torch.float32 and y is not None
        assert np.array_equal(x.numpy(), images[[3, 100]][..., [2, 0]].transpose(0, 3, 1, 2))
        assert np.array_equal(y.numpy()[:, 0], masks[[3, 100]].any(axis=-1))
    for name, planes in {"et": [3], "tc": [1, 3], "edema": [2]}.items():
        one = SliceSet(rows(arrays, channels=[2], target=[name]), channels=1)
        _, y = one.batch(torch.arange(9))
        assert y is not None
        assert np.array_equal(y.numpy()[:, 0], masks[:9][..., planes].any(axis=-1)), name


def test_names_of_a_file_beside_win(arrays: Path, tmp_path: Path) -> None:
    for name in ("imgs_test.npy", "msks_test.npy"):
        (tmp_path / name).write_bytes((arrays / name).read_bytes())
    names = {"channels": ["a", "b", "c", "d"], "masks": ["none", "x", "y", "z"]}
    (tmp_path / "slices.json").write_text(json.dumps(names))
    assert rows(tmp_path, channels=["c"], target=["y"])[0].files.channels == (2,)
    with pytest.raises(InputError, match="no 'flair'"):
        rows(tmp_path, channels=["flair"])


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"channels": ["flare"]}, "no 'flare'; did you mean 'flair'"),
        ({"channels": [4]}, "0 to 3"),
        ({"target": ["whole"]}, "no 'whole'"),
    ],
)
def test_what_is_no_channel_is_told(arrays: Path, keys: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        rows(arrays, **keys)


def test_other_files_are_told(arrays: Path, tmp_path: Path) -> None:
    slices = Slices()
    with pytest.raises(InputError, match="no such file"):
        list_slices(str(tmp_path / "no.npy"), None, slices)
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    with pytest.raises(InputError, match=r"\(4, 4\)"):
        list_slices(str(tmp_path / "flat.npy"), None, slices)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        list_slices(str(tmp_path / "objects.npy"), None, slices)
    with pytest.raises(InputError, match="slices, height, width"):
        list_slices(str(arrays / "imgs_train.npy"), str(arrays / "msks_test.npy"), slices)


def test_a_training_predicts_every_slice_the_last_batch_too(
    arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {"network": "unet", "width": 4, "depth": 2}
    (tmp_path / "layers.json").write_text(json.dumps(network))
    content = {
        "num_epochs": 6,
        "layers": str(tmp_path / "layers.json"),
        "data": {
            "type": "numpy",
            "input_path": str(arrays / "imgs_train.npy"),
            "target_path": str(arrays / "msks_train.npy"),
            "test_input_path": str(arrays / "imgs_test.npy"),
            "test_target_path": str(arrays / "msks_test.npy"),
            "test_output_path": "predictions/",
            "batch_size": 16,
            "test_batch_size": 128,
            "slices": {"channels": ["flair"], "target": ["wt"]},
        },
        "optimizer": {"type": "adam", "learning_rate": 0.01},
        "loss": {"function": "log_dice"},
    }
    (tmp_path / "config.json").write_text(json.dumps({"neural_network": content}))
    run = tmp_path / "run"
    assert main([f"--config={tmp_path / 'config.json'}", "--run-folder", str(run)]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["evaluation"]["foreground_dice"] > 0.8
    found = np.load(run / "predictions/msks_test_predictions.npy")
    assert found.shape == (ROWS, SIDE, SIDE, 1) and found.dtype == np.float32
    truth = np.load(arrays / "msks_test.npy").any(axis=-1)
    wrong = tmp_path / "imgs_wrong.npy"
    np.save(wrong, np.zeros((3, 8, 8, 4), np.float32))
    best = str(run / "checkpoints/best.pt")
    assert predict([str(wrong), "--model", best, "--out", str(tmp_path / "out")]) == 2
    assert "(slices, 16, 16, 3 or more channels)" in capsys.readouterr().err
    overlap = 2 * ((found[..., 0] > 0.5) & truth).sum() / ((found > 0.5).sum() + truth.sum())
    assert overlap > 0.8 and ((found > 0) & (found < 1)).all()
