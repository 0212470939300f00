"""The kinds of data that a study can be of: images, prepared volumes, arrays of slices."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from study import slices, volumes
from study.dataset import Dataset, read_dataset
from study.settings import Kind, Settings
from study.slices import SliceDataset, read_slices
from study.volumes import VolumeDataset, read_volumes
from trainer.config.override import value_at
from trainer.data.slice_files import open_array
from trainer.errors import InputError
from trainer.networks.description import Network, check_size, read_network

AnyDataset = Dataset | VolumeDataset | SliceDataset

NO_MEANING: dict[Kind, dict[str, str]] = {
    "images": {},
    "volumes": volumes.NO_MEANING,
    "slices": slices.NO_MEANING,
}
"""Options that say nothing of a kind of data, and why."""


def kind_of(folder: Path) -> Kind:
    """What lies in a folder, as far as file names tell."""
    if volumes.holds_volumes(folder):
        return "volumes"
    return "slices" if slices.holds_slices(folder) else "images"


def read_data(settings: Settings, console: Console) -> AnyDataset:
    """The data of a study, opened and checked; raises InputError with what is amiss."""
    if settings.kind == "volumes":
        return read_volumes(settings.data, settings.select_on)
    with console.status("reading the data …") as status:
        if settings.kind == "slices":
            return read_slices(settings.data, settings.base)
        return read_dataset(
            settings.data,
            list(settings.classes),
            lambda done, total: status.update(f"reading the data: {done}/{total}"),
        )


def check_network(settings: Settings) -> Network:
    """The network of a layers file, which must take the image size, the crops of volumes, or
    slices as they are."""
    network = read_network(settings.layers)
    if settings.kind == "images":
        check_size(network, (settings.image_size,) * 2, "--image-size")
    elif settings.kind == "slices":
        _check_dimensions(network, settings, 2)
        path = settings.data / slices.IMAGES["train"]
        check_size(network, open_array(path).shape[1:3], str(path))
    else:
        _check_dimensions(network, settings, 3)
        if size := value_at(settings.base or {}, "data.patches.size"):
            check_size(network, size, "data.patches, size")
    return network


def _check_dimensions(network: Network, settings: Settings, dimensions: int) -> None:
    if network.dimensions != dimensions:
        found, accepted = f"is no network of {settings.kind}", f'"dimensions": {dimensions}'
        raise InputError(str(settings.layers), found, accepted)
