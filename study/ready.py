"""A study that could begin: its data read, its split drawn, its weights found; nothing written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from launchers.choice import Place
from study.data_kinds import AnyDataset, read_data
from study.dataset import Dataset
from study.foreign import check_foreign
from study.records import SPLIT_FILE
from study.render import network_of, render
from study.report import print_settings
from study.resources import UNKNOWN_PARAMETERS, check_disk, describe, disk_needed_bytes
from study.settings import Settings
from study.slices import SliceDataset
from study.slots import Slot, choose_slot
from study.space import first_points
from study.split import make_split
from study.start_weights import StartWeights, find_start_weights
from trainer.config import parse_config
from trainer.config.override import value_at
from trainer.data.split import Split, read_split
from trainer.errors import InputError
from trainer.networks.description import check_size, parse_network


class Ready(NamedTuple):
    """A study that could begin: all that is decided before anything is written or started."""

    settings: Settings
    dataset: AnyDataset
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
    dataset = read_data(settings, console)
    if settings.select_on == "test" and not dataset.test_has_truth:
        raise InputError(
            "--select-on test", f"the test {settings.noun} have no masks", "validation"
        )
    if place.foreign:
        if not isinstance(dataset, Dataset):
            found = f"is a foreign image: it knows no prepared {settings.kind}"
            raise InputError(f"--docker-image {settings.docker_image}", found, "an image of ours")
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
    check_space(settings, dataset, start)
    return Ready(settings, dataset, split, slot, start, size, needed, free)


def check_space(settings: Settings, dataset: AnyDataset, start: StartWeights) -> None:
    """Raises InputError where a value of --space, or the base, makes no configuration that the
    trainer takes: every choice and both ends of each range are tried, one at a time."""
    if settings.base is None and settings.space is None:
        return
    first = first_points(settings)[0] if settings.space is None else {}
    tried: list[tuple[str, dict[str, Any]]] = [("--config", first)]
    if settings.space is None:
        tried += [
            (f"--optimizers {one}", {**first, "optimizer": one}) for one in settings.optimizers
        ]
        tried += [(f"--loss {one}", {**first, "loss": one}) for one in settings.losses]
    for key, one in settings.space.parameters.items() if settings.space else ():
        if settings.kind == "slices" and key.startswith("data.slices"):
            found, fix = "channels and target are those of all trials", "name them in --config"
            raise InputError(f"--space, {key}", found, fix=f"{fix}; another study for others")
        values = one if isinstance(one, list) else [one.low, one.high]
        tried += [(f"--space, {key} {value!r}", {key: value}) for value in values]
    for where, point in tried:
        network = network_of(point, settings, start.layers)
        if settings.space and not point and settings.base is None:
            continue  # the space itself names what a base would
        content = render(
            point, settings, dataset, layers="layers.json", split=None, load=None, foreign=False
        )
        try:
            parse_config(content, "configuration")
            described = parse_network(network, "layers")
            size = value_at(content, "neural_network.data.patches.size")
            if settings.kind == "volumes" and size:
                check_size(described, size, "data.patches, size")
            if isinstance(dataset, SliceDataset):
                files = dataset.train.files
                check_size(described, files.shape, str(files.inputs))
        except InputError as error:
            found = f"{error.where}: {error.found}" if error.where else error.found
            raise InputError(where, found, error.accepted, error.fix) from None


def inputs_of(
    dataset: AnyDataset, split_file: Path | None, start: StartWeights
) -> tuple[Path, ...]:
    """What a trial reads outside its run folder."""
    return (*dataset.inputs, *([split_file] if split_file else []), *start.files)
