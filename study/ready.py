"""A study that could begin: its data read, its split drawn, its weights found; nothing written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from launchers.choice import Place
from study.dataset import Dataset, read_dataset
from study.foreign import check_foreign
from study.records import SPLIT_FILE
from study.report import print_settings
from study.resources import UNKNOWN_PARAMETERS, check_disk, describe, disk_needed_bytes
from study.settings import Settings
from study.slots import Slot, choose_slot
from study.split import make_split
from study.start_weights import StartWeights, find_start_weights
from trainer.data.folders import Layout
from trainer.data.split import Split, read_split
from trainer.errors import InputError


class Ready(NamedTuple):
    """A study that could begin: all that is decided before anything is written or started."""

    settings: Settings
    dataset: Dataset
    split: Split
    slot: Slot
    start: StartWeights
    network_size: dict[str, int] | None
    disk_needed: int
    disk_free: int

    def print(self, place: Place, console: Console) -> None:
        """The table of its settings."""
        print_settings(
            self.settings,
            place,
            self.slot,
            self.dataset,
            self.split,
            self.start,
            self.network_size,
            self.disk_needed,
            self.disk_free,
            console,
        )


def make_ready(
    settings: Settings, resume: bool, here: Path, folder: Path, console: Console, place: Place
) -> Ready:
    """Reads the data, draws the split (or takes that of the study to resume), and decides."""
    with console.status("reading the data …") as status:
        dataset = read_dataset(
            settings.data,
            list(settings.classes),
            lambda done, total: status.update(f"reading the data: {done}/{total}"),
        )
    if settings.select_on == "test" and not dataset.test_has_truth:
        raise InputError("--select-on test", "the test images have no masks", "validation")
    if place.foreign:
        check_foreign(settings, dataset)
    size = None if settings.trial_command else describe(settings.layers)
    needed = disk_needed_bytes(size["parameters"] if size else UNKNOWN_PARAMETERS, settings)
    free = check_disk(here, needed)
    slot = choose_slot(settings.gpu, settings.threads)
    start = find_start_weights(settings, dataset, folder)
    settings = replace(settings, weights=start.decided)
    split_file = folder / SPLIT_FILE
    if resume and split_file.exists():
        split = read_split(split_file)
    else:
        split = make_split(dataset, settings)
    return Ready(settings, dataset, split, slot, start, size, needed, free)


def inputs_of(layout: Layout, split_file: Path | None, start: StartWeights) -> tuple[Path, ...]:
    """What a trial reads outside its run folder."""
    folders = (layout.inputs, layout.targets, layout.test_inputs, layout.test_targets)
    inputs = [folder.resolve() for folder in folders if folder]
    inputs += [split_file] if split_file else []
    return (*inputs, *start.files)
