"""The arrays of one part of a data set, whole or in blocks, read where a batch needs them.

    samples = ArraySet(blocks, data, channels=1, dimensions=3)
    inputs, targets = samples.batch(indices)       # (n, C, D, H, W), (n, 1, D, H, W)

Where all arrays together take less than half of the free memory they are kept there (the arrays,
not the blocks: these may overlap); else each block is read from its file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.config import Data
from trainer.data.arrays import (
    Array,
    Block,
    Sample,
    grid_of,
    has_channels,
    memory_type,
    read_region,
    spatial,
)
from trainer.data.cache import SHARE_OF_FREE_MEMORY, free_bytes, free_memory_bytes
from trainer.data.slicers import Grid
from trainer.errors import InputError
from trainer.tasks import Task


class ArraySet:
    """Arrays with their targets or labels, by index; one of the `Samples` of samples.py.

    `channels` and `outputs` are the network's, `dimensions` its spatial axes. Raises InputError,
    before anything is read, for an array that does not fit.
    """

    masks = None
    own_size_comparable = False

    def __init__(
        self,
        blocks: Sequence[Block],
        data: Data,
        channels: int,
        dimensions: int,
        task: Task = "foreground",
        outputs: int = 1,
        ignored: int | None = None,
        shares: bool = False,
    ) -> None:
        """`shares`: targets that are no classes have to be from 0 to 1, as most losses need."""
        self.blocks, self.channels, self._ignored = blocks, channels, ignored
        self._shares = shares
        self._data, self._dimensions, self._task, self._outputs = data, dimensions, task, outputs
        self._kept: dict[Array, Tensor] = {}
        self._grids: dict[tuple[Sample, int], Grid] = {}
        self._wholes = list(dict.fromkeys(block.whole for block in blocks))
        self._targets = {whole.target for whole in self._wholes if whole.target is not None}
        for whole in self._wholes:
            self._check(whole)
        self.shape = (channels, *self._shape(blocks[0]))
        for block in {block.cut: block for block in blocks}.values():
            shape = self._shape(block)
            if len(shape) != dimensions:
                told = " x ".join(map(str, shape))
                found = f"blocks of {told} voxels, the network takes {dimensions} axes"
                accepted = "as many sizes above 1 as the network has axes"
                raise InputError("data.slicers", found, accepted)
        if not data.slicers:
            self._one_size()

    def _check(self, whole: Sample) -> None:
        axes = self._axes
        what = "data.slicers, sizes" if self._data.slicers else "the network"
        array, target = whole.input, whole.target
        given = array.shape[0] if has_channels(array, axes, what) else 1
        if given != self.channels:
            found = f"has {given} channels, the network takes {self.channels}"
            raise InputError(array.where, found, f"the shape ({self.channels}, …)")
        if target is None or self._task == "labels":
            return
        channels = target.shape[0] if has_channels(target, axes, what) else 1
        wanted = self._outputs if self._task == "channels" else 1
        if channels != wanted:
            found = f"has {channels} channels for a network of {self._outputs} outputs"
            raise InputError(target.where, found, "1, the number of the class, or one an output")
        own, others = spatial(target, axes, what), spatial(array, axes, what)
        if own != others:
            found = f"has the shape {own}, its input {others}"
            raise InputError(target.where, found, "the same size")

    def _one_size(self) -> None:
        first = self._wholes[0].input
        for whole in self._wholes:
            own = spatial(whole.input, self._axes, "the network")
            if own != self.shape[1:]:
                found = f"has the shape {own}, {first.name} has {self.shape[1:]}"
                fix = "cut them into blocks of one size with data.slicers"
                raise InputError(whole.input.where, found, "one size for all", fix)

    @property
    def _axes(self) -> int:
        """Spatial axes of the arrays, those that a slicer drops too."""
        slicers = self._data.slicers
        return len(slicers[0].sizes) if slicers else self._dimensions

    def _shape(self, block: Block) -> tuple[int, ...]:
        grid = self.grid(block)
        if grid is None:
            return spatial(block.whole.input, self._axes, "the network")
        return grid.block_shape

    def grid(self, block: Block) -> Grid | None:
        """What a block is one of; None where arrays are not cut."""
        if block.cut is None:
            return None
        key = (block.whole, block.cut)
        if key not in self._grids:
            self._grids[key] = grid_of(block.whole, self._data, block.cut)
        return self._grids[key]

    def channels_in_front(self, block: Block) -> bool:
        """Whether the array of a block has an axis for channels in its file."""
        return has_channels(block.whole.input, self._axes, "the network")

    def __len__(self) -> int:
        return len(self.blocks)

    @cached_property
    def names(self) -> list[str]:
        """The keys of the samples among predictions."""
        return [block.name for block in self.blocks]

    @property
    def has_targets(self) -> bool:
        """Whether there is truth."""
        whole = self._wholes[0]
        return whole.target is not None or whole.label is not None

    @property
    def groups(self) -> list[int]:
        """The numbers of successive blocks of one slicer: a batch never mixes slicers."""
        return [sum(1 for _ in same) for _, same in groupby(self.blocks, key=lambda one: one.cut)]

    @property
    def cached(self) -> bool:
        """Whether the arrays lie in memory."""
        return bool(self._kept)

    @property
    def device(self) -> torch.device:
        """Where indices of a batch belong: they are looked at here, wherever the arrays lie."""
        return torch.device("cpu")

    def _arrays(self) -> list[Array]:
        """Every array of the set, once."""
        both = [one for whole in self._wholes for one in (whole.input, whole.target)]
        return list(dict.fromkeys(one for one in both if one is not None))

    def preload(self, threads: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads all arrays into memory, if they take less than half of what is free."""
        arrays = self._arrays()
        sizes = [math.prod(one.shape) * np.dtype(memory_type(one)).itemsize for one in arrays]
        if sum(sizes) > SHARE_OF_FREE_MEMORY * free_memory_bytes():
            packed = next((one for one in arrays if one.path.suffix.lower() == ".npz"), None)
            if packed and self._data.slicers:
                told = f"is too large for the memory ({sum(sizes) / 1e9:.1f} GB with the others)"
                fix = "save it as .npy or .h5"
                raise InputError(packed.where, told, "what can be read block by block", fix)
            return

        def read(array: Array) -> Tensor | None:
            return None if stopped() else self._read(array, ())

        with ThreadPoolExecutor(max(1, threads)) as pool:
            found = list(pool.map(read, arrays))
        self._kept = {a: t for a, t in zip(arrays, found, strict=True) if t is not None}

    def to(self, device: torch.device) -> None:
        """Moves what was preloaded to a GPU, if it takes less than half of its free memory."""
        taken = sum(tensor.nbytes for tensor in self._kept.values())
        if device.type == "cuda" and taken < SHARE_OF_FREE_MEMORY * free_bytes(device):
            self._kept = {array: tensor.to(device) for array, tensor in self._kept.items()}

    def facts(self) -> dict[str, Any] | None:
        """None: what images look like is not asked of arrays."""
        return None

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inputs (n, C, …) and targets (n, 1, …), float32, with the values of their files.

        Of channels, targets are (n, C, …); of labels (n,) int64. Targets of padding are not a
        number: they do not count. Indices are of one group.
        """
        blocks = [self.blocks[index] for index in indices.tolist()]
        inputs = torch.stack([self._block(block, block.whole.input) for block in blocks]).float()
        if not self.has_targets:
            return inputs, None
        if self._task == "labels":
            return inputs, torch.tensor([self._label(block.whole) for block in blocks])
        targets = [
            self._block(block, block.whole.target, fill=math.nan)
            for block in blocks
            if block.whole.target is not None
        ]
        return inputs, torch.stack(targets).float()

    def _values(self, array: Array, region: tuple[slice, ...]) -> Tensor:
        if array in self._kept:
            part: Any = (..., *region)
            return self._kept[array][part]
        return self._read(array, region)

    def _read(self, array: Array, region: tuple[slice, ...]) -> Tensor:
        values = read_region(array, region)
        if self._task == "classes" and array in self._targets:
            self._check_classes(array, values)
        elif self._shares and self._task != "labels" and array in self._targets:
            outside = values[(values < 0) | (values > 1)]
            if outside.size:
                fix = "divide them, or use the loss mse"
                found = f"holds {outside.flat[0]:g}"
                raise InputError(array.where, found, "numbers from 0 to 1", fix)
        return torch.from_numpy(values)

    def _check_classes(self, array: Array, values: NDArray[Any]) -> None:
        """Raises InputError for what is no class: in a loss it would be a crash."""
        wrong = (values < 0) | (values >= self._outputs)
        if values.dtype.kind == "f":
            wrong |= values != np.rint(values)
        if self._ignored is not None:
            wrong &= values != self._ignored
        if wrong.any():
            found = f"holds {values[wrong][0]:g}"
            accepted = f"classes of the network, 0 to {self._outputs - 1}"
            raise InputError(array.where, found, accepted)

    def _block(self, block: Block, array: Array, fill: float = 0.0) -> Tensor:
        """A block of an array, its padding filled with `fill`."""
        grid = self.grid(block)
        values = self._values(array, grid.region(block.number) if grid else ())
        if not has_channels(array, self._axes, "the network"):
            values = values[None]
        if grid is None:
            return values
        zeros = grid.zeros(block.number)
        if any(before or behind for before, behind in zeros):
            ends = [end for pair in reversed(zeros) for end in pair]
            values = F.pad(values.float(), ends, value=fill)
        values = values.reshape(len(values), *(grid.padded[axis] for axis in grid.kept))
        return values.transpose(1, 2) if grid.slicer.transpose else values

    def _label(self, whole: Sample) -> int:
        if whole.label is not None:
            return whole.label
        assert whole.target is not None
        row = () if whole.row is None else (slice(whole.row, whole.row + 1),)
        values = self._values(whole.target, row).flatten().tolist()
        if len(values) != 1 or values[0] != int(values[0]) or values[0] < 0:
            found = f"holds {values[:3]} for {whole.input.name}"
            raise InputError(whole.target.where, found, "the number of a class, 0 or above")
        label = int(values[0])
        if label >= self._outputs and label != self._ignored:
            found = f"holds {label} for {whole.input.name}"
            accepted = f"classes of the network, 0 to {self._outputs - 1}"
            raise InputError(whole.target.where, found, accepted)
        return label
