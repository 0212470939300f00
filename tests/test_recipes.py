"""The four published recipes (configs/), run small on phantoms from raw files to scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.studies import ROOT
from trainer.__main__ import main
from trainer.config import load_config, parse_config
from trainer.config.override import assign
from trainer.networks.description import read_network
from trainer.predict import main as predict
from trainer.prepare.__main__ import main as prepare

LEAST_DICE = 0.5

RECIPES: dict[str, dict[str, Any]] = {
    "kits19": {
        "phantoms": ("kits19", "--cases", "10", "--size", "64"),
        "prepare": ("kits19",),
        "network": {"widths": [8, 16, 32, 32]},
        "changes": {
            "num_epochs": 36,
            "data.batch_size": 4,
            "data.patches.size": [32, 32, 32],
            "data.patches.per_case": 12,
            # Of the crops' size, as published: instances of another size are normalised otherwise.
            "evaluation.window.size": [32, 32, 32],
            "evaluation.every_samples": None,
            "evaluation.start_after_samples": None,
            "evaluation.start_at": 32,
            "evaluation.every": 4,
            "optimizer.lr_scheduler.num_epochs": 4,
            "optimizer.learning_rate": 0.02,
            "seed": 0,
        },
    },
    "lits": {
        "phantoms": ("lits", "--cases", "6", "--size", "48"),
        "prepare": ("lits", "--size", "24", "--resize", "36"),
        "network": {"width": 8, "depth": 2},
        "changes": {
            "num_epochs": 6,
            "data.patches.size": [24, 24, 24],
            "data.batch_size": 8,
            "optimizer.learning_rate": 0.005,
            "optimizer.lr_scheduler.decay_steps": 81,
        },
    },
    "brain_tumours": {
        "phantoms": ("msd", "--cases", "8", "--size", "40"),
        "prepare": (
            *("msd", "--labels", "whole tumour=1,2,3", "--spacing", "none"),
            *("--order", "file", "--crop", "0:0,0:0,2:1"),
        ),
        "network": {"width": 4},
        "changes": {
            "num_epochs": 18,
            "data.patches.size": [40, 40, 32],
            "data.patches.per_case": 4,
            "optimizer.learning_rate": 0.005,
        },
    },
    "brain_slices": {
        "phantoms": ("brats", "--cases", "6", "--size", "48"),
        "prepare": ("brats-slices", "--size", "48"),
        "network": {"width": 8, "depth": 3, "dropout": [0, 0, 0.2, 0.2]},
        "changes": {"num_epochs": 30, "data.batch_size": 8, "data.test_batch_size": 16},
    },
}
PATHS = ("input_path", "target_path", "test_input_path", "test_target_path")


def recipe(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / f"configs/{name}.json").read_text())
    return content


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_from_raw_files_to_scores(name: str, tmp_path: Path) -> None:
    how = RECIPES[name]
    kind, *options = how["phantoms"]
    assert prepare(["phantoms", kind, str(tmp_path / "raw"), *options]) == 0
    kind, *options = how["prepare"]
    assert prepare([kind, str(tmp_path / "raw"), str(tmp_path / "data"), *options]) == 0
    content = recipe(name)
    neural = content["neural_network"]
    network = json.loads((ROOT / neural["layers"]).read_text()) | how["network"]
    (tmp_path / "layers.json").write_text(json.dumps(network))
    neural["layers"] = str(tmp_path / "layers.json")
    neural["data"] |= {
        key: neural["data"][key].replace("data/", f"{tmp_path}/data/")
        for key in PATHS
        if key in neural["data"]
    }
    neural["data"]["test_output_path"] = "predictions/"
    for key, value in how["changes"].items():
        assign(neural, key, value)
    (tmp_path / "config.json").write_text(json.dumps(content))
    run = tmp_path / "run"
    options = ("--run-folder", str(run), "--threads", "1")  # sums differ with their number
    assert main([f"--config={tmp_path / 'config.json'}", *options]) == 0
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "epoch"]
    lines = (run / "out_train.txt").read_text().splitlines()
    first = float(lines[0].split()[3])
    assert losses[-1] < first / 2, (first, losses)
    scores = [e["foreground_dice"] for e in events if e.get("foreground_dice") is not None]
    assert min(scores[-2:]) >= LEAST_DICE, scores
    for left in ("checkpoints", "model"):
        if (run / left).is_dir():
            assert (run / left / "best.pt").exists() and (run / left / "last.pt").exists()
    epoch = len(losses)
    assert (run / f"predictions/output_{epoch}.h5").exists()
    if name == "brain_slices":
        found = np.load(run / "predictions/msks_test_predictions.npy")
        images = np.load(tmp_path / "data/imgs_test.npy", mmap_mode="r")
        assert found.shape == (*images.shape[:3], 1) and found.dtype == np.float32
        _predict_slices(run / "model/last.pt", tmp_path, found)


def _predict_slices(model: Path, folder: Path, expected: np.ndarray) -> None:
    """Of the arrays, as the run had it; of the raw scans, labels on their own voxels."""
    import nibabel

    arrays, scans = folder / "of_arrays", folder / "of_scans"
    source = folder / "data/imgs_test.npy"
    assert predict([str(source), "--model", str(model), "--out", str(arrays)]) == 0
    found = np.load(arrays / "imgs_test_predictions.npy")
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-3
    assert predict([str(folder / "raw"), "--model", str(model), "--out", str(scans)]) == 0
    truths = sorted((folder / "raw").rglob("*_seg.nii.gz"))
    scores = []
    for path in truths:
        name = path.name.removesuffix("_seg.nii.gz")
        label, truth = nibabel.load(scans / f"masks/{name}.nii.gz"), nibabel.load(path)
        assert label.shape == truth.shape and np.allclose(label.affine, truth.affine)
        p, t = np.asarray(label.dataobj) > 0, np.asarray(truth.dataobj) > 0
        scores.append(2 * (p & t).sum() / (p.sum() + t.sum()))
    assert len(scores) == 6 and np.mean(scores) > LEAST_DICE, scores


PUBLISHED: dict[str, dict[str, Any]] = {
    "kits19": {
        "num_epochs": 4000,
        "data.batch_size": 2,
        "data.patches.size": [128, 128, 128],
        "data.patches.foreground": 0.4,
        "data.patches.around": "component",
        "data.input_transforms[0].random_factor.low": 1.7,
        "data.input_transforms[0].random_factor.high": 2.3,
        "data.input_transforms[0].random_factor.probability": 0.1,
        "data.input_transforms[1].random_noise.std": 0.1,
        "evaluation.stop_at": 0.908,
        "evaluation.diverged_below": 1e-6,
        "evaluation.window.overlap": 0.5,
        "evaluation.window.fill": -2.2,
        "optimizer.learning_rate": 0.8,
        "optimizer.momentum": 0.9,
        "optimizer.nesterov": True,
        "optimizer.lr_scheduler.num_epochs": 200,
        "optimizer.lr_scheduler.init_learning_rate": 1e-4,
    },
    "lits": {
        "num_epochs": 10,
        "data.batch_size": 32,
        "data.patches.size": [128, 128, 128],
        "optimizer.learning_rate": 1e-4,
        "optimizer.lr_scheduler.decay_rate": 0.5,
        "optimizer.lr_scheduler.decay_steps": 5400 // 32,
    },
    "brain_tumours": {
        "num_epochs": 20,
        "data.batch_size": 2,
        "data.patches.size": [240, 240, 152],
        "loss.eps": 1.0,
    },
    "brain_slices": {
        "num_epochs": 10,
        "data.batch_size": 1024,
        "optimizer.learning_rate": 5e-4,
    },
}
"""specs of the published systems: what their own files and defaults say."""

PARAMETERS = {
    "kits19": 31_190_243,
    "lits": 19_073_795,
    "brain_tumours": 351_809,
    "brain_slices": 7_759_521,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_says_what_was_published(name: str) -> None:
    from trainer.config.override import value_at
    from trainer.networks.build import build, parameter_counts
    from trainer.networks.description import fitted

    config = load_config(ROOT / f"configs/{name}.json")
    content = recipe(name)["neural_network"]
    for key, value in PUBLISHED[name].items():
        assert value_at(content, key) == value, key
    channels = 4 if name == "brain_tumours" else 1
    classes = 3 if name in ("kits19", "lits") else 2
    network = fitted(read_network(ROOT / str(config.layers)), channels, classes)
    assert parameter_counts(build(network))[1] == PARAMETERS[name]


def test_the_learning_rates_of_the_recipes() -> None:
    from trainer.schedules import factor

    kits = load_config(ROOT / "configs/kits19.json").optimizer
    assert kits
    rates = [0.8 * factor(kits.schedules, 0.8, epoch - 1, 0, 4000) for epoch in (1, 100, 200, 900)]
    assert rates == pytest.approx([0.0040995, 0.40005, 0.8, 0.8], abs=1e-12)
    lits = load_config(ROOT / "configs/lits.json").optimizer
    assert lits
    halves = [factor(lits.schedules, 1e-4, 0, steps, 10) for steps in (0, 84, 168, 336)]
    assert halves == pytest.approx([1, 0.5**0.5, 0.5, 0.25], abs=1e-12)


def test_the_published_grid_has_its_32_points() -> None:
    from study.space_file import read_space

    space = read_space(ROOT / "configs/brain_tumours_space.json")
    points = space.points()
    assert len(points) == 32 == len({json.dumps(point, sort_keys=True) for point in points})
    assert {point["layers.normalization"] for point in points} == {"batch", "group"}
    content = recipe("brain_tumours")
    for point in points:
        for key, value in point.items():
            if not key.startswith("layers."):
                assign(content["neural_network"], key, value)
        parse_config(content)
