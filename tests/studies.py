"""Whole studies for tests: small data, the command line as a user types it, a fake trainer."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launchers import Job
from launchers.choice import Place
from launchers.fake import FakeLauncher
from launchers.image import source_hash

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--num-epochs", "2", "--image-size", "16", "--batch-size", "4", "--launcher", "process")


def layers(folder: Path) -> Path:
    """A tiny network file."""
    path = folder / "tiny.json"
    network = {"network": "unet", "width": 2, "depth": 2, "activation": "sigmoid"}
    path.write_text(json.dumps(network))
    return path


def make_part(folder: Path, images: int, seed: int, value: int = 255, empty: int = 2) -> None:
    """inputs/ and targets/: noise with a bright square; the last `empty` masks have none."""
    generator = np.random.default_rng(seed)
    for name in ("inputs", "targets"):
        (folder / name).mkdir(parents=True)
    for number in range(images):
        image = generator.integers(0, 100, (24, 32)).astype(np.uint8)
        mask = np.zeros((24, 32), np.uint8)
        if number < images - empty:
            top, left = generator.integers(0, 12, 2)
            mask[top : top + 10, left : left + 12] = value
            image[mask > 0] += 120
        Image.fromarray(image).save(folder / "inputs" / f"image_{number:03d}.png")
        Image.fromarray(mask).save(folder / "targets" / f"image_{number:03d}.png")


def make_data(folder: Path, images: int = 16, test: int = 6, value: int = 255) -> Path:
    """train/ and test/ in the published layout."""
    make_part(folder / "train", images, 1, value)
    make_part(folder / "test", test, 2, value)
    return folder


def make_class_folders(folder: Path) -> Path:
    """benign/ and normal/ with masks beside the images, one image with two of them."""
    make_part(folder / "flat", 18, 3, empty=4)
    for number, image in enumerate(sorted((folder / "flat/inputs").iterdir())):
        kind = "benign" if number < 14 else "normal"
        (folder / kind).mkdir(exist_ok=True)
        name = f"{kind} ({number})"
        image.rename(folder / kind / f"{name}.png")
        mask = np.asarray(Image.open(folder / "flat/targets" / image.name))
        if number == 0:  # the left and the right half in masks of their own
            left, right = mask.copy(), mask.copy()
            left[:, 12:], right[:, :12] = 0, 0
            Image.fromarray(right).save(folder / kind / f"{name}_mask_1.png")
            mask = left
        Image.fromarray(mask).convert("RGBA").save(folder / kind / f"{name}_mask.png")
    shutil.rmtree(folder / "flat")
    return folder


def our_image() -> str:
    """The container image ($IMAGE, else rml-trainer); skips where it is not of this code."""
    name = os.environ.get("IMAGE", "rml-trainer")
    why = ""
    if subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        why = "no Docker engine answers"
    else:
        label = '{{index .Config.Labels "org.rml-optimization.source"}}'
        inspect = ["docker", "image", "inspect", "-f", label, name]
        told = subprocess.run(inspect, capture_output=True, text=True)
        if told.stdout.strip() != source_hash():
            why = f"the image {name} is not of this code: make image"
    if why and os.environ.get("RML_REQUIRE_DOCKER"):
        pytest.fail(why)
    if why:
        pytest.skip(why)
    return name


def driver(
    here: Path, *options: str, environment: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`python rml_optimization.py …` typed in the folder `here`."""
    return subprocess.run(
        [sys.executable, str(ROOT / "rml_optimization.py"), *options],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "140", **(environment or {})},
    )


def module(here: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`python -m …` typed in the folder `here`."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140"},
    )


def trainer(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m trainer …` typed in the folder `here`."""
    return module(here, "trainer", *arguments)


def typed_here(here: Path, *options: str) -> tuple[int, str, str]:
    """The same in this process, which spares the imports: exit code, stdout, stderr."""
    import rml_optimization

    out, err, folder, arguments = io.StringIO(), io.StringIO(), Path.cwd(), sys.argv
    os.chdir(here)
    sys.argv = ["rml_optimization.py", *options]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            rml_optimization.main()
        return 0, out.getvalue(), err.getvalue()
    except SystemExit as end:
        return int(end.code or 0), out.getvalue(), err.getvalue()
    finally:
        os.chdir(folder)
        sys.argv = arguments


def image_scores(names: Iterable[str]) -> list[dict[str, Any]]:
    """Scores of images for a fake result."""
    own = {"tp": 50, "fp": 10, "fn": 10, "tn": 100}
    scores = {"empty": False, "dice": 5 / 6, "iou": 5 / 7, **own, "own": own}
    return [{"name": name, **scores} for name in names]


def fake_trainer(epochs: Callable[[dict[str, Any]], list[float] | int]) -> Callable[[Job], Any]:
    """A script for FakeLauncher: `epochs(config)` gives accuracies, or an exit code to fail with.

    It writes what a trainer would: checkpoints and result.json, also for the test images.
    """

    def script(job: Job) -> Iterator[dict[str, Any] | int]:
        config = json.loads((job.run_folder / "config.json").read_text())["neural_network"]
        split = json.loads(Path(config["data"]["split"]).read_text())
        if "input_path" not in config["data"]:
            scored = {"evaluated_on": "test", "images": image_scores(split["parts"]["test"])}
            result = {"exit_code": 0, "reason": "done", "evaluation": scored}
            (job.run_folder / "result.json").write_text(json.dumps(result))
            yield 0
            return
        (job.run_folder / "checkpoints").mkdir()
        for name in ("best.pt", "last.pt"):
            (job.run_folder / "checkpoints" / name).write_text(f"{job.trial}")
        told = epochs(config)
        if isinstance(told, int):
            result = {"exit_code": told, "reason": f"planned failure {told}"}
            (job.run_folder / "result.json").write_text(json.dumps(result))
            yield told
            return
        for epoch, accuracy in enumerate(told, start=1):
            if isinstance(accuracy, int):  # it ends here, with that exit code
                yield accuracy
                return
            yield {
                "event": "epoch",
                "epoch": epoch,
                "epochs": config["num_epochs"],
                "loss": 1 - accuracy,
                "accuracy": accuracy,
                "foreground_dice": accuracy / 2,
                "iou": accuracy / 3,
                "seconds": 1.0,
            }
        scored = {"evaluated_on": "validation", "images": image_scores(["a", "b"])}
        result = {"exit_code": 0, "reason": "done", "evaluation": scored}
        (job.run_folder / "result.json").write_text(json.dumps(result))
        yield 0

    return script


def fake_place(epochs: Callable[[dict[str, Any]], list[float] | int]) -> Place:
    """A place whose trials are played by `fake_trainer`."""
    return Place(FakeLauncher(fake_trainer(epochs)), "a test")
