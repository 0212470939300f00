"""Slices of brains as arrays (N, H, W, C), one row a slice, as `prepare brats-slices` writes them.

    rows = list_slices("imgs_train.npy", "msks_train.npy", slices)
    samples = SliceSet(rows, channels=1)
    inputs, targets = samples.batch(indices)        # (n, C, H, W), (n, 1, H, W) of 0 and 1

Inputs are the channels that the configuration names; the target is 1 where one of the named planes
of the mask is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.cache import SHARE_OF_FREE_MEMORY, free_memory_bytes
from trainer.data.slice_files import Slice, open_array, row_name
from trainer.errors import InputError


class SliceSet:
    """Slices, by index; one of the `Samples` of samples.py."""

    own_size_comparable = False

    def __init__(self, slices: Sequence[Slice], channels: int) -> None:
        self.files = slices[0].files
        self._rows = np.array([one.row for one in slices])
        if len(self.files.channels) != channels:
            found = f"{len(self.files.channels)} channels, the network takes {channels}"
            raise InputError("data.slices.channels", found, f"{channels} of them")
        self._images = open_array(self.files.inputs)
        self._masks = open_array(self.files.targets) if self.files.targets else None
        self._kept: tuple[Tensor, Tensor | None] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> list[str]:
        """The number of each row."""
        return [row_name(row) for row in self._rows.tolist()]

    @property
    def has_targets(self) -> bool:
        """Whether there is truth."""
        return self._masks is not None

    @property
    def groups(self) -> list[int]:
        """All slices have one size."""
        return [len(self)]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of a slice."""
        return (len(self.files.channels), *self.files.shape)

    @property
    def device(self) -> torch.device:
        """Where the slices are kept."""
        return self._kept[0].device if self._kept else torch.device("cpu")

    def facts(self) -> dict[str, Any] | None:
        """Nothing: slices are normalised."""
        return None

    def preload(self, threads: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads all slices into memory, if that takes less than half of what is free."""
        height, width = self.files.shape
        needed = len(self) * height * width * 4 * (len(self.files.channels) + 1)
        if needed < SHARE_OF_FREE_MEMORY * free_memory_bytes():
            self._kept = self._read(np.arange(len(self)))

    def to(self, device: torch.device) -> None:
        """Moves what was preloaded to a GPU."""
        if self._kept and device.type == "cuda":
            images, masks = self._kept
            self._kept = images.to(device), masks.to(device) if masks is not None else None

    def _read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        rows = self._rows[indices]
        images = np.stack([self._images[rows, :, :, n] for n in self.files.channels], axis=1)
        targets = None
        if self._masks is not None:
            united = np.zeros((len(rows), 1, *self.files.shape), np.float32)
            for plane in self.files.planes:
                united[:, 0] = np.maximum(united[:, 0], self._masks[rows, :, :, plane] > 0)
            targets = torch.from_numpy(united)
        return torch.from_numpy(images.astype(np.float32)), targets

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Slices (n, C, H, W) and targets (n, 1, H, W) of 0 and 1, both float32."""
        if self._kept is None:
            return self._read(indices.cpu().numpy())
        images, masks = self._kept
        return images[indices], masks[indices] if masks is not None else None
