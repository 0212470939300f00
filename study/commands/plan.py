"""When a study would end: one measured step of a trial, where trials would run, extrapolated."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from launchers import Job, Launcher
from launchers.choice import choose_launcher
from launchers.run_folder import device_inside, trainer_options
from study import failures
from study.data_kinds import AnyDataset, check_network
from study.ready import inputs_of, make_ready
from study.records import SPLIT_FILE, run_name
from study.render import network_of, render
from study.report import print_grid
from study.resources import megabytes
from study.settings import Settings
from study.slots import Slot
from study.space import first_points
from study.start_weights import StartWeights
from study.view import duration
from trainer.errors import InputError, RmlError
from trainer.events import RESULT_FILE
from trainer.files import write_json

POLL_SECONDS = 0.05
WORDS = {
    "images": ("an image", "images"),
    "volumes": ("a case", "crops"),
    "slices": ("a slice", "slices"),
}
"""What is read and evaluated, and what a training batch is of."""


class MeasureFailed(RmlError):
    """The step ended without a measurement, and no input is to blame."""

    exit_code = 1


@dataclass(frozen=True)
class Measured:
    """What the trainer told (trainer/measure.py), and the seconds of starting it beside that."""

    told: dict[str, Any]
    start_seconds: float

    def epoch_seconds(self) -> float:
        """An epoch: training, statistics, evaluation, and a checkpoint (of the best so far)."""
        s, images = self.told["seconds"], self.told["images"]
        reading = 0.0
        if self.told["reads_every_epoch"]:  # by one thread
            reading = s["read_image"] * self.told["threads"] * sum(images.values())
        return float(
            math.ceil(self.told["samples"] / self.told["batch_size"]) * s["step"]
            + images["batch_norm"] * s["batch_norm_image"]
            + images["evaluation"] * s.get("evaluate_image", 0.0)
            + s["checkpoint"]
            + reading
        )

    def fixed_seconds(self) -> float:
        """Of a trial beside its epochs: start, network, reading every image and mask once."""
        s, images = self.told["seconds"], self.told["images"]
        first = s.get("first_evaluate_image", 0.0) - s.get("evaluate_image", 0.0)
        reading = 0.0
        if not self.told["reads_every_epoch"]:
            reading = s["read_image"] * (images["training"] + images["evaluation"])
        fixed = self.start_seconds + s["build"] + reading + max(0.0, first) * images["evaluation"]
        return float(fixed)

    def trial_seconds(self, epochs: int) -> float:
        """A trial that is not pruned."""
        return self.fixed_seconds() + epochs * self.epoch_seconds()

    def study_seconds(self, trials: int, epochs: int, test_images: int) -> float:
        """All trials one after another, none pruned, and the best model on the test images."""
        s = self.told["seconds"]
        test = s["read_image"] + s.get("first_evaluate_image", 0.0)
        at_end = self.start_seconds + s["build"] + test_images * test
        return float(trials * self.trial_seconds(epochs) + at_end)


def plan_study(settings: Settings, *, here: Path, console: Console) -> int:
    """Prints what the study would take, after one measured step in a folder that goes again."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if settings.trial_command:
        found = "is not known: only the program's own trainer measures a step"
        raise InputError("--trial-command", found, "plan without it")
    check_network(settings)
    place = choose_launcher(
        settings.launcher, settings.docker_image, settings.docker_image_given, settings.gpu
    )
    if place.foreign:
        where = f"--docker-image {settings.docker_image}"
        raise InputError(where, "is a foreign image, which measures nothing", "an image of ours")
    try:
        temporary = TemporaryDirectory(prefix=".plan-", dir=here)
    except OSError as error:
        raise InputError(str(here), f"cannot be written ({error.strerror})") from None
    with temporary as name:
        folder = Path(name)
        ready = make_ready(settings, False, here, folder, console, place)
        ready.print(place, console)
        write_json(folder / SPLIT_FILE, ready.split.model_dump())
        ready.start.put_in_place()
        inputs = inputs_of(ready.dataset, folder / SPLIT_FILE, ready.start)
        with console.status("measuring one step …"):
            measured = measure_step(
                ready.settings,
                ready.dataset,
                ready.start,
                ready.slot,
                place.launcher,
                inputs,
                folder,
            )
    tests = len(ready.split.parts.test)
    print_plan(settings, measured, tests, ready.disk_needed, ready.disk_free, console)
    return 0


def measure_step(
    settings: Settings,
    dataset: AnyDataset,
    start: StartWeights,
    slot: Slot,
    launcher: Launcher,
    inputs: tuple[Path, ...],
    folder: Path,
) -> Measured:
    """Runs the trainer's measurement as trial 0 in `folder`, which has the split.

    Raises InputError where a trial would end with a mistake of input, MeasureFailed otherwise.
    """
    run_folder = folder / run_name(0)
    run_folder.mkdir()
    point = first_points(settings)[0]
    start.write_network(run_folder, network_of(point, settings, start.layers))
    content = render(
        point,
        settings,
        dataset,
        layers="layers.json",
        split=folder / SPLIT_FILE,
        load=start.load,
        foreign=False,
    )
    write_json(run_folder / "config.json", content)
    options = trainer_options(device_inside(slot.device), slot.threads, measure=True)
    job = Job(
        run_folder=run_folder,
        study=settings.study_name,
        trial=0,
        device=slot.device,
        threads=slot.threads,
        inputs=inputs,
        cores=slot.cores,
        module=("trainer", *options),
    )
    began = time.monotonic()
    running = launcher.launch(job)
    try:
        while (exit_code := running.exit_code) is None:
            running.poll()
            time.sleep(POLL_SECONDS)
    except BaseException:
        running.stop(grace_seconds=0)
        raise
    passed = time.monotonic() - began
    reason = failures.reason_of(run_folder, exit_code)
    if failures.is_users_mistake(exit_code):
        raise InputError("", f"the measured step ended with a mistake of input\n{reason}")
    if exit_code != 0:
        log = failures.last_lines(run_folder)
        raise MeasureFailed(f"the measured step failed: {reason}\n{log}")
    told = json.loads((run_folder / RESULT_FILE).read_text(encoding="utf-8"))["measured"]
    return Measured(told, max(0.0, passed - told["measured_seconds"]))


def print_plan(
    settings: Settings,
    measured: Measured,
    test_images: int,
    disk_needed: int,
    disk_free: int,
    console: Console,
) -> None:
    """What was measured, and what follows from it for the study."""
    told, s = measured.told, measured.told["seconds"]
    study = measured.study_seconds(settings.num_trials, settings.num_epochs, test_images)
    limited = settings.timeout_seconds is not None and settings.timeout_seconds < study
    seconds = settings.timeout_seconds if limited and settings.timeout_seconds else study
    ends = datetime.now() + timedelta(seconds=seconds)
    one, several = WORDS[settings.kind]
    steps = f"{s['step']:.3g} s a step of {told['batch_size']} {several} on {told['device']}"
    rest = f"evaluation {s.get('evaluate_image', 0.0):.2g} s, reading {s['read_image']:.2g} s"
    memory = f"about {megabytes(told['memory_bytes'])}"
    if told["gpu_memory_bytes"]:
        memory += f", and {megabytes(told['gpu_memory_bytes'])} of the GPU"
    pruned = "; pruning makes it shorter" if settings.prune else ""
    each_epoch = " (too many to keep in memory: read in every epoch)"
    rows = [
        ("Measured", f"{steps}; {one}: {rest}{each_epoch * told['reads_every_epoch']}"),
        (
            "Start of a trial",
            f"{duration(measured.fixed_seconds())}, with reading the {settings.noun}",
        ),
        ("An epoch", f"{measured.epoch_seconds():.3g} s"),
        ("A trial", f"about {duration(measured.trial_seconds(settings.num_epochs))}{pruned}"),
        ("The study", f"about {duration(study)}" + (", cut by --timeout" if limited else "")),
        ("It would end", f"{ends:%a %d %b %Y %H:%M}, if it began now"),
        ("Memory of a trial", memory),
        ("Disk", f"about {megabytes(disk_needed)} needed, {megabytes(disk_free)} free"),
    ]
    print_grid(rows, console)
