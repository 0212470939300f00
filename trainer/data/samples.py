"""What a network learns from: images or arrays with their truth, behind one face.

samples = open_samples(items, data, channels=3, dimensions=2, task="foreground", outputs=1)
for indices in shuffled_batches(seed, epoch, samples.groups, batch_size):
    raw, raw_targets = samples.batch(indices.to(samples.device))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.config import Data
from trainer.data.array_set import ArraySet
from trainer.data.arrays import Block
from trainer.data.cache import ImageSet
from trainer.data.folders import Pair
from trainer.data.masks import Masks
from trainer.data.slice_files import Slice
from trainer.data.slice_set import SliceSet
from trainer.data.volumes.volume_file import Case
from trainer.data.volumes.volume_set import VolumeSet
from trainer.errors import InputError
from trainer.tasks import Task

Item = Pair | Block | Case | Slice
AnySamples = ImageSet | ArraySet | VolumeSet | SliceSet


class Samples(Protocol):
    """Samples of one part, by index; `AnySamples` are such."""

    @property
    def names(self) -> Sequence[str]:
        """The key of each sample among predictions."""

    @property
    def has_targets(self) -> bool:
        """Whether there is truth."""

    @property
    def device(self) -> torch.device:
        """Where indices of a batch belong."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, …) of a sample as the network gets it; with several slicers, of the first."""

    @property
    def groups(self) -> Sequence[int]:
        """How many successive samples may share a batch; they add up to all."""

    @property
    def own_size_comparable(self) -> bool:
        """Whether predictions can be compared with masks in the images' own sizes."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw inputs (n, C, …) and targets, as BatchTransform takes them."""

    def preload(self, threads: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads everything into memory, if that takes less than half of what is free."""

    def to(self, device: torch.device) -> None:
        """Moves what was preloaded to a GPU, if it takes less than half of its free memory."""

    def facts(self) -> dict[str, Any] | None:
        """What the images look like; None where it makes no sense."""


def open_samples(
    items: Sequence[Item],
    data: Data,
    channels: int,
    dimensions: int = 2,
    task: Task = "foreground",
    outputs: int = 1,
    masks: Masks | None = None,
    ignored: int | None = None,
    shares: bool = False,
) -> AnySamples:
    """The samples of a part, nothing read yet.

    `channels`, `dimensions` (spatial axes) and `outputs` are the network's; targets of the class
    `ignored` may stand in arrays beside those of the network; with `shares` other targets are from
    0 to 1. Raises InputError for what does not fit it.
    """
    if cases := [item for item in items if isinstance(item, Case)]:
        return VolumeSet(cases, data.patches)
    if rows := [item for item in items if isinstance(item, Slice)]:
        return SliceSet(rows, channels)
    blocks = [item for item in items if isinstance(item, Block)]
    if blocks:
        return ArraySet(blocks, data, channels, dimensions, task, outputs, ignored, shares)
    if dimensions != 2:
        found = f"images have 2 axes, the network takes {dimensions}"
        raise InputError("layers", found, "a network of 2 axes", "or data of type numpy or hdf5")
    pairs = [item for item in items if isinstance(item, Pair)]
    return ImageSet(pairs, channels, None, masks, data, task, outputs)
