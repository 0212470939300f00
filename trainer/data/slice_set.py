"""Slices of brains as arrays (N, H, W, C), one row a slice, as `prepare brats-slices` writes them.

    rows = list_slices("imgs_train.npy", "msks_train.npy", slices)
    samples = SliceSet(rows, channels=1)
    inputs, targets = samples.batch(indices)        # (n, C, H, W), (n, 1, H, W) of 0 and 1

Inputs are the channels that the configuration names; the target is 1 where one of the named planes
of the mask is. Names of channels are those of slices.json beside the file, else the published ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import Slices
from trainer.data.cache import SHARE_OF_FREE_MEMORY, free_memory_bytes
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
        return f"{self.row:06d}"


def _opened(path: Path) -> NDArray[Any]:
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
    return array


def _names(path: Path, key: str, published: Sequence[str]) -> list[str]:
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
            if isinstance(part, str) and part.lower() in names:
                found.append(names.index(part.lower()))
            elif isinstance(part, int) and part in range(count):
                found.append(part)
            else:
                known = [*names, *(REGIONS if key == "target" else ())]
                hint = nearest(str(one), known)
                accepted = f"{', '.join(known)}, or 0 to {count - 1}"
                raise InputError(f"data.slices.{key}", f"no '{one}'{hint}", accepted)
    return sorted(set(found), key=found.index)


def list_slices(inputs: str, targets: str | None, slices: Slices) -> list[Slice]:
    """The rows of two files that belong together; raises InputError where they do not."""
    images = _opened(Path(inputs))
    names = _names(Path(inputs), "channels", CHANNELS)
    channels = _numbers(
        slices.channels or range(images.shape[3]), names, images.shape[3], "channels"
    )
    planes: list[int] = []
    if targets is not None:
        masks = _opened(Path(targets))
        if masks.shape[:3] != images.shape[:3]:
            found = f"has {masks.shape[:3]} slices, height, width; {inputs} {images.shape[:3]}"
            raise InputError(targets, found, "a mask for each slice")
        names = _names(Path(targets), "masks", PLANES)
        planes = _numbers(slices.target, names, masks.shape[3], "target")
    shape = (int(images.shape[1]), int(images.shape[2]))
    files = SliceFiles(
        Path(inputs), Path(targets) if targets else None, tuple(channels), tuple(planes), shape
    )
    return [Slice(files, row) for row in range(len(images))]


class SliceSet:
    """Slices, by index; one of the `Samples` of samples.py."""

    own_size_comparable = False

    def __init__(self, slices: Sequence[Slice], channels: int) -> None:
        self.files = slices[0].files
        self._rows = np.array([one.row for one in slices])
        if len(self.files.channels) != channels:
            found = f"{len(self.files.channels)} channels, the network takes {channels}"
            raise InputError("data.slices.channels", found, f"{channels} of them")
        self._images = _opened(self.files.inputs)
        self._masks = _opened(self.files.targets) if self.files.targets else None
        self._kept: tuple[Tensor, Tensor | None] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> list[str]:
        """The number of each row."""
        return [f"{row:06d}" for row in self._rows.tolist()]

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
