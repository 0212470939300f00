"""trainer/data/slice_set.py: rows of slice arrays as samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.slices import EACH, write_slices
from trainer.__main__ import main
from trainer.config import Slices
from trainer.data.slice_files import list_slices
from trainer.data.slice_set import SliceSet
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
    # The run's own checkpoint evaluates what it was trained on, and nothing else.
    test = {
        "checkpoints": {"load": best},
        "data": {
            "type": "numpy",
            "test_input_path": str(arrays / "imgs_test.npy"),
            "test_target_path": str(arrays / "msks_test.npy"),
            "test_output_path": "predictions/",
        },
    }
    (tmp_path / "test.json").write_text(json.dumps({"neural_network": test}))
    again = tmp_path / "again"
    assert main([f"--config={tmp_path / 'test.json'}", "--run-folder", str(again)]) == 0
    told = json.loads((again / "result.json").read_text())["evaluation"]
    assert told["foreground_dice"] == pytest.approx(result["evaluation"]["foreground_dice"])
    test["data"]["slices"] = {"channels": ["t1"]}
    (tmp_path / "wrong.json").write_text(json.dumps({"neural_network": test}))
    capsys.readouterr()
    assert main([f"--config={tmp_path / 'wrong.json'}"]) == 2
    assert "data.slices.channels" in (err := capsys.readouterr().err) and "trained on" in err
    # Predictions of a configuration do not disturb those of trainer.predict.
    (tmp_path / "one").mkdir()
    np.save(tmp_path / "one/imgs_one.npy", np.load(arrays / "imgs_test.npy")[:2])
    given = [str(tmp_path / "one"), "--model", best, "--out", str(again / "predictions")]
    assert predict(given) == 0
    folder, out = tmp_path / "new", tmp_path / "out2"
    folder.mkdir()
    np.save(folder / "imgs_a.npy", np.load(arrays / "imgs_test.npy"))
    np.save(folder / "msks_a.npy", np.load(arrays / "msks_test.npy"))
    np.save(folder / "imgs_text.npy", np.full((2, 16, 16, 4), "a"))
    np.savez(folder / "zip.npz", a=1)
    (folder / "zip.npz").rename(folder / "imgs_zip.npy")
    given = [str(folder), "--model", best, "--out", str(out)]
    assert predict(given) == 0
    told = capsys.readouterr().out
    assert "1 arrays or scans predicted in" in told and "1 masks that lie beside" in told
    assert "passed over: imgs_text:" in told and "passed over: imgs_zip:" in told
    np.testing.assert_allclose(np.load(out / "imgs_a_predictions.npy"), found, atol=1e-5)
    written = (out / "imgs_a_predictions.npy").stat().st_mtime_ns
    np.save(folder / "imgs_b.npy", np.load(arrays / "imgs_test.npy")[:3])
    assert predict(given) == 0
    assert "(1 new, 1 done before)" in capsys.readouterr().out
    assert (out / "imgs_a_predictions.npy").stat().st_mtime_ns == written
    assert predict([*given, "--mirror"]) == 2
    assert "--mirror: this model is of slices" in capsys.readouterr().err
    overlap = 2 * ((found[..., 0] > 0.5) & truth).sum() / ((found > 0.5).sum() + truth.sum())
    assert overlap > 0.8 and ((found > 0) & (found < 1)).all()


def test_a_split_names_the_rows_of_each_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_slices(tmp_path / "data", train=4, test=0)
    names = [f"{row:06d}" for row in range(4 * EACH)]
    parts = {"training": names[: 2 * EACH], "validation": names[-EACH:], "test": names[-20:-EACH]}
    split = {"seed": 3, "select_on": "validation", "parts": parts, "masks": {"threshold": 0.5}}
    (tmp_path / "split.json").write_text(json.dumps(split))
    (tmp_path / "layers.json").write_text('{"network": "unet", "width": 2, "depth": 2}')
    own = {
        "type": "numpy",
        "split": str(tmp_path / "split.json"),
        "test_output_path": "predictions/",
        "slices": {"channels": ["flair"]},
    }
    content: dict[str, Any] = {
        "num_epochs": 1,
        "layers": str(tmp_path / "layers.json"),
        "data": {
            **own,
            "input_path": str(data / "imgs_train.npy"),
            "target_path": str(data / "msks_train.npy"),
        },
        "optimizer": {"type": "adam"},
        "loss": {"function": "bce"},
    }

    def run(name: str) -> dict[str, Any]:
        (tmp_path / "config.json").write_text(json.dumps({"neural_network": content}))
        folder = tmp_path / name
        assert main([f"--config={tmp_path / 'config.json'}", "--run-folder", str(folder)]) == 0
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())["evaluation"]
        with h5py.File(folder / "predictions/output_1.h5") as file:
            assert list(file) == [one["name"] for one in result["images"]]
            assert json.loads(file.attrs["slices"]) == {"channels": [2], "target": [1, 2, 3]}
        return result

    trained = run("trained")
    assert trained["evaluated_on"] == "validation"
    assert [one["name"] for one in trained["images"]] == parts["validation"]
    truth = np.load(data / "msks_train.npy").any(axis=3)[-EACH:].sum(axis=(1, 2))
    assert [one["tp"] + one["fn"] for one in trained["images"]] == truth.tolist()
    start = json.loads((tmp_path / "trained/metrics.jsonl").read_text().splitlines()[0])
    assert start["images"] == {"training": 2 * EACH, "validation": EACH} and start["seed"] == 3
    del content["layers"], content["optimizer"]
    content["checkpoints"] = {"load": str(tmp_path / "trained/checkpoints/best.pt")}
    content["data"] = {
        **own,
        "test_input_path": str(data / "imgs_train.npy"),
        "test_target_path": str(data / "msks_train.npy"),
    }
    assert [one["name"] for one in run("tested")["images"]] == parts["test"]
    parts["test"] = ["000200"]
    (tmp_path / "split.json").write_text(json.dumps({**split, "parts": parts}))
    assert main([f"--config={tmp_path / 'config.json'}"]) == 2
    assert "not in the data: 000200" in capsys.readouterr().err
