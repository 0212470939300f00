"""The file of prepared volumes: HDF5, a group a case. Torch-free.

    with VolumeWriter(path, header) as out:
        out.add(Case(...), image, label)
    volumes = open_volumes(path)                    # a file, or a folder of such files (shards)
    volumes.cases[0].image((slice(0, 48), slice(0, 64), slice(0, 48)))    # (C, 48, 64, 48)

    /                attributes: schema "rml-volumes", schema_version, header (JSON)
    /<case>          attributes: name, patient, source, spacing_mm (3,), affine (4, 4),
                     original_shape (3,), original_affine (4, 4), voxels (classes,)
    /<case>/image    (C, D, H, W) float32, in chunks that suit random crops
    /<case>/label    (D, H, W) uint8, the number of the class; absent where there is no truth
    /<case>/original_label   the same on the scan's own grid, where that is another one
    /<case>/locations        (n, 4) int32: class, d, h, w of up to 1000 voxels of each class
    /<case>/components       (n, 7) int32: class, start (d, h, w), end (d, h, w) of the two parts of
                             each class whose boxes are largest, connected over faces

Axes D, H, W are those of `Case.grid`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.data.volumes.grid import Grid
from trainer.data.volumes.preparation import Preparation
from trainer.errors import InputError

SCHEMA = "rml-volumes"
SCHEMA_VERSION = 1
CHUNK = 64
"""Voxels. A crop reads the chunks that it touches."""

MOST_LOCATIONS = 1000
LARGEST_PARTS = 2
Region = tuple[slice, ...]


class Header(BaseModel):
    """What all cases of a file share. `classes` has the background first."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str
    channels: list[str]
    classes: list[str]
    preparation: Preparation


@dataclass(frozen=True)
class Case:
    """One prepared volume. `grid` is that of its arrays, `original` that of the scan as it came."""

    name: str
    grid: Grid
    original: Grid
    patient: str = ""
    source: str = ""
    path: Path | None = None
    has_label: bool = False
    voxels: tuple[int, ...] = ()
    header: Header | None = field(default=None, repr=False, compare=False)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.path}, {self.name}"

    def _read(self, dataset: str, region: Any) -> Any:
        try:
            with h5py.File(self.path, "r") as file:
                return file[self.name][dataset][region]
        except (OSError, KeyError, ValueError) as error:
            found = f"its {dataset} cannot be read ({error})"
            raise InputError(self.where, found, "a whole file", "prepare it again") from None

    def image(self, region: Region = ()) -> NDArray[np.float32]:
        """(C, D, H, W), or the part of it that the slices of D, H and W name."""
        return np.asarray(self._read("image", (slice(None), *region)), np.float32)

    def label(self, region: Region = ()) -> NDArray[np.uint8]:
        """(D, H, W): the class of each voxel, or of a part of them."""
        return np.asarray(self._read("label", region or ()), np.uint8)

    def original_label(self) -> NDArray[np.uint8]:
        """The class of each voxel on the scan's own grid."""
        with h5py.File(self.path, "r") as file:
            group = file[self.name]
            name = "original_label" if "original_label" in group else "label"
            return np.asarray(group[name][()], np.uint8)

    def locations(self) -> NDArray[np.int32]:
        """(n, 4): class and place of some voxels of each class."""
        return np.asarray(self._read("locations", ()), np.int32)

    def components(self) -> NDArray[np.int32]:
        """(n, 7): class, start and end of the largest parts of each class."""
        return np.asarray(self._read("components", ()), np.int32)


@dataclass(frozen=True)
class Volumes:
    """The cases of a file, or of a folder of files with one header, by name."""

    header: Header
    cases: list[Case]


def is_volume_file(path: str | Path) -> bool:
    """Whether it is a file of prepared volumes, or a folder of such; nothing is said otherwise."""
    path = Path(path)
    files = sorted(path.glob("*.h5")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        return False
    try:
        with h5py.File(files[0], "r") as file:
            return bool(file.attrs.get("schema") == SCHEMA)
    except OSError:
        return False


def open_volumes(path: str | Path) -> Volumes:
    """The cases of the file at `path`, or of all .h5 files in that folder; nothing is read yet.

    Raises InputError for what is no such file, for another version of it, and for two cases of one
    name.
    """
    path = Path(path)
    files = sorted(path.glob("*.h5")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise InputError(str(path), "there is no such file", "a file of python -m trainer.prepare")
    header: Header | None = None
    cases: list[Case] = []
    for file in files:
        own, found = _open(file)
        header = header or own
        if own != header:
            found_fault = f"is prepared in another way than {files[0].name}"
            raise InputError(str(file), found_fault, "files of one preparation")
        cases += found
    names = [case.name for case in cases]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(str(path), f"has two cases of the name {twice}", "names of their own")
    assert header
    return Volumes(header, sorted(cases, key=lambda case: case.name))


def _open(path: Path) -> tuple[Header, list[Case]]:
    accepted = "a file of python -m trainer.prepare"
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("schema") != SCHEMA:
                raise InputError(str(path), "is no file of prepared volumes", accepted)
            version = int(file.attrs["schema_version"])
            if version != SCHEMA_VERSION:
                found = f"has version {version} of its layout"
                raise InputError(str(path), found, f"version {SCHEMA_VERSION}", "prepare it again")
            header = Header.model_validate_json(str(file.attrs["header"]))
            return header, [_case(file[name], name, path, header) for name in file]
    except (OSError, KeyError, ValueError, ValidationError) as error:
        if isinstance(error, InputError):
            raise
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(str(path), f"cannot be read ({told})", accepted) from None


def _case(group: Any, name: str, path: Path, header: Header) -> Case:
    attrs, image = group.attrs, group["image"]
    if image.ndim != 4 or image.shape[0] != len(header.channels):
        found = f"its image has the shape {image.shape}"
        raise InputError(f"{path}, {name}", found, f"({len(header.channels)}, D, H, W)")
    if "label" in group and group["label"].shape != image.shape[1:]:
        found = f"its label has the shape {group['label'].shape}, its image {image.shape[1:]}"
        raise InputError(f"{path}, {name}", found, "the same size")
    return Case(
        name,
        Grid(tuple(map(int, image.shape[1:])), np.asarray(attrs["affine"], float)),
        Grid(tuple(map(int, attrs["original_shape"])), np.asarray(attrs["original_affine"], float)),
        str(attrs["patient"]),
        str(attrs["source"]),
        path,
        "label" in group,
        tuple(map(int, attrs["voxels"])),
        header,
    )


class VolumeWriter:
    """Writes such a file, a case at a time, beside `path`; it is there when all are written."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._header = path, header
        self._beside = path.with_name(f".{path.name}.{os.getpid()}")
        self._file: Any = None

    def __enter__(self) -> VolumeWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(self._beside, "w")
        self._file.attrs["schema"] = SCHEMA
        self._file.attrs["schema_version"] = SCHEMA_VERSION
        self._file.attrs["header"] = json.dumps(self._header.model_dump(mode="json"))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._beside, self._path)
        else:
            self._beside.unlink(missing_ok=True)

    def add(
        self,
        case: Case,
        image: NDArray[np.float32],
        label: NDArray[np.uint8] | None = None,
        original_label: NDArray[np.uint8] | None = None,
    ) -> None:
        """A case with its image (C, D, H, W) and label (D, H, W), both on `case.grid`.

        `original_label` is the label on `case.original`, where that is another grid.
        """
        group = self._file.create_group(case.name)
        chunks = (1, *(min(CHUNK, side) for side in image.shape[1:]))
        group.create_dataset("image", data=np.asarray(image, np.float32), chunks=chunks)
        group.attrs["name"], group.attrs["patient"] = case.name, case.patient
        group.attrs["source"], group.attrs["spacing_mm"] = case.source, case.grid.spacing_mm
        group.attrs["affine"] = case.grid.affine
        group.attrs["original_shape"] = case.original.shape
        group.attrs["original_affine"] = case.original.affine
        count = len(self._header.classes)
        voxels = np.zeros(count, np.int64)
        if label is not None:
            packed: dict[str, Any] = {"chunks": chunks[1:], "compression": "lzf"}
            group.create_dataset("label", data=np.asarray(label, np.uint8), **packed)
            if original_label is not None:
                small = np.asarray(original_label, np.uint8)
                group.create_dataset("original_label", data=small, chunks=True, compression="gzip")
            voxels = np.bincount(label.ravel(), minlength=count)[:count]
            group.create_dataset("locations", data=locations(label, count))
            group.create_dataset("components", data=components(label, count))
        group.attrs["voxels"] = voxels


def locations(label: NDArray[np.uint8], classes: int) -> NDArray[np.int32]:
    """(n, 4): class, d, h, w of up to 1000 voxels of each class but the background, spread evenly
    over all that it has."""
    found = []
    for number in range(1, classes):
        flat = np.flatnonzero(label == number)
        if len(flat) > MOST_LOCATIONS:
            flat = flat[np.linspace(0, len(flat) - 1, MOST_LOCATIONS).round().astype(np.int64)]
        places = np.stack(np.unravel_index(flat, label.shape), axis=1)
        found.append(np.column_stack([np.full(len(flat), number), places]))
    return np.concatenate([np.zeros((0, 4), np.int64), *found]).astype(np.int32)


def components(label: NDArray[np.uint8], classes: int) -> NDArray[np.int32]:
    """(n, 7): class, start and end of the two parts of each class whose boxes are largest."""
    from scipy import ndimage

    found: list[list[int]] = []
    for number in range(1, classes):
        parts, _ = ndimage.label(label == number)  # connected over faces
        boxes = [
            ([s.start for s in box], [s.stop for s in box]) for box in ndimage.find_objects(parts)
        ]
        boxes.sort(key=lambda box: -_volume(*box))
        found += [[number, *start, *end] for start, end in boxes[:LARGEST_PARTS]]
    return np.asarray(found, np.int32).reshape(-1, 7)


def _volume(start: Sequence[int], end: Sequence[int]) -> int:
    return int(np.prod([b - a for a, b in zip(start, end, strict=True)]))
