"""Studies on prepared volumes, with the real trainer: as processes, and in containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest

from tests import studies
from tests.volumes import configuration, write_volumes
from trainer.data.volumes.volume_file import open_volumes
from trainer.prepare.__main__ import main as prepare

HIPPOCAMPUS = studies.ROOT.parent / "shared/data/hippocampus"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volumes(tmp_path_factory.mktemp("data") / "prepared")


def study(here: Path, data: Path, *more: str, launcher: str = "process") -> str:
    options = ("--data", str(data), "--launcher", launcher, "--study-name", "s", "--threads", "1")
    ended = studies.driver(here, *options, *more, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return " ".join(ended.stdout.replace("|", " ").split())


def listed(here: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((here / "list_acc.json").read_text())
    return content


@pytest.mark.slow
def test_a_study_of_prepared_volumes_from_their_folder_alone(
    prepared: Path, tmp_path: Path
) -> None:
    told = study(tmp_path, prepared, "--num-trials", "3", "--num-epochs", "4")
    for part in (
        "11: 6 training, 3 validation, 2 test; chosen on validation",
        "16x16x16 voxels, 2 crops",
        "Classes background",
        "Validation foreground Dice",
        "Test foreground Dice",
        "on 2 cases",
        "Test Dice by class ball",
        "by foreground_dice",
        "validation accuracy",
    ):
        assert part in told, part
    first = listed(tmp_path)[0]
    assert (first["optimizer"], first["lr"], first["loss"]) == ("adam", 0.005, "dice_ce")
    assert first["metric"] == "foreground_dice" and first["value"] == first["foreground_dice"]
    ran = studies.trainer(tmp_path, "--config=best_model/config_test.json")
    assert ran.returncode == 0, ran.stderr
    with h5py.File(tmp_path / "predictions/output_1.h5") as file:
        assert len(file) == 2 and next(iter(file.values())).shape[0] == 3
    drawn = studies.module(tmp_path, "trainer.review", "predictions/output_1.h5")
    assert drawn.returncode == 0 and (tmp_path / "predictions/output_1.png").exists()
    scans = tmp_path / "scans"
    scans.mkdir()
    image = open_volumes(prepared / "test.h5").cases[0].image()[0]
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), scans / "a.nii")
    options = ("--out", "labels", "--launcher", "process", "--mirror")
    ended = studies.driver(tmp_path, "predict", str(scans), *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((tmp_path / "labels/predict.json").read_text())["mirror"] is True
    assert (tmp_path / "labels/masks/a.nii").exists()


@pytest.mark.slow
def test_a_base_and_a_grid_over_volumes(prepared: Path, tmp_path: Path) -> None:
    base = configuration(prepared, num_epochs=1)
    base["neural_network"]["data"]["patches"]["per_case"] = 1
    (tmp_path / "base.json").write_text(json.dumps(base))
    space = {
        "grid": True,
        "parameters": {
            "optimizer.learning_rate": [0.001, 0.005],
            "layers.normalization": ["batch", "group"],
        },
    }
    (tmp_path / "space.json").write_text(json.dumps(space))
    told = study(tmp_path, prepared, "--config", "base.json", "--space", "space.json")
    assert "grid of 4" in told
    points = [tuple(one["parameters"].values()) for one in listed(tmp_path)]
    assert len(points) == 4 == len(set(points))
    assert all(one["state"] == "COMPLETE" for one in listed(tmp_path))


@pytest.mark.slow
@pytest.mark.docker
def test_a_study_of_four_short_trials_in_containers(tmp_path: Path) -> None:
    studies.our_image()
    if HIPPOCAMPUS.exists():
        assert prepare(["msd", str(HIPPOCAMPUS), str(tmp_path / "data")]) == 0
        config = tmp_path / "data/config.json"
        content = json.loads(config.read_text())
        patches = content["neural_network"]["data"]["patches"]
        patches |= {"size": [32, 32, 32], "per_case": 1}
        config.write_text(json.dumps(content))
        layers = {"network": "unet", "dimensions": 3, "width": 4, "depth": 3}
        (tmp_path / "data/layers.json").write_text(json.dumps(layers))
        least = 0.15
    else:
        write_volumes(tmp_path / "data")
        least = 0.1
    more = ("--num-trials", "4", "--num-epochs", "2", "--no-prune", "--no-gpu")
    told = study(tmp_path, tmp_path / "data", *more, launcher="docker")
    assert "4 complete, 0 pruned, 0 fail" in told
    assert max(one["foreground_dice"] for one in listed(tmp_path)) > least
    command = (
        next(line for line in told.split("  ") if line.startswith("docker run"))
        if "  docker run" in told
        else ""
    )
    assert "rmldnn" in told and (command == "" or "config_test.json" in command)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--layers", "layers/unet_small.json"), "is no network of volumes"),
        (("--split", "split.json"), "prepared volumes are split already"),
        (("--labels", "labels.json"), "the volumes name their classes"),
        (("--config", "nothing.json"), "no such configuration"),
        (("--image-size", "64"), "--image-size: volumes are trained on in crops"),
        (("--augment", "light"), "--augment: the transforms of volumes"),
        (("--group-by", "x"), "prepared volumes are split already"),
        (("--trial-command", "sh {config}"), "is for images, and"),
    ],
)
def test_what_a_study_of_volumes_cannot_use_is_told(
    prepared: Path, tmp_path: Path, more: tuple[str, str], told: str
) -> None:
    (tmp_path / "split.json").write_text("{}")
    (tmp_path / "labels.json").write_text('{"background": 0, "x": 1}')
    shared = ("--data", str(prepared), "--launcher", "process", "--num-trials", "1")
    code, out, err = studies.typed_here(tmp_path, *shared, *more)
    assert code == 2 and told in err, out + err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_plan_of_a_study_of_volumes(prepared: Path, tmp_path: Path) -> None:
    shared = ("--data", str(prepared), "--launcher", "process", "--threads", "1", "--no-gpu")
    code, out, err = studies.typed_here(tmp_path, "plan", *shared)
    assert code == 0, out + err
    assert "s a step of 2" in out and "The study" in out


def test_prepared_volumes_are_checked_with_a_picture(prepared: Path, tmp_path: Path) -> None:
    code, out, err = studies.typed_here(tmp_path, "check", "--data", str(prepared))
    assert code == 0, err
    assert "11: 6 training, 3 validation, 2 test" in out and (tmp_path / "check.png").exists()
