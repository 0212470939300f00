"""Tiny made-up data sets and runs of the trainer, shared by the tests."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.stopping import PR_SET_PDEATHSIG

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {"network": "unet", "width": 4, "depth": 2, "in_channels": 3, "activation": "sigmoid"}
SIDE = 16
TRAINING, TEST, EMPTY = 7, 5, 2
"""So many images; the test image with the number EMPTY has no foreground."""


class Ended(NamedTuple):
    """A run of the trainer that ended."""

    code: int
    folder: Path
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "epoch"]

    @property
    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return content


def draw(
    rng: np.random.Generator, height: int, width: int, empty: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A dark noisy image with a bright rectangle, and the rectangle's mask."""
    image = rng.integers(0, 90, (height, width)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    if not empty:
        top, left = int(rng.integers(1, height // 2)), int(rng.integers(1, width // 2))
        mask[top : top + height // 3, left : left + width // 3] = 255
        image[mask > 0] += 130
    return image, mask


def make_images(folder: Path, count: int, seed: int, empty: tuple[int, ...] = ()) -> None:
    """folder/inputs and folder/targets with images of three sizes, none of them square."""
    rng = np.random.default_rng(seed)
    for part in ("inputs", "targets"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        image, mask = draw(rng, 20 + 4 * (number % 3), 26, number in empty)
        Image.fromarray(image).save(folder / "inputs" / f"case_{number}.png")
        Image.fromarray(mask).save(folder / "targets" / f"case_{number}.png")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with inputs/ and targets/, and layers.json; not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    make_images(folder / "train", TRAINING, seed=1)
    make_images(folder / "test", TEST, seed=2, empty=(EMPTY,))
    (folder / "layers.json").write_text(json.dumps(LAYERS))
    return folder


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section; a None takes a key away."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


@pytest.fixture(scope="session")
def configuration(data: Path) -> Callable[..., dict[str, Any]]:
    """The content of a configuration that trains on `data`, with the sections' changes."""
    base = {
        "layers": str(data / "layers.json"),
        "data": {
            "type": "images",
            "input_path": str(data / "train/inputs"),
            "target_path": str(data / "train/targets"),
            "test_input_path": str(data / "test/inputs"),
            "test_target_path": str(data / "test/targets"),
            "batch_size": 3,
            "test_batch_size": 2,
            "transforms": [{"resize": [SIDE, SIDE]}],
        },
        "optimizer": {"type": "adam", "learning_rate": 0.02},
        "loss": {"function": "bce", "source": "sigmoid"},
    }

    def build(**changes: Any) -> dict[str, Any]:
        return {"neural_network": merged(base, changes)}

    return build


@contextlib.contextmanager
def own_process_state() -> Iterator[None]:
    """What a run changes in its process is put back: folder, signals, threads."""
    import torch

    folder, threads, environment = Path.cwd(), torch.get_num_threads(), dict(os.environ)
    handled = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in handled]
    try:
        yield
    finally:
        os.chdir(folder)
        torch.set_num_threads(threads)
        for number, handler in zip(handled, handlers, strict=True):
            signal.signal(number, handler)
        if sys.platform == "linux":  # a parent that ends does not end the tests
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
        for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
            if name not in environment:
                os.environ.pop(name, None)


def run_here(folder: Path, content: Any, *options: str) -> Ended:
    """Runs the trainer in this process, with `folder` as its run folder."""
    from trainer.__main__ import main

    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_name(f"{folder.name}.json")
    config.write_text(json.dumps(content))
    out, err = io.StringIO(), io.StringIO()
    arguments = ["--config", str(config), "--run-folder", str(folder), "--threads", "1", *options]
    with own_process_state(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments, "--device", "cpu"])
    return Ended(code, folder, out.getvalue(), err.getvalue())


@pytest.fixture
def own_state() -> Iterator[None]:
    """Signal handlers and the like are put back after the test."""
    with own_process_state():
        yield


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Ended]:
    """train(configuration(...), name="run", *options): a run in this process."""

    def run(content: Any, name: str = "run", *options: str) -> Ended:
        return run_here(tmp_path / name, content, *options)

    return run


@pytest.fixture(scope="session")
def trained(
    configuration: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Ended:
    """A run of five epochs that writes everything; not to be changed."""
    exponential = {"type": "Exponential", "gamma": 0.9}
    decay = {"type": "ExponentialDecay", "decay_rate": 0.9, "decay_steps": 20}
    content = configuration(
        num_epochs=5,
        outfile="out.v1.txt",
        seed=3,
        checkpoints={"save": "model", "interval": 2},
        data={
            "test_output_path": "predictions/",
            "transforms": [
                {"resize": [SIDE, SIDE]},
                {"random_horizontal_flip": 0.5},
                {"random_rotate": 10},
            ],
            "input_transforms": [{"normalize": {"mean": 0.25, "std": 0.5}}],
        },
        optimizer={"lr_scheduler": [exponential, decay]},
    )
    ended = run_here(tmp_path_factory.mktemp("trained") / "run", content)
    assert ended.code == 0, ended.err
    return ended


def environment() -> dict[str, str]:
    """Of a subprocess: this project, one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """python("-m", "trainer", ..., cwd=DIR): a subprocess that ended."""

    def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """started("-m", "trainer", ...): a subprocess that runs; killed at the end of the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(kilobytes): a folder on a disk of that size; skips where none can be mounted."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{kilobytes}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no permission to mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)
