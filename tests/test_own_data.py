"""Studies on the folders that people have, with the real trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from tests import studies

pytestmark = pytest.mark.slow

FORGOTTEN = ("in_channels", "classes", "activation")


def study(here: Path, data: Path, *more: str) -> dict[str, Any]:
    """One trial; what best_model.json tells."""
    network = studies.layers(here)
    content = json.loads(network.read_text())
    network.write_text(json.dumps({k: v for k, v in content.items() if k not in FORGOTTEN}))
    options = ["--data", str(data), "--layers", str(network), *studies.SMALL, "--num-trials", "1"]
    ended = studies.driver(here, *options, "--threads", "1", *more)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (here / "out.txt").write_text(ended.stdout)
    origin: dict[str, Any] = json.loads((here / "best_model/best_model.json").read_text())
    return origin


def predicted(here: Path) -> dict[str, np.ndarray]:
    """What config_test.json predicts, by image name."""
    ended = studies.trainer(here, "--config=best_model/config_test.json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, np.ndarray] = {}
    with h5py.File(here / "predictions/output_1.h5") as file:
        file.visititems(
            lambda n, item: found.update({n: item[()]}) if hasattr(item, "shape") else None
        )
    return found


def test_several_classes_by_name(tmp_path: Path) -> None:
    data = studies.make_data(tmp_path / "data", images=20)
    for number, path in enumerate(sorted(data.glob("*/targets/*.png"))):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask > 0, 128 + 127 * (number % 2), 0).astype(np.uint8)).save(path)
    labels = tmp_path / "labels.json"
    labels.write_text('{"background": 0, "cyst": 128, "tumour": 255}')
    origin = study(tmp_path, data, "--labels", "labels.json")
    assert origin["network"]["classes"] == 3 and origin["network"]["activation"] == "softmax"
    assert origin["network"]["in_channels"] == 1
    assert set(origin["test"]["class_dice"]) == {"cyst", "tumour"}
    (record,) = json.loads((tmp_path / "list_acc.json").read_text())
    assert set(record["class_dice"]) == {"cyst", "tumour"} and record["loss"] == "nll"
    out = (tmp_path / "out.txt").read_text()
    assert "Test Dice of cyst" in out and "Validation Dice of tumour" in out
    assert "Images with cyst" in out and "NO " not in out
    for probabilities in predicted(tmp_path).values():
        assert probabilities.shape == (3, 16, 16)
        np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    picture = studies.module(tmp_path, "trainer.review", "predictions/output_1.h5")
    assert "mean Dice" in picture.stdout, picture.stderr

    labels.write_text('{"background": 0, "tumour": 128, "cyst": 255}')
    name = str(origin["study"])
    refused = studies.driver(tmp_path, "--resume", "--study-name", name, "--num-trials", "2")
    assert refused.returncode == 2 and "--labels" in refused.stderr


def test_class_folders_as_they_are_downloaded(tmp_path: Path) -> None:
    data = studies.make_class_folders(tmp_path / "data")
    origin = study(tmp_path, data)
    split = json.loads((tmp_path / "best_model/split.json").read_text())
    assert set(predicted(tmp_path)) == set(split["parts"]["test"])
    assert all(name.split("/")[0] in ("benign", "normal") for name in split["parts"]["test"])
    scored = origin["test"]["foreground_dice"]
    assert scored is not None and origin["test"]["accuracy"] > 0


def test_a_test_without_masks_is_predicted_only(tmp_path: Path) -> None:
    data = studies.make_data(tmp_path / "data")
    for path in (data / "test/targets").iterdir():
        path.unlink()
    (data / "test/targets").rmdir()
    origin = study(tmp_path, data)
    assert origin["test"] is None
    assert "predicted only" in (tmp_path / "out.txt").read_text()
    assert len(predicted(tmp_path)) == 6
    refused = studies.driver(tmp_path, "--data", str(data), "--select-on", "test", *studies.SMALL)
    assert refused.returncode == 2 and "the test images have no masks" in refused.stderr
