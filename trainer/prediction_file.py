"""Predictions as HDF5.

`output_<epoch>.h5` has one float32 dataset a sample, the network's output: (C, H, W), (C, D, H, W)
or, of labels, (classes,). It is named after its file (in subfolders: a group for each). The file's
attributes say where the images lie, what masks mean, and whether a prediction, resized, lies upon
its whole image (`whole_images`), and of slices which `slices` of their arrays were used, for
`python -m trainer.review`.

`hdf5_outfile` has one dataset a slicer, named after it: the blocks at their places, the mean where
they overlap. It is (spatial …, C) where the input has no axis for channels, else (C, spatial …),
and as long as what the blocks cover. Several input arrays get a group each.

    with open_sink(data, epoch=1, samples=samples) as sink:       # None where nothing is asked for
        sink.write(0, output)
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from trainer.config import Data
from trainer.data.array_set import ArraySet
from trainer.data.arrays import Block
from trainer.data.masks import Masks
from trainer.data.samples import Samples
from trainer.data.slice_set import SliceSet
from trainer.errors import InputError

ROWS_AT_ONCE = 64 << 20
"""Bytes of an assembled dataset that are converted at a time."""

MAPPED_AT_ONCE = 256 << 20
"""After so many bytes of blocks the file is mapped anew: what was written leaves our memory."""


class Sink(Protocol):
    """Takes predictions."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files that will be there in the end."""

    def write(self, number: int, output: NDArray[np.float32]) -> None:
        """What the network gives (C, …) for the sample with this number."""


class _Beside(io.FileIO):
    """A file that HDF5 writes, and that remembers when its disk is full.

    HDF5 may hide it, and does not survive it: it is told that all is well.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """The length of `data`, written or not."""
        try:
            view = memoryview(data).cast("B")
            done = 0
            while self.error is None and done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.error = error
        return len(data)

    def check(self) -> None:
        """Raises the OSError that was."""
        if self.error is not None:
            raise self.error


class PredictionFile:
    """output_<epoch>.h5; it appears under its name when all predictions are there."""

    def __init__(
        self,
        data: Data,
        epoch: int,
        samples: Samples,
        masks: Masks | None = None,
        threshold: float = 0.5,
    ) -> None:
        assert data.test_output_path
        self.path = Path(data.test_output_path) / f"output_{epoch}.h5"
        self.paths = [self.path]
        self._names = samples.names
        self._beside = _hidden(self.path)
        self._raw = _Beside(self._beside)
        self._file = h5py.File(self._raw, "w")
        inputs, targets = data.test_input_path, data.test_target_path
        if inputs is None:  # a validation part of the training images
            inputs, targets = data.input_path, data.target_path
        self._file.attrs["inputs"] = inputs or ""
        self._file.attrs["targets"] = targets or ""
        self._file.attrs["threshold"] = threshold
        self._file.attrs["whole_images"] = samples.own_size_comparable
        if isinstance(samples, SliceSet):
            told = {"channels": samples.files.channels, "target": samples.files.planes}
            self._file.attrs["slices"] = json.dumps(told)
        if masks:
            self._file.attrs["masks"] = masks.model_dump_json()

    def write(self, number: int, output: NDArray[np.float32]) -> None:
        """What the network gives (C, …) for the sample with this number."""
        self._file.create_dataset(
            self._names[number], data=np.ascontiguousarray(output, np.float32)
        )
        self._raw.check()

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._raw.check()
                os.fsync(self._raw.fileno())
                os.replace(self._beside, self.path)
        finally:
            self._raw.close()
            self._beside.unlink(missing_ok=True)


def _hidden(path: Path) -> Path:
    """A name beside `path` that is free, in a folder that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    return beside


class AssembledFile:
    """hdf5_outfile; blocks are added where they belong, in a file that is mapped into memory.

    All space is taken at the first block, so that a disk too full is told then. How many blocks
    overlap in a voxel is known beforehand: each adds its share, and nothing is divided at the end.
    """

    def __init__(self, data: Data, samples: ArraySet) -> None:
        assert data.hdf5_outfile
        self.path = Path(data.hdf5_outfile)
        self.paths = [self.path]
        self._half = data.hdf5_precision == "half"
        self._samples = samples
        self._beside = _hidden(self.path)
        self._sums = self._beside.with_name(f"{self._beside.name}.sums")
        self._maps: dict[str, NDArray[Any]] = {}
        self._shares: dict[str, list[NDArray[np.float32]]] = {}
        wholes = {block.whole for block in samples.blocks}
        self._several = len(wholes) > 1
        self._channels = self._written = 0
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}

    def write(self, number: int, output: NDArray[np.float32]) -> None:
        """What the network gives (C, …) for the block with this number."""
        block = self._samples.blocks[number]
        grid = self._samples.grid(block)
        assert grid
        if output.shape[1:] != grid.block_shape:
            found = f"gives {output.shape[1:]} for blocks of {grid.block_shape}"
            raise InputError("layers", f"the network {found}", "an output as large as the input")
        if not self._maps:
            self._channels = len(output)
            self._open()
        key = self._key(block)
        whole, shares = self._maps[key], self._shares[key]
        region = grid.region(block.number)
        part = grid.restored(np.asarray(output, np.float32), block.number)
        for axis, (own, share) in enumerate(zip(region, shares, strict=True), start=1):
            if share.max() > 1:
                along = [1] * part.ndim
                along[axis] = -1
                part = part / share[own].reshape(along)
        place: tuple[slice, ...] = region
        if self._samples.channels_in_front(block):
            place = (slice(None), *region)
        else:
            part = np.moveaxis(part, 0, -1)
        if max(share.max() for share in shares) > 1:
            whole[place] += part
        else:
            whole[place] = part
        self._written += part.nbytes
        if self._written > MAPPED_AT_ONCE:
            self._map()

    def _key(self, block: Block) -> str:
        return f"{block.whole.input.name}/{block.set_name}" if self._several else block.set_name

    def _open(self) -> None:
        """Makes the datasets, and the space where sums are kept: the file itself, for half
        precision one beside it."""
        first = {self._key(block): block for block in reversed(self._samples.blocks)}
        shapes: dict[str, tuple[int, ...]] = {}
        for key, block in first.items():
            grid = self._samples.grid(block)
            assert grid
            front = self._samples.channels_in_front(block)
            covered = grid.covered
            shapes[key] = (self._channels, *covered) if front else (*covered, self._channels)
            self._shares[key] = [grid.overlaps(axis).clip(1) for axis in range(len(covered))]
        offsets = _allocated(self._beside, shapes, "float16" if self._half else "float32")
        if self._half:
            place = 0
            for key, shape in shapes.items():
                offsets[key], place = place, place + 4 * int(np.prod(shape))
            self._sums.touch()
            _take_space(self._sums, place)
        self._places = {key: (offsets[key], shape) for key, shape in shapes.items()}
        self._map()

    def _map(self) -> None:
        self._maps.clear()
        self._written = 0
        file = self._sums if self._half else self._beside
        for key, (offset, shape) in self._places.items():
            self._maps[key] = np.memmap(file, np.float32, "r+", offset, shape)

    def __enter__(self) -> AssembledFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._maps:
                for one in self._maps.values():
                    one.flush()  # type: ignore[attr-defined]
                if self._half:
                    self._convert()
                with self._beside.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(self._beside, self.path)
        finally:
            self._maps.clear()
            self._beside.unlink(missing_ok=True)
            self._sums.unlink(missing_ok=True)

    def _convert(self) -> None:
        with h5py.File(self._beside, "r+") as file:
            for key, sums in self._maps.items():
                rows = max(1, ROWS_AT_ONCE // sums[0].nbytes)
                for row in range(0, len(sums), rows):
                    file[key][row : row + rows] = sums[row : row + rows]


def _allocated(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, int]:
    """Makes an HDF5 file with a dataset of each shape, all zeros; where their bytes begin."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    offsets: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        for name, shape in shapes.items():
            folder, _, own = name.rpartition("/")
            group = file.require_group(folder or "/")
            space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype))
            made = h5py.h5d.create(group.id, own.encode(), kind, space, properties)
            offsets[name] = made.get_offset()
    _take_space(path, path.stat().st_size)
    return offsets


def _take_space(path: Path, size: int) -> None:
    """Makes the file `size` bytes long with space for all of them; OSError where there is none."""
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS: a disk too full is told by the system, later
            file.truncate(size)


class SlicesFile:
    """<targets>_predictions.npy: (slices, height, width, outputs) float32, beside output_1.h5."""

    def __init__(self, data: Data, samples: SliceSet) -> None:
        assert data.test_output_path
        stem = samples.files.targets.stem if samples.files.targets else samples.files.inputs.stem
        self.path = Path(data.test_output_path) / f"{stem}_predictions.npy"
        self.paths = [self.path]
        self._beside, self._count = _hidden(self.path), len(samples)
        self._array: Any = None

    def write(self, number: int, output: NDArray[np.float32]) -> None:
        """What the network gives (C, H, W) for the slice with this number."""
        if self._array is None:
            shape = (self._count, *output.shape[1:], output.shape[0])
            self._array = np.lib.format.open_memmap(self._beside, "w+", np.float32, shape)
        self._array[number] = np.moveaxis(output, 0, -1)

    def __enter__(self) -> SlicesFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._array is not None:
                self._array.flush()
                os.replace(self._beside, self.path)
        finally:
            self._array = None
            self._beside.unlink(missing_ok=True)


class _Both:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self.paths = [path for sink in sinks for path in sink.paths]

    def write(self, number: int, output: NDArray[np.float32]) -> None:
        """Writes to each."""
        for sink in self._sinks:
            sink.write(number, output)


@contextlib.contextmanager
def open_sink(
    data: Data, epoch: int, samples: Samples, masks: Masks | None = None, threshold: float = 0.5
) -> Iterator[Sink | None]:
    """Where the predictions of an evaluation go: to `test_output_path`, to `hdf5_outfile`, to both;
    None where neither is asked for.

    The files appear at the end; where an error ends it, there are none.
    """
    with contextlib.ExitStack() as stack:
        sinks: list[Sink] = []
        if data.test_output_path:
            file = PredictionFile(data, epoch, samples, masks, threshold)
            sinks.append(stack.enter_context(file))
        if data.hdf5_outfile and isinstance(samples, ArraySet):
            sinks.append(stack.enter_context(AssembledFile(data, samples)))
        if data.test_output_path and isinstance(samples, SliceSet):
            sinks.append(stack.enter_context(SlicesFile(data, samples)))
        yield None if not sinks else sinks[0] if len(sinks) == 1 else _Both(sinks)
