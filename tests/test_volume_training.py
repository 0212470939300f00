"""Training, evaluation and prediction of prepared volumes, by the trainer's own command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from tests.studies import ROOT
from tests.volumes import configuration, write_volumes
from trainer.__main__ import main
from trainer.checkpoint import load_checkpoint
from trainer.config import load_config, parse_config
from trainer.data.volumes.grid import Grid, resample
from trainer.data.volumes.volume_file import open_volumes
from trainer.evaluate_volumes import classes_at
from trainer.metrics import Counts, VolumeScore, volume_summary
from trainer.model import load_model
from trainer.predict import main as predict
from trainer.review import main as review
from trainer.tasks import Aim


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volumes(tmp_path_factory.mktemp("prepared"))


def run(content: dict[str, Any], folder: Path, *options: str) -> dict[str, Any]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_suffix(".json")
    config.write_text(json.dumps(content))
    code = main([f"--config={config}", "--run-folder", str(folder), "--threads", "1", *options])
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert code == result["exit_code"]
    return result


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of 12 epochs, with predictions of its last evaluation."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    content = configuration(prepared, num_epochs=12)
    content["neural_network"]["data"]["test_output_path"] = "predictions/"
    content["neural_network"]["evaluation"] = {
        "start_at": 6,
        "every": 6,
        "hd95": True,
        "surface_dice_mm": 1.0,
    }
    result = run(content, folder)
    assert result["exit_code"] == 0, result["reason"]
    return folder


def events(folder: Path, kind: str = "epoch") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [one for one in lines if one["event"] == kind]


def test_a_training_learns_and_evaluates_when_it_is_due(trained: Path) -> None:
    epochs = events(trained)
    assert epochs[-1]["loss"] < epochs[0]["loss"] / 2
    scored = [one["epoch"] for one in epochs if one["accuracy"] is not None]
    assert scored == [6, 12]
    result = json.loads((trained / "result.json").read_text())
    assert result["best"]["epoch"] in scored
    assert result["evaluation"]["foreground_dice"] > 0.7
    assert result["evaluation"]["evaluated_on"] == "validation"
    told = result["evaluation"]["images"]
    assert len(told) == 3 and set(result["evaluation"]["class_dice"]) == {"ball", "shell"}
    assert all(0 <= one["classes"][0]["surface_dice"] <= 1 for one in told)
    assert result["evaluation"]["hd95_mm"]["ball"] < 6


def test_scores_are_of_the_scan_s_own_voxels(trained: Path, prepared: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    for told in result["evaluation"]["images"]:
        cases = open_volumes(prepared / "validation.h5").cases
        case = next(one for one in cases if one.name == told["name"])
        for number, counts in enumerate(told["classes"], start=1):
            every = sum(counts[key] for key in ("tp", "fp", "fn", "tn"))
            assert every == np.prod(case.original.shape)
            truth = int((case.original_label() == number).sum())
            assert counts["tp"] + counts["fn"] == truth


def test_every_case_counts_once_and_an_absent_class_counts_one() -> None:
    absent = Counts(0, 0, 0, 100)
    half = Counts(10, 20, 0, 70)
    scores = [
        VolumeScore("a", (Counts(90, 0, 10, 0), absent, half), (None, 3.0)),
        VolumeScore("b", (Counts(90, 0, 10, 0), half, half), (2.0, 5.0)),
    ]
    told = volume_summary(scores, ("background", "one", "two"))
    assert told["foreground_dice"] == pytest.approx((0.75 + 0.5) / 2)
    assert told["class_dice"] == {"one": pytest.approx(0.75), "two": pytest.approx(0.5)}
    assert told["hd95_mm"] == {"one": 2.0, "two": 4.0}
    background = 180 / 190
    assert told["accuracy"] == pytest.approx(
        ((background + 1 + 0.5) / 3 + (background + 0.5 + 0.5) / 3) / 2
    )


def test_logits_are_moved_not_classes() -> None:
    """Where an edge lies between two voxels, a finer grid finds it there."""
    coarse = Grid((4, 1, 1), np.diag([3.0, 1, 1, 1]))
    logits = torch.tensor([-3.0, -3.0, 3.0, 3.0]).view(1, 4, 1, 1)
    fine = coarse.spaced((12, 1, 1))
    found = classes_at(logits, coarse, fine, Aim("foreground", "sigmoid"))
    assert found.flatten().tolist() == [0] * 6 + [1] * 6
    outside = fine.cropped((-3, 0, 0), (18, 1, 1))
    edges = classes_at(logits, coarse, outside, Aim("foreground", "sigmoid")).flatten().tolist()
    assert edges == [0] * 9 + [1] * 6 + [0] * 3


def test_predictions_of_a_run_are_evaluated_alike_by_its_checkpoint(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    best = json.loads((trained / "result.json").read_text())
    content = {
        "neural_network": {
            "checkpoints": {"load": str(trained / "checkpoints/best.pt")},
            "data": {
                "type": "hdf5",
                "test_input_path": str(prepared / "validation.h5"),
                "test_output_path": "out/",
            },
        }
    }
    result = run(content, tmp_path / "again")
    assert result["evaluation"]["foreground_dice"] == pytest.approx(
        best["evaluation"]["foreground_dice"], abs=1e-6
    )
    assert (tmp_path / "again/out/output_1.h5").exists()


def test_a_checkpoint_is_used_in_the_precision_that_it_was_trained_in(
    prepared: Path, tmp_path: Path
) -> None:
    from trainer.data.volumes.scans import Scan

    content = configuration(prepared, num_epochs=1, precision="bfloat16")
    first = run(content, tmp_path / "first")["evaluation"]
    again: dict[str, Any] = {
        "checkpoints": {"load": str(tmp_path / "first/checkpoints/last.pt")},
        "data": {"type": "hdf5", "test_input_path": str(prepared / "validation.h5")},
        "loss": {"function": "dice_ce"},
    }
    losses = [
        run({"neural_network": {**again, **more}}, tmp_path / name)["evaluation"]["loss"]
        for name, more in (("kept", {}), ("asked", {"precision": "float32"}))
    ]
    assert losses[0] == first["loss"] != losses[1]
    case = open_volumes(prepared / "test.h5").cases[0]
    scan = Scan(case.image(), case.grid, case.name)
    model = load_model(tmp_path / "first/checkpoints/last.pt", "cpu")
    assert model.use.precision == "bfloat16"
    found = model.predict_scan(scan).probabilities
    single, half = (
        replace(model, use=model.use.model_copy(update={"precision": one})).predict_scan(scan)
        for one in ("float32", "float16")
    )
    assert 0 < np.abs(found - single.probabilities).max() < 0.2
    assert np.array_equal(half.probabilities, single.probabilities)  # no CPU computes float16


def test_scans_are_predicted_on_their_own_voxels(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    """A scan that is turned, cropped and of another spacing: its label comes back in its place."""
    case = open_volumes(prepared / "validation.h5").cases[0]
    image, label = case.image(), case.label()
    scans = tmp_path / "scans"
    scans.mkdir()
    expected: dict[str, tuple[Grid, np.ndarray]] = {}
    for name, there in {
        "plain": case.grid,
        "turned": case.grid.turned("SLP"),
        "coarse": case.grid.spaced([round(n / 1.5) for n in case.grid.shape]).turned("IPR"),
        "cropped": case.grid.cropped((2, 1, 0), [n - 3 for n in case.grid.shape]),
    }.items():
        moved = resample(torch.from_numpy(image), case.grid, there, linear=True)[0].numpy()
        truth = resample(torch.from_numpy(label)[None], case.grid, there, linear=False)[0].numpy()
        nibabel.save(nibabel.Nifti1Image(moved, there.affine), scans / f"{name}.nii.gz")
        expected[name] = there, truth
    best = str(trained / "checkpoints/best.pt")
    out = tmp_path / "out"
    assert predict([str(scans), "--model", best, "--out", str(out), "--mirror"]) == 0
    for name, (there, truth) in expected.items():
        found = nibabel.load(out / f"masks/{name}.nii.gz")
        assert found.shape == there.shape and np.allclose(found.affine, there.affine, atol=1e-4)
        values = np.asarray(found.dataobj)
        assert set(np.unique(values)) <= {0, 1, 2}
        for number in (1, 2):
            p, t = values == number, truth == number
            score = 2 * (p & t).sum() / (p.sum() + t.sum())
            assert score > 0.55, (name, number, score)
        assert (out / f"overlays/{name}.png").exists()
    told = json.loads((out / "predict.json").read_text())
    assert told["mask_values"] == {"background": 0, "ball": 1, "shell": 2}
    assert predict([str(scans), "--model", best, "--out", str(out), "--mirror"]) == 0  # again


def test_files_of_several_patients_are_no_channels_of_one(
    trained: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    image = open_volumes(prepared / "validation.h5").cases[0].image()[0]
    for name in ("pat_0000", "pat_0001"):
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), scans / f"{name}.nii.gz")
    (scans / "notes.txt").write_text("hello")
    best = str(trained / "checkpoints/best.pt")
    assert predict([str(scans), "--model", best, "--out", str(tmp_path / "out")]) == 0
    assert "2 scans predicted" in (out := capsys.readouterr().out) and "notes.txt" in out
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), scans / "pat_0000.nii")
    assert predict([str(scans), "--model", best, "--out", str(tmp_path / "other")]) == 2
    assert "has the name of pat_0000.nii" in capsys.readouterr().err


def test_a_scan_of_other_channels_is_named_and_the_rest_predicted(
    trained: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    image = open_volumes(prepared / "validation.h5").cases[0].image()[0]
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), scans / "good.nii")
    nibabel.save(nibabel.Nifti1Image(np.stack([image] * 2, -1), np.eye(4)), scans / "two.nii")
    (scans / "broken.nii").write_bytes(b"no scan")
    shutil.copy(scans / "good.nii", os.fsdecode(bytes(scans) + b"/odd\xff.nii"))
    best = str(trained / "checkpoints/best.pt")
    assert predict([str(scans), "--model", best, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "two" in out and "2 channels, the model was trained on CT" in out
    assert "broken" in out and (tmp_path / "out/masks/good.nii").exists()
    assert "odd\\udcff': its name is no UTF-8" in out
    assert review([str(tmp_path / "out/predictions.h5")]) == 2
    assert f"look at {tmp_path / 'out/overlays'}" in capsys.readouterr().err


def test_a_model_of_volumes_is_used_from_python(trained: Path, prepared: Path) -> None:
    from trainer.data.volumes.scans import Scan

    case = open_volumes(prepared / "test.h5").cases[0]
    model = load_model(trained / "checkpoints/best.pt")
    found = model.predict_scan(Scan(case.image(), case.grid, case.name))
    assert found.classes.shape == case.grid.shape
    assert found.probabilities.shape == (3, *case.grid.shape)
    assert np.allclose(found.probabilities.sum(axis=0), 1, atol=1e-4)


def test_pictures_of_predictions_and_of_prepared_volumes(
    trained: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    predictions = trained / "predictions/output_12.h5"
    page, one, film = (tmp_path / name for name in ("page.png", "one.png", "film.gif"))
    assert review([str(predictions), "--out", str(page)]) == 0
    assert "3 of 3 cases, mean Dice 0." in capsys.readouterr().out
    assert review([str(predictions), "--case", "1", "--out", str(one)]) == 0
    assert review([str(prepared / "test.h5"), "--case", "1", "--gif", "--out", str(film)]) == 0
    case = open_volumes(prepared / "test.h5").cases[1]
    with Image.open(film) as opened:
        assert opened.n_frames == case.grid.shape[0]
        assert opened.info["duration"] == 100
    with Image.open(page) as opened:
        pixels = np.asarray(opened.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 100
    assert review([str(prepared / "test.h5"), "--case", "9", "--out", str(one)]) == 2
    assert "0 to 1" in capsys.readouterr().err
    film.write_bytes(b"mine")
    assert review([str(prepared / "test.h5"), "--gif", "--out", str(film)]) == 2
    assert film.read_bytes() == b"mine"


def test_a_case_is_drawn_as_the_network_sees_it(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "case.png"
    config = str(prepared / "config.json")
    assert review(["--data", config, "--case", "2", "--out", str(picture)]) == 0
    assert "case_02, 3 crops" in capsys.readouterr().out and picture.stat().st_size > 10_000
    more = ["--data", config, "--part", "validation", "--case", "9", "--out", str(picture)]
    assert review(more) == 2 and "0 to 2" in capsys.readouterr().err


def weights(folder: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(folder / "checkpoints" / name)["state"]
    return state


def test_accumulated_batches_are_one_large_batch(prepared: Path, tmp_path: Path) -> None:
    """Two batches of one crop give the weights of one batch of two, the left-over one as well."""
    found = []
    for name, batch, accumulated in (("one", 2, 1), ("two", 1, 2)):
        content = configuration(prepared)
        neural = content["neural_network"]
        neural["data"]["batch_size"] = batch
        neural["data"]["patches"]["per_case"] = 1
        neural["data"].update(transforms=[], input_transforms=[])
        neural["optimizer"] = {
            "type": "sgd",
            "learning_rate": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "accumulate_batches": accumulated,
        }
        assert run(content, tmp_path / name)["exit_code"] == 0
        found.append(weights(tmp_path / name))
    for key, value in found[0].items():
        assert torch.allclose(value, found[1][key], atol=1e-5), key


def test_a_partial_group_makes_a_step_of_its_own_mean(prepared: Path, tmp_path: Path) -> None:
    """6 crops: batches of 2 in groups of two and one are batches of 4 and 2."""
    found = []
    for name, batch, accumulated in (("one", 4, 1), ("two", 2, 2)):
        content = configuration(prepared, num_epochs=1)
        data = content["neural_network"]["data"]
        data.update(transforms=[], input_transforms=[], batch_size=batch)
        data["patches"]["per_case"] = 1
        optimizer = {"type": "sgd", "learning_rate": 0.1, "accumulate_batches": accumulated}
        content["neural_network"]["optimizer"] = optimizer
        assert run(content, tmp_path / name)["exit_code"] == 0
        found.append(weights(tmp_path / name))
    for key, value in found[0].items():
        assert torch.allclose(value, found[1][key], atol=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    prepared: Path, tmp_path: Path, accumulated: int
) -> None:
    content = configuration(prepared, num_epochs=6)
    neural = content["neural_network"]
    neural["data"]["patches"]["per_case"] = 8
    neural["optimizer"] = {
        "type": "adam",
        "learning_rate": 0.005,
        "accumulate_batches": accumulated,
        "lr_scheduler": [
            {"type": "Polynomial"},
            {"type": "ExponentialDecay", "decay_rate": 0.5, "decay_steps": 40},
        ],
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(content, whole)["exit_code"] == 0
    config = cut.with_suffix(".json")
    config.write_text(json.dumps(content))
    command = [sys.executable, "-m", "trainer", f"--config={config}", "--run-folder", str(cut)]
    command += ["--threads", "1"]
    stops = 0
    for _ in range(8):
        more = ["--resume"] if stops else []
        process = subprocess.Popen([*command, *more], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        for line in process.stdout:
            if "Train Epoch" in line and stops < 3:
                time.sleep(0.2)
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
        if process.wait() == 0:
            break
        assert process.returncode == 3
        stops += 1
    assert process.returncode == 0 and stops >= 2
    resumed = [one["resumed_after"] for one in events(cut, "start")]
    assert any(one and one["batches"] for one in resumed), "none stopped within an epoch"
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(cut)[key]), key


def test_a_threshold_ends_a_training(prepared: Path, tmp_path: Path) -> None:
    content = configuration(prepared, num_epochs=30, evaluation={"stop_at": 0.05})
    result = run(content, tmp_path / "success")
    assert result["status"] == "success" and result["best"]["epoch"] < 30
    content = configuration(prepared, num_epochs=3, evaluation={"diverged_below": 0.999})
    result = run(content, tmp_path / "aborted")
    assert result["status"] == "aborted" and result["best"]["epoch"] == 1


def test_a_run_that_reached_its_threshold_trains_no_further_after_a_kill(
    prepared: Path, tmp_path: Path
) -> None:
    content = configuration(prepared, num_epochs=30, evaluation={"stop_at": 0.05})
    content["neural_network"]["mlperf_log"] = "mlperf.log"
    first = run(content, tmp_path / "run")
    before = weights(tmp_path / "run")
    (tmp_path / "run/result.json").unlink()  # killed before it was written
    again = run(content, tmp_path / "run", "--resume")
    assert again["status"] == "success" and again["best"] == first["best"]
    assert all(torch.equal(value, before[key]) for key, value in weights(tmp_path / "run").items())
    assert (tmp_path / "run/mlperf.log").read_text().count('"run_start"') == 1


def test_evaluations_are_due_as_mlperf_derives_them() -> None:
    """unet3d.md A9: start and interval in epochs, from samples."""
    from trainer.config import Evaluation

    asked = Evaluation(start_after_samples=168_000, every_samples=3_360)
    for samples, start, every in ((168, 1000, 20), (160, 1050, 21), (128, 1313, 27)):
        assert (asked.first(samples), asked.interval(samples)) == (start, every)
    due = [e for e in range(1, 2001) if asked.due(e, 2000, 168)]
    assert due[:3] == [1000, 1020, 1040] and due[-1] == 2000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers": {"network": "unet"}}, "is no network of volumes"),
        ({"layers": {"in_channels": 4}}, "4 in_channels, but the volumes have CT"),
        ({"layers": {"classes": 2}}, "2 classes, but the volumes have background, ball, shell"),
        ({"data": {"patches": {"size": [16, 18, 16]}}}, "multiples of 4"),
        ({"evaluation": {"window": {"size": [15, 16, 16]}}}, "multiples of 4"),
        ({"precision": "float16"}, "float16 on cpu"),
        ({"data": {"input_path": "nothing.h5"}}, "there is no such file"),
        (
            {"data": {"patches": None, "transforms": [], "input_transforms": []}},
            "needs data.target",
        ),
        ({"evaluation": {"window": {"size": [400, 400, 400]}}}, "the largest case has"),
    ],
)
def test_what_does_not_fit_volumes_is_told(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, told: str
) -> None:
    content = configuration(prepared)["neural_network"]
    layers = json.loads((prepared / "layers.json").read_text())
    if "layers" in change:
        layers = change["layers"] if "network" in change["layers"] else layers | change["layers"]
    (tmp_path / "layers.json").write_text(json.dumps(layers))
    content["layers"] = str(tmp_path / "layers.json")
    content["data"] |= change.get("data", {})
    content |= {k: v for k, v in change.items() if k not in ("layers", "data")}
    result = run({"neural_network": content}, tmp_path / "run")
    assert result["exit_code"] == 2 and told in result["reason"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"type": "images"}, "patches are of prepared volumes"),
        ({"transforms": [{"rotate": 10}]}, "rotate is of images"),
        ({"slicers": [{"sizes": [4, 4, 4]}]}, "no slicers"),
        ({"patches": {"size": [16, 16]}}, "patches.size"),
        ({"patches": {"size": [16, 16, 16], "foreground": 1.5}}, "patches.foreground"),
    ],
)
def test_wrong_keys_of_volumes_are_told(prepared: Path, data: Any, told: str) -> None:
    from trainer.errors import InputError

    content = configuration(prepared)
    content["neural_network"]["data"] |= data
    with pytest.raises(InputError, match=told):
        parse_config(content)


def test_two_classes_are_one_output(tmp_path: Path) -> None:
    folder = write_volumes(tmp_path / "prepared", classes=2)
    result = run(configuration(folder, num_epochs=1), tmp_path / "run")
    assert result["exit_code"] == 0 and set(result["evaluation"]["class_dice"]) == {"ball"}
    checkpoint = load_checkpoint(tmp_path / "run/checkpoints/best.pt")
    assert checkpoint["use"]["classes"] == 1 and checkpoint["use"]["volumes"]["kind"] == "test"


def test_the_base_of_the_fixture_is_a_configuration(prepared: Path) -> None:
    assert load_config(prepared / "config.json").data.patches
