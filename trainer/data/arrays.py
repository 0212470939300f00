"""Arrays in files: .npy (one array), .npz (several), .h5 (datasets, in groups too). Torch-free.

Files are looked at first, without their values (`list_arrays`); values are read where they are
asked for, a region at a time. Nothing is unpickled.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from trainer.config import Data
from trainer.data.class_names import Labelled, labelled_files
from trainer.data.folders import files_below
from trainer.data.slicers import Grid, checked_grid, slicer_names, slicing_lines
from trainer.errors import InputError, joined

SUFFIXES = {"numpy": (".npy", ".npz"), "hdf5": (".h5", ".hdf5", ".hdf", ".he5")}
OPEN_FILES = 32
MOST_BLOCKS = 5_000_000
"""Of all arrays together: each takes a hundred bytes, and an epoch reads them all."""

MOST_TOLD = 8
"""Of so many arrays the log says how they are cut."""

KINDS = "fiub"
"""Of dtypes that are read: numbers and truth values."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array in a file. `key` is its name in a .npz or .h5 file; `name` tells it from others."""

    path: Path
    key: str | None
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.path}, {self.key}" if self.key else str(self.path)

    @property
    def stem(self) -> str:
        """The name by which inputs and targets pair."""
        return self.name if self.key else str(Path(self.name).with_suffix(""))


@dataclass(frozen=True, slots=True)
class Sample:
    """One array with its truth: another array, the number of a class, or neither."""

    input: Array
    target: Array | None = None
    label: int | None = None
    row: int | None = None
    """Of `target`, where it has one number a sample."""


@dataclass(frozen=True, slots=True)
class Block:
    """What the network gets at once: a whole array, or block `number` of its grid.

    `cut` is the place of its slicer in the configuration; None without slicers.
    """

    whole: Sample
    cut: int | None = None
    number: int = 0
    set_name: str = ""

    @property
    def name(self) -> str:
        """Its key among predictions."""
        if self.cut is None:
            return self.whole.input.name
        return f"{self.whole.input.name}/{self.set_name}/{self.number:06d}"


def list_arrays(path: str | Path, kind: str) -> list[Array]:
    """The arrays of a file or a folder (with its subfolders), by name; raises InputError."""
    path = Path(path)
    suffixes = SUFFIXES[kind]
    if not path.exists():
        raise InputError(str(path), "there is no such file or folder", fix="check the path")
    files = [path] if path.is_file() else list(files_below(path))
    odd = [one for one in files if one.suffix.lower() not in suffixes]
    if odd or not files:
        found = "is not a file of arrays" if odd else "the folder is empty"
        raise InputError(str(odd[0] if odd else path), found, ", ".join(suffixes))
    arrays: list[Array] = []
    faults: list[InputError] = []
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        try:
            arrays += _arrays_of(file, name, alone=file == path)
        except InputError as fault:
            faults.append(fault)
    faults += _clashes(arrays)
    if faults:
        raise joined(faults, str(path))
    return sorted(arrays, key=lambda one: one.name)


def _clashes(arrays: Sequence[Array]) -> list[InputError]:
    """Names that no file of predictions has: "a" beside "a/b", one twice, "", "." and ".."."""
    faults, names = [], {one.name for one in arrays}
    seen: set[str] = set()
    for one in arrays:
        parts = one.name.split("/")
        above = ("/".join(parts[:end]) for end in range(1, len(parts)))
        beneath = next((name for name in above if name in names), None)
        fault = ""
        if one.name in seen:
            fault = "has the name of another array"
        elif not {"", ".", ".."}.isdisjoint(parts):
            fault = "has a name that no dataset can have"
        elif beneath:
            fault = f"lies below {beneath}, which is an array itself"
        seen.add(one.name)
        if fault:
            faults.append(InputError(one.where, fault, "names of their own", "rename it"))
    return faults


def _arrays_of(file: Path, name: str, alone: bool) -> list[Array]:
    found: list[tuple[str | None, tuple[int, ...], np.dtype[Any]]] = []
    with _told(file):
        suffix = file.suffix.lower()
        if suffix == ".npy":
            with file.open("rb") as opened:
                found.append((None, *_header(opened)))
        elif suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                for entry in sorted(archive.namelist()):
                    with archive.open(entry) as member:
                        found.append((entry.removesuffix(".npy"), *_header(member)))
        else:
            with h5py.File(file, "r") as opened:

                def visit(key: str, one: Any) -> None:
                    if isinstance(one, h5py.Dataset):
                        if one.external or one.is_virtual:  # may be any file of this machine
                            fault = "keeps its values in other files"
                            raise InputError(f"{file}, {key}", fault, "values of its own")
                        found.append((key, one.shape or (), one.dtype))

                opened.visititems(visit)
    if not found:
        raise InputError(str(file), "holds no array", "one or more")
    arrays = []
    for key, shape, dtype in found:
        where = f"{file}, {key}" if key else str(file)
        if dtype.kind not in KINDS:
            raise InputError(where, f"holds {_kind(dtype)}", "an array of numbers")
        if 0 in shape:
            raise InputError(where, f"is empty: shape {shape}", "an array with values")
        own = name if key is None else f"{name}/{key}"
        if key is not None and suffix != ".npz":
            own = key if alone else name if len(found) == 1 else own
        arrays.append(Array(file, key, own, tuple(map(int, shape)), dtype.str))
    return arrays


def _kind(dtype: np.dtype[Any]) -> str:
    kinds = {"O": "Python objects", "c": "complex numbers", "V": "records"}
    return kinds.get(dtype.kind, f"values of type {dtype}")


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = read(file)
    return shape, dtype


class _told:
    """Faults of the libraries while a file is read, as an InputError that names it."""

    def __init__(self, where: str | Path) -> None:
        self._where = str(where)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, InputError | MemoryError):
            return
        if isinstance(error, PermissionError):
            raise InputError(self._where, "may not be read", fix="chmod +r") from None
        told = str(error).strip().splitlines()
        found = f"cannot be read ({told[0] if told else type(error).__name__})"
        raise InputError(self._where, found, "a whole file", "write it anew") from None


@lru_cache(maxsize=OPEN_FILES)  # an open dataset keeps its last chunks
def _dataset(path: Path, key: str) -> Any:
    return h5py.File(path, "r")[key]


@lru_cache(maxsize=1)
def _npz(path: Path, key: str) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive[key])


def memory_type(array: Array) -> str:
    """The dtype in which values of an array are kept: float32, or a smaller one of the file."""
    dtype = np.dtype(array.dtype)
    small = dtype.itemsize == 1 or dtype.str[1:] in ("i2", "f2")
    return dtype.newbyteorder("=").name if small else "float32"


def read_region(array: Array, region: tuple[slice, ...] | None = None) -> NDArray[Any]:
    """The values of an array, or of a region of its last axes, as `memory_type` says.

    Raises InputError for a file that is broken, and for values that are not finite.
    """
    with _told(array.where), np.errstate(over="ignore"):
        part: Any = (..., *(region or ()))
        kept = memory_type(array)
        if array.key is None:
            found = np.array(np.load(array.path, mmap_mode="r", allow_pickle=False)[part], kept)
        elif array.path.suffix.lower() == ".npz":
            found = np.array(_npz(array.path, array.key)[part], kept)
        else:
            dataset = _dataset(array.path, array.key)
            # HDF5 converts on its way: no second copy of a large array.
            found = (dataset.astype(kept) if kept == "float32" else dataset)[part]
        found = np.ascontiguousarray(found, kept)
    # Where a value is not a number, so are the smallest and the largest.
    if not (math.isfinite(float(found.min())) and math.isfinite(float(found.max()))):
        raise InputError(array.where, "holds values that are not finite", "numbers")
    return found


def paired(inputs: Sequence[Array], targets: Sequence[Array], where: str) -> list[Sample]:
    """Inputs with their targets: by name, else one with one, else in the order of their names
    where there are equally many, else one number each of a single row of numbers.

    Raises InputError, before anything is read, where they do not fit.
    """
    by_stem = {target.stem: target for target in targets}
    stems = {one.stem for one in inputs}
    if stems == set(by_stem) and len(stems) == len(inputs) == len(targets):
        return [Sample(one, by_stem[one.stem]) for one in inputs]
    if len(targets) == 1 and targets[0].shape == (len(inputs),) and len(inputs) > 1:
        return [Sample(one, targets[0], row=row) for row, one in enumerate(inputs)]
    if len(inputs) != len(targets):
        found = f"there are {len(inputs)} inputs and {len(targets)} targets"
        raise InputError(where, found, "equally many, or of equal names")
    if len(inputs) > 1 and (stems & set(by_stem)):
        alone = sorted(stems - set(by_stem))[:5]
        found = f"some targets are named like inputs, but not those of {', '.join(alone)}"
        raise InputError(where, found, "all of them, or none")
    return [Sample(one, other) for one, other in zip(inputs, targets, strict=True)]


def labelled_arrays(path: str, kind: str, tag: str | None) -> tuple[list[Array], Labelled]:
    """The arrays of a folder with the classes of their folders."""
    arrays = list_arrays(path, kind)
    if len({one.path for one in arrays}) != len(arrays):
        raise InputError(path, "labels need one array a file", ".npy, or .h5 with one dataset")
    return arrays, labelled_files(Path(path), [one.path for one in arrays], tag)


def has_channels(array: Array, axes: int, what: str) -> bool:
    """Whether an array of volumes with `axes` axes has one more in front, for channels.

    Raises InputError where its rank is neither.
    """
    if len(array.shape) not in (axes, axes + 1):
        accepted = f"{axes} axes, or {axes + 1} with the channels in front"
        raise InputError(array.where, f"has the shape {array.shape}", f"{what}: {accepted}")
    return len(array.shape) == axes + 1


def spatial(array: Array, axes: int, what: str) -> tuple[int, ...]:
    """The shape of an array without channels; raises InputError for another rank."""
    return array.shape[1:] if has_channels(array, axes, what) else array.shape


def blocks_of(samples: Sequence[Sample], data: Data, note: Callable[[str], None]) -> list[Block]:
    """Every block of all slicers, those of one slicer together; without slicers, whole arrays."""
    if not data.slicers:
        return [Block(sample) for sample in samples]
    names = slicer_names(data.slicers)
    for cut, slicer in enumerate(data.slicers):
        if len(slicer.sizes) != len(data.slicers[0].sizes):
            fault = f"{len(slicer.sizes)} sizes, the first slicer has {len(data.slicers[0].sizes)}"
            raise InputError(
                f"data.slicers[{cut}]", fault, "one number for each axis of the arrays"
            )
    kind = {"numpy": "numpy", "hdf5": "HDF5"}[data.kinds[0]]
    found: list[Block] = []
    for cut in range(len(data.slicers)):
        for place, sample in enumerate(samples):
            grid = grid_of(sample, data, cut)
            if place == MOST_TOLD:
                note(f"   and {len(samples) - MOST_TOLD} more arrays by slicer {names[cut]}")
            for one in (sample.input, sample.target) if place < MOST_TOLD else ():
                if one is not None and sample.row is None:
                    dataset = one.key or one.name
                    told = slicing_lines(grid, names[cut], dataset, str(one.path), kind)
                    for line in told:
                        note(line)
            if len(found) + len(grid) > MOST_BLOCKS:
                fault = f"cuts {sample.input.name} into {len(grid)} blocks"
                fix = "larger strides"
                raise InputError(f"data.slicers[{cut}]", fault, f"{MOST_BLOCKS} or fewer", fix)
            found += [Block(sample, cut, number, names[cut]) for number in range(len(grid))]
    return found


def grid_of(sample: Sample, data: Data, cut: int) -> Grid:
    """The grid of a slicer in an array; raises InputError where array and target do not fit it."""
    slicer = data.slicers[cut]
    axes = len(slicer.sizes)
    what = f"data.slicers[{cut}], sizes"
    shape = spatial(sample.input, axes, what)
    if sample.target is not None and sample.row is None:
        own = spatial(sample.target, axes, what)
        if own != shape:
            told = [" x ".join(map(str, one)) for one in (own, shape)]
            found = f"is {told[0]} voxels, its input {told[1]}"
            raise InputError(sample.target.where, found, "the same size")
    return checked_grid(slicer, shape, sample.input.where)
