"""The files of slices of brains, and their rows. Torch-free.

    rows = list_slices("imgs_train.npy", "msks_train.npy", slices)
    scans = scans_of(Path("imgs_train.npy"), rows=len(rows))       # None: nobody knows

An array is (slices, height, width, channels). Names of channels are those of slices.json beside the
file, else the published ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from trainer.config import Slices, read_json
from trainer.errors import InputError, nearest

CHANNELS = ("t1", "t2", "flair", "t1ce")
PLANES = ("background", "necrotic", "edema", "enhancing")
REGIONS = {"wt": ("necrotic", "edema", "enhancing"), "tc": ("necrotic", "enhancing")}
REGIONS |= {"et": ("enhancing",)}
"""Whole tumour, tumour core, enhancing tumour (BraTS)."""

NAMES_FILE = "slices.json"


@dataclass(frozen=True, slots=True)
class SliceFiles:
    """Two files of arrays, and which of their channels are used."""

    inputs: Path
    targets: Path | None
    channels: tuple[int, ...]
    planes: tuple[int, ...]
    shape: tuple[int, int]
    """(height, width)"""


@dataclass(frozen=True, slots=True)
class Slice:
    """One row of them."""

    files: SliceFiles
    row: int

    @property
    def name(self) -> str:
        """Its number."""
        return row_name(self.row)


class ScanRows(NamedTuple):
    """The rows from `first` to `last` (exclusive) of an array, which are the slices from
    `first_slice` on of one scan."""

    scan: str
    patient: str
    first: int
    last: int
    first_slice: int


def row_name(row: int) -> str:
    """What a split file, scores and predictions call a slice: its row as six digits."""
    return f"{row:06d}"


def open_array(path: Path) -> NDArray[Any]:
    """A file of slices, mapped into memory; raises InputError for what is none."""
    accepted = "a .npy file of an array (slices, height, width, channels)"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(str(path), "there is no such file", accepted) from None
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read ({error})", accepted) from None
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype.kind not in "fiub":
        shape = getattr(array, "shape", type(array).__name__)
        raise InputError(str(path), f"holds {shape}", accepted)
    if not array.size:
        raise InputError(str(path), f"holds nothing: {array.shape}", accepted)
    return array


def parse_slices(told: object, where: str) -> Slices:
    """Which channels and planes are used, as a configuration says it; raises InputError."""
    try:
        return Slices.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (where, *first["loc"]))
        raise InputError(key, first["msg"]) from None


def scans_of(path: Path, rows: int) -> list[ScanRows] | None:
    """Which rows of imgs_PART.npy are of which scan, by slices.json beside it; None where that is
    missing or does not say. Raises InputError where it speaks of another number of `rows`."""
    beside = path.parent / NAMES_FILE
    if not beside.exists():
        return None
    content = read_json(beside, "record of slices")
    parts = content.get("parts") if isinstance(content, dict) else None
    if parts is None:
        return None
    found: list[ScanRows] = []
    try:
        for one in parts[path.stem.removeprefix("imgs_")]:
            first = found[-1].last if found else 0
            last = first + int(one["slices"])
            scan, patient = str(one["scan"]), str(one["patient"])
            found.append(ScanRows(scan, patient, first, last, int(one["first_slice"])))
    except (KeyError, TypeError, ValueError) as error:
        told = f"does not say which slices of {path.name} are of which scan ({error!r})"
        raise InputError(str(beside), told, "as it was made") from None
    if not found or found[-1].last != rows or any(one.first >= one.last for one in found):
        told = f"tells of {found[-1].last if found else 0} slices, {path.name} has {rows}"
        raise InputError(str(beside), told, "the file that was made with it")
    return found


def names_of(path: Path, key: str, published: Sequence[str]) -> list[str]:
    """Of the `channels` or `masks` of a file: those of slices.json beside it, else `published`."""
    beside = path.parent / NAMES_FILE
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        return [str(name) for name in content[key]]
    except FileNotFoundError:
        return list(published)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(str(beside), f"has no list '{key}' ({error})", "as it was made") from None


def _numbers(asked: Sequence[int | str], names: Sequence[str], count: int, key: str) -> list[int]:
    """Channel numbers of names and numbers; regions are several."""
    found: list[int] = []
    for one in asked:
        parts: Sequence[int | str] = REGIONS.get(str(one).lower(), (one,))
        for part in parts:
            if isinstance(part, str) and part.lower() in names[:count]:
                found.append(names.index(part.lower()))
            elif isinstance(part, int) and part in range(count):
                found.append(part)
            else:
                known = [*names[:count], *(REGIONS if key == "target" else ())]
                hint = nearest(str(one), [name for name in known if name != one])
                accepted = f"{', '.join(known)}, or 0 to {count - 1}"
                raise InputError(f"data.slices.{key}", f"no '{one}'{hint}", accepted)
    return sorted(set(found), key=found.index)


def list_slices(inputs: str, targets: str | None, slices: Slices) -> list[Slice]:
    """The rows of two files that belong together; raises InputError where they do not."""
    images = open_array(Path(inputs))
    names = names_of(Path(inputs), "channels", CHANNELS)
    channels = _numbers(
        slices.channels or range(images.shape[3]), names, images.shape[3], "channels"
    )
    planes: list[int] = []
    if targets is not None:
        masks = open_array(Path(targets))
        if masks.shape[:3] != images.shape[:3]:
            found = f"has {masks.shape[:3]} slices, height, width; {inputs} {images.shape[:3]}"
            raise InputError(targets, found, "a mask for each slice")
        names = names_of(Path(targets), "masks", PLANES)
        planes = _numbers(slices.target, names, masks.shape[3], "target")
    shape = (int(images.shape[1]), int(images.shape[2]))
    files = SliceFiles(
        Path(inputs), Path(targets) if targets else None, tuple(channels), tuple(planes), shape
    )
    return [Slice(files, row) for row in range(len(images))]
