"""`predict FOLDER`: a model on new images, in a closed container or a process as trials are.

run_predict(Predict(source, model, out, …), console)  -> exit code
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from launchers import Job, Running
from launchers.choice import Place, choose_launcher
from launchers.run_folder import device_inside
from study.interruption import Interrupted, Interruption
from study.slots import choose_slot
from trainer.errors import InputError, RmlError, printable
from trainer.events import METRICS_FILE, RUN_FILES, STDERR_FILE
from trainer.files import read_text
from trainer.model import model_file
from trainer.networks.weights import sha256
from trainer.predict_output import check_output, read_record, told
from trainer.predict_sources import check_source

POLL_SECONDS = 0.1
STOP_SECONDS = 10.0


class PredictionFailed(RmlError):
    """The run ended for a reason that is no mistake of input."""

    exit_code = 1


@dataclass(frozen=True)
class Predict:
    """What to predict, with which model, into which folder, and where that runs. Absolute paths."""

    source: Path
    model: Path
    out: Path
    launcher: str
    docker_image: str
    docker_image_given: bool
    gpu: bool
    threads: int | None
    trust_code: bool
    mirror: bool


def run_predict(asked: Predict, console: Console) -> int:
    """Predicts every image of a folder; the exit code. Raises InputError for a mistake of input."""
    file = model_file(asked.model)
    check_source(asked.source, asked.out)
    place = choose_launcher(asked.launcher, asked.docker_image, asked.docker_image_given, asked.gpu)
    if place.foreign:
        found = "is a foreign image: it has no trainer.predict"
        raise InputError(f"--docker-image {asked.docker_image}", found, "an image by make image")
    new = not asked.out.exists()
    left = RUN_FILES if (asked.out / METRICS_FILE).exists() else ()  # by a run that was killed
    check_output(asked.out, asked.source, sha256(file), left)
    try:
        with _alone(asked.out):
            for name in left:
                (asked.out / name).unlink(missing_ok=True)
            return _run(asked, file, place, console)
    finally:
        if new and asked.out.exists() and not any(asked.out.iterdir()):
            asked.out.rmdir()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """No other prediction writes into the folder meanwhile; raises InputError where one does."""
    folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(folder)
        fix = "wait for it, or name another folder with --out"
        raise InputError(str(out), "another prediction writes into it", fix=fix) from None
    try:
        yield
    finally:
        os.close(folder)


def _run(asked: Predict, file: Path, place: Place, console: Console) -> int:
    """Runs the prediction where trials run, and tells of it; the exit code."""
    slot = choose_slot(asked.gpu, asked.threads)
    # A container lets nothing out: there the code of a network of somebody's own may run.
    trusted = asked.trust_code or place.launcher.name == "docker"
    module = [
        *("trainer.predict", str(asked.source), "--model", str(asked.model)),
        *("--out", ".", "--in-run-folder", "--device", device_inside(slot.device)),
        *("--threads", str(slot.threads), *(["--trust-code"] if trusted else [])),
        *(["--mirror"] if asked.mirror else []),
    ]
    job = Job(
        run_folder=asked.out,
        study="predict",
        trial=0,
        device=slot.device,
        threads=slot.threads,
        inputs=(asked.source, *([asked.model] if asked.model.is_dir() else _files_of(file))),
        cores=slot.cores,
        module=tuple(module),
    )
    console.print(f"{place.launcher.name}: {place.why}", markup=False, soft_wrap=True)
    try:
        with Interruption() as interruption:
            running = place.launcher.launch(job)
            interruption.running = running
            code, reason = _watch(running, interruption, console)
        errors = _last_line(asked.out / STDERR_FILE)
    except Interrupted:
        console.print("interrupted; the same command goes on")
        return 130
    finally:
        for name in RUN_FILES:
            (asked.out / name).unlink(missing_ok=True)
    if code == InputError.exit_code:
        raise InputError("", reason or errors)
    if code != 0:
        raise PredictionFailed(f"the prediction ended with exit code {code}: {reason or errors}")
    for line in told(read_record(asked.out), _near(asked.out)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _near(path: Path) -> Path:
    """A path as one would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _watch(running: Running, interruption: Interruption, console: Console) -> tuple[int, str]:
    """Shows progress until the run has ended: its exit code, and its own words for an error."""
    reason = ""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("loading the model", total=None)
        while True:
            exit_code = running.exit_code  # before the poll: nothing comes after it
            for event in running.poll():
                if event.get("event") == "image":
                    shown = {"total": event["images"], "completed": event["done"]}
                    progress.update(task, description="images", **shown)
                elif event.get("event") == "end":
                    reason = str(event["reason"])
            if exit_code is not None:
                return exit_code, reason
            if interruption.asked:
                running.stop(STOP_SECONDS)
                raise Interrupted
            time.sleep(POLL_SECONDS)


def _files_of(checkpoint: Path) -> list[Path]:
    """A checkpoint that is not in a folder of its own, and the Python files beside it."""
    return [checkpoint, *sorted(checkpoint.parent.glob("*.py"))]


def _last_line(path: Path) -> str:
    """The last line that a run said on its standard error."""
    with suppress(OSError):
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        return printable(lines[-1]) if lines else "no reason was told"
    return "no reason was told"
