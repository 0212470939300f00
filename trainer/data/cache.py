"""The images of one part of a data set, decoded and resized once and kept as 8 bit.

    images = ImageSet(pairs, channels=3, size=(256, 256), masks=masks)
    inputs, targets = images.batch(indices)     # uint8 (n, C, H, W), uint8 (n, 1, H, W)

Where everything would take more than half of the free memory, a batch is read from its files each
time. Targets hold 0 to 255 (foreground 255 where the meaning of the masks is known), or the class
of each pixel where there are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.folders import Pair
from trainer.data.images import Bytes, read_image
from trainer.data.masks import Masks, read_masks
from trainer.errors import InputError

SHARE_OF_FREE_MEMORY = 0.5
MOST_FOR_FACTS = 256
RESIZE_FIX = 'add {"resize": [256, 256]} to data.transforms'


def free_memory_bytes() -> int:
    """Memory that this process may still take: the machine's, or its container's if less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such cgroup version, or "max"
            continue
    return max(free, 0)


def free_bytes(device: torch.device) -> int:
    """Memory of the device that this process may still take."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()


class ImageSet:
    """Images with their masks, by index."""

    def __init__(
        self,
        pairs: list[Pair],
        channels: int,
        size: tuple[int, int] | None,
        masks: Masks | None = None,
    ) -> None:
        if channels not in (1, 3):
            found = f"the network takes {channels} channels, images have 1 or 3"
            raise InputError("layers, in_channels", found, "1 grey, 3 RGB")
        self.pairs, self.channels, self.size, self.masks = pairs, channels, size, masks
        self._inputs: Tensor | None = None
        self._targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def has_targets(self) -> bool:
        """Whether there is truth."""
        return bool(self.pairs[0].masks)

    @property
    def cached(self) -> bool:
        """Whether the images lie in memory."""
        return self._inputs is not None

    @property
    def device(self) -> torch.device:
        """Where the images lie, and where indices of a batch belong: a GPU waits for no index."""
        return torch.device("cpu") if self._inputs is None else self._inputs.device

    def _read(self, index: int) -> tuple[Bytes, Bytes | None]:
        pair = self.pairs[index]
        image = read_image(pair.image, self.channels, self.size)
        if not pair.masks:
            return image, None
        mask = read_masks(pair.masks, self.masks, self.size)
        if mask.shape != image.shape[1:]:
            sizes = [f"{a.shape[-1]}x{a.shape[-2]}" for a in (mask, image)]
            found = f"is {sizes[0]} pixels, its image {sizes[1]}"
            raise InputError(str(pair.masks[0]), found, "the same size", RESIZE_FIX)
        return image, mask

    def own_size_mask(self, index: int) -> Bytes:
        """The mask (H, W) of an image in its own size."""
        return read_masks(self.pairs[index].masks, self.masks)

    def own_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image file."""
        return read_image(self.pairs[index].image, 1).shape[1:]

    def preload(self, threads: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads everything into memory, if that takes less than half of what is free."""
        first, _ = self._read(0)
        if first.nbytes * 4 // 3 * len(self) > SHARE_OF_FREE_MEMORY * free_memory_bytes():
            return
        inputs = np.empty((len(self), *first.shape), np.uint8)
        targets = np.empty((len(self), 1, *first.shape[1:]), np.uint8) if self.has_targets else None

        def read(index: int) -> None:
            if stopped():
                return
            image, mask = self._read(index)
            self._same_size(image, first, index)
            inputs[index] = image
            if targets is not None and mask is not None:
                targets[index, 0] = mask

        with ThreadPoolExecutor(max(1, threads)) as pool:
            list(pool.map(read, range(len(self))))
        self._inputs = torch.from_numpy(inputs)
        self._targets = None if targets is None else torch.from_numpy(targets)

    def _same_size(self, array: Bytes, first: Bytes, index: int) -> None:
        if array.shape[1:] != first.shape[1:]:
            sizes = [f"{a.shape[2]}x{a.shape[1]}" for a in (array, first)]
            raise InputError(
                str(self.pairs[index].image),
                f"is {sizes[0]} pixels, {self.pairs[0].name} is {sizes[1]}",
                "one size for all",
                RESIZE_FIX,
            )

    def to(self, device: torch.device) -> None:
        """Moves what was preloaded to a device, if it takes less than half of its free memory."""
        if self._inputs is None or device.type != "cuda":
            return
        if self._inputs.nbytes * 4 // 3 < SHARE_OF_FREE_MEMORY * free_bytes(device):
            self._inputs = self._inputs.to(device)
            self._targets = None if self._targets is None else self._targets.to(device)

    def facts(self) -> dict[str, Any]:
        """What up to 256 images look like, spread evenly: `grey`, and the lowest and highest
        `brightness` (mean) and `contrast` (standard deviation) of an image, in 0 to 255."""
        count = min(len(self), MOST_FOR_FACTS)
        chosen = torch.linspace(0, len(self) - 1, count).round().long().to(self.device)
        grey, brightness, contrast = True, [], []
        for one in chosen.split(1):
            pixels = self.batch(one)[0][0].float()
            grey = grey and bool((pixels == pixels[:1]).all())
            brightness.append(float(pixels.mean()))
            contrast.append(float(pixels.std()))
        ranges = {"brightness": brightness, "contrast": contrast}
        return {"grey": grey, **{name: [min(v), max(v)] for name, v in ranges.items()}}

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 images (n, C, H, W) and targets (n, 1, H, W), where they and `indices` lie."""
        if self._inputs is not None:
            return self._inputs[indices], None if self._targets is None else self._targets[indices]
        read = [self._read(int(index)) for index in indices]
        for index, (image, _) in zip(indices.tolist(), read, strict=True):
            self._same_size(image, read[0][0], index)
        inputs = torch.from_numpy(np.stack([image for image, _ in read]))
        if not self.has_targets:
            return inputs, None
        masks = [mask[None] for _, mask in read if mask is not None]
        return inputs, torch.from_numpy(np.stack(masks))
