"""Prepared volumes: crops of them for training, whole ones for evaluation.

    samples = VolumeSet(cases, patches)
    samples.begin(seed=0, epoch=1)
    images, labels = samples.batch(indices)         # (n, C, D, H, W), (n, 1, D, H, W)
    image, label = samples.whole(0)                 # (C, D, H, W), (D, H, W) or None

Where all volumes take less than half of the free memory they are kept there, on a GPU in its own;
else each crop is read from its file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.config import Patches
from trainer.data.cache import SHARE_OF_FREE_MEMORY, free_bytes, free_memory_bytes
from trainer.data.volumes.crops import Start, crop_start
from trainer.data.volumes.volume_file import Case
from trainer.errors import InputError

PADDING = math.nan
"""Of labels outside their volume: it counts in no loss."""


class VolumeSet:
    """The cases of one part; one of the `Samples` of samples.py, whose samples are crops.

    Crop n of an epoch follows from seed, epoch and n alone. Without `patches` there are only whole
    volumes.
    """

    own_size_comparable = False

    def __init__(self, cases: Sequence[Case], patches: Patches | None) -> None:
        self.cases, self.patches = list(cases), patches
        self._kept: list[tuple[Tensor, Tensor | None]] = []
        self._seed, self._epoch, self._first = 0, 0, 0
        self._places = [
            (case.locations(), case.components()) if patches and case.has_label else None
            for case in self.cases
        ]

    def __len__(self) -> int:
        return len(self.cases) * (self.patches.per_case if self.patches else 1)

    @property
    def names(self) -> list[str]:
        """Of the cases."""
        return [case.name for case in self.cases]

    @property
    def has_targets(self) -> bool:
        """Whether there is truth."""
        return self.cases[0].has_label

    @property
    def groups(self) -> list[int]:
        """All crops have one size."""
        return [len(self)]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, D, H, W) of a crop; without patches, of the first volume."""
        assert self.cases[0].header
        size = self.patches.size if self.patches else self.cases[0].grid.shape
        return (len(self.cases[0].header.channels), *size)

    @property
    def device(self) -> torch.device:
        """Where indices belong: crops are laid on the CPU, wherever the volumes are kept, so that a
        GPU is never waited for."""
        return torch.device("cpu")

    def facts(self) -> dict[str, Any] | None:
        """Nothing: volumes carry their preparation."""
        return None

    def begin(self, seed: int, epoch: int, first: int = 0) -> None:
        """The crops that follow are those of this epoch; the first one has the number `first`."""
        self._seed, self._epoch, self._first = seed, epoch, first

    def preload(self, threads: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads all volumes into memory, if that takes less than half of what is free."""
        voxels = [math.prod(case.grid.shape) for case in self.cases]
        needed = sum(count * (4 * self.shape[0] + 1) for count in voxels)
        if needed > SHARE_OF_FREE_MEMORY * free_memory_bytes():
            return
        with ThreadPoolExecutor(max(1, threads)) as pool:
            kept = list(
                pool.map(lambda n: None if stopped() else self._read(n), range(len(voxels)))
            )
        self._kept = [one for one in kept if one is not None]

    def to(self, device: torch.device) -> None:
        """Moves what is kept to a GPU, if it takes less than half of its free memory."""
        size = sum(i.nbytes + (t.nbytes if t is not None else 0) for i, t in self._kept)
        if (
            self._kept
            and device.type == "cuda"
            and size < SHARE_OF_FREE_MEMORY * free_bytes(device)
        ):
            self._kept = [
                (i.to(device), t.to(device) if t is not None else None) for i, t in self._kept
            ]

    def _read(self, number: int) -> tuple[Tensor, Tensor | None]:
        case = self.cases[number]
        label = torch.from_numpy(case.label()) if case.has_label else None
        if label is not None and case.header and int(label.max()) >= len(case.header.classes):
            found = f"its label holds {int(label.max())}"
            accepted = f"0 to {len(case.header.classes) - 1}"
            raise InputError(case.where, found, accepted, "prepare it again")
        return torch.from_numpy(case.image()), label

    def whole(self, number: int) -> tuple[Tensor, Tensor | None]:
        """A volume (C, D, H, W) and its label (D, H, W) uint8, None without truth."""
        return self._kept[number] if self._kept else self._read(number)

    def start(self, index: int) -> Start:
        """Where crop `index` of this epoch begins, in voxels of its case."""
        assert self.patches
        number = index // self.patches.per_case
        rng = np.random.default_rng([self._seed, self._epoch, self._first + index])
        places = self._places[number] or (np.zeros((0, 4), np.int32), np.zeros((0, 7), np.int32))
        return crop_start(rng, self.cases[number].grid.shape, self.patches, *places)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Crops (n, C, D, H, W) and the class of each voxel (n, 1, D, H, W), both float32.

        Outside of its volume a crop is 0, and its target not a number.
        """
        images, targets = [], []
        for index in indices.tolist():
            image, label = self._crop(index)
            images.append(image)
            if label is not None:
                targets.append(label)
        return torch.stack(images), torch.stack(targets)[:, None] if targets else None

    def _crop(self, index: int) -> tuple[Tensor, Tensor | None]:
        assert self.patches
        number, start = index // self.patches.per_case, self.start(index)
        size = self.patches.size
        shape = self.cases[number].grid.shape
        low = [max(0, s) for s in start]
        high = [min(n, s + p) for n, s, p in zip(shape, start, size, strict=True)]
        region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        if self._kept:
            image, label = self._kept[number]
            image = image[(slice(None), *region)]
            label = label[region] if label is not None else None
        else:
            case = self.cases[number]
            image = torch.from_numpy(case.image(region))
            label = torch.from_numpy(case.label(region)) if case.has_label else None
        target = label.float() if label is not None else None
        pads: list[int] = []
        for s, a, b, p in zip(start, low, high, size, strict=True):
            pads = [a - s, p - (b - s), *pads]  # F.pad begins with the last axis
        if any(pads):
            image = F.pad(image, pads)
            target = F.pad(target, pads, value=PADDING) if target is not None else None
        return image.float(), target
