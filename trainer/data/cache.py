"""The images of one part of a data set, decoded and resized once and kept as 8 bit.

    images = ImageSet(pairs, channels=3, size=(256, 256), masks=masks)
    inputs, targets = images.batch(indices)     # uint8 (n, C, H, W), uint8 (n, 1, H, W)

Images of 16 bit are kept as float32 in the same units, labels as one number an image. Where
everything would take more than half of the free memory, a batch is read from its files each time.
Targets hold 0 to 255 (foreground 255 where the meaning of the masks is known), or the class of each
pixel where there are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.config import Data
from trainer.data.folders import Pair
from trainer.data.idx import read_idx
from trainer.data.images import Bytes, Pixels, moved_mask, open_image, prepared, read_pixels
from trainer.data.masks import Masks, read_masks
from trainer.data.transforms import channels_read, comparable, reading_steps, size_of
from trainer.errors import InputError
from trainer.tasks import Task

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
    """Images with their masks or labels, by index; one of the `Samples` of samples.py.

    `channels` and `outputs` are the network's. `size` (width, height) is what images are resized
    to where `data` gives no transforms.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        channels: int,
        size: tuple[int, int] | None = None,
        masks: Masks | None = None,
        data: Data | None = None,
        task: Task = "foreground",
        outputs: int = 1,
    ) -> None:
        if channels not in (1, 3):
            found = f"the network takes {channels} channels, images have 1 or 3"
            raise InputError("layers, in_channels", found, "1 grey, 3 RGB")
        self.pairs, self.channels, self.masks = list(pairs), channels, masks
        self._data, self._task, self._outputs = data or Data(), task, outputs
        self.size = size_of(data) if data else size
        self._channels = channels_read(self._data, channels)
        self._grey = self._data.grayscale or self._data.input_grayscale
        self._steps = reading_steps(self._data)
        if data is None and size is not None:
            self._steps = [("resize", size)]
        self._inputs: Tensor | None = None
        self._targets: Tensor | None = None
        if task == "labels" and self.has_targets:
            self._targets = torch.tensor([pair.label for pair in self.pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        """Of the images: their paths in their folder."""
        return [pair.name for pair in self.pairs]

    @property
    def has_targets(self) -> bool:
        """Whether there is truth."""
        return bool(self.pairs[0].masks) or self.pairs[0].label is not None

    @property
    def groups(self) -> list[int]:
        """All images may share a batch."""
        return [len(self)]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image at the network; the first one's where nothing sets a size."""
        height, width = self.own_size(0) if self.size is None else (self.size[1], self.size[0])
        return self.channels, height, width

    @property
    def own_size_comparable(self) -> bool:
        """Whether predictions can be compared with masks in the images' own sizes."""
        return self._task in ("foreground", "classes") and comparable(self._data)

    @property
    def cached(self) -> bool:
        """Whether the images lie in memory."""
        return self._inputs is not None

    @property
    def device(self) -> torch.device:
        """Where the images lie, and where indices of a batch belong: a GPU waits for no index."""
        return torch.device("cpu") if self._inputs is None else self._inputs.device

    @property
    def _restores_itself(self) -> bool:
        """Whether each image is its own target."""
        return self._task == "channels" and all(pair.masks == (pair.image,) for pair in self.pairs)

    def opened(self, pair: Pair) -> Any:
        """The image of a pair: of PIL, or an array of 16 bit (see `images.open_image`)."""
        if pair.place is None:
            return open_image(pair.image, deep=True)
        return Image.fromarray(read_idx(pair.image)[pair.place])

    def _read(self, index: int) -> tuple[Pixels, Pixels | None]:
        pair = self.pairs[index]
        where = str(pair.image)
        image = prepared(self.opened(pair), self._channels, self._steps, where, self._grey)
        if not pair.masks:
            return image, None
        if self._task == "channels":
            if pair.masks == (pair.image,) and self._outputs == self._channels:
                return image, image
            mask = read_pixels(pair.masks[0], self._outputs, self._steps)
        else:
            first = self._steps[0] if self._steps and self._steps[0][0] == "resize" else None
            whole = read_masks(pair.masks, self.masks, first[1] if first else None)
            rest = self._steps[1:] if first else self._steps
            mask = moved_mask(whole, rest, str(pair.masks[0]))[None]
        if mask.shape[1:] != image.shape[1:]:
            sizes = [f"{a.shape[-1]}x{a.shape[-2]}" for a in (mask, image)]
            found = f"is {sizes[0]} pixels, its image {sizes[1]}"
            raise InputError(str(pair.masks[0]), found, "the same size", RESIZE_FIX)
        return image, mask

    def own_size_mask(self, index: int) -> Bytes:
        """The mask (H, W) of an image in its own size."""
        return read_masks(self.pairs[index].masks, self.masks)

    def own_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image file."""
        opened = self.opened(self.pairs[index])
        return opened.shape[:2] if isinstance(opened, np.ndarray) else (opened.height, opened.width)

    def preload(self, threads: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads everything into memory, if that takes less than half of what is free."""
        first, truth = self._read(0)
        own = self._restores_itself and truth is first
        each = first.nbytes + (truth.nbytes if truth is not None and not own else 0)
        if each * len(self) > SHARE_OF_FREE_MEMORY * free_memory_bytes():
            return
        inputs = np.empty((len(self), *first.shape), first.dtype)
        targets = None
        if truth is not None and not own:
            targets = np.empty((len(self), *truth.shape), truth.dtype)

        def read(index: int) -> None:
            if stopped():
                return
            image, mask = self._read(index)
            self._same_size(image, first, index)
            for kept, array in ((inputs, image), (targets, mask)):
                if kept is None or array is None:
                    continue
                if not np.can_cast(array.dtype, kept.dtype):
                    found = f"has 16 bits a channel, {self.pairs[0].name} has 8"
                    raise InputError(str(self.pairs[index].image), found, "one depth for all")
                kept[index] = array

        with ThreadPoolExecutor(max(1, threads)) as pool:
            list(pool.map(read, range(len(self))))
        self._inputs = torch.from_numpy(inputs)
        if self._task != "labels":
            self._targets = None if targets is None else torch.from_numpy(targets)
            self._targets = self._inputs if own else self._targets

    def _same_size(self, array: Pixels, first: Pixels, index: int) -> None:
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
        both = [self._inputs] if self._targets is None else [self._inputs, self._targets]
        if sum(one.nbytes for one in both) < SHARE_OF_FREE_MEMORY * free_bytes(device):
            own = self._targets is self._inputs
            self._inputs = self._inputs.to(device)
            if self._targets is not None:
                self._targets = self._inputs if own else self._targets.to(device)

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
        """Images (n, C, H, W) and targets (n, 1, H, W), 0 to 255, where they and `indices` lie.

        Both are uint8, or float32 where files have 16 bit. Of channels, targets are (n, C, H, W);
        of labels (n,) int64.
        """
        if self._inputs is not None:
            return self._inputs[indices], None if self._targets is None else self._targets[indices]
        read = [self._read(int(index)) for index in indices]
        for index, (image, _) in zip(indices.tolist(), read, strict=True):
            self._same_size(image, read[0][0], index)
        inputs = torch.from_numpy(np.stack([image for image, _ in read]))
        if self._targets is not None:
            return inputs, self._targets[indices]
        if not self.has_targets:
            return inputs, None
        masks = [mask for _, mask in read if mask is not None]
        return inputs, torch.from_numpy(np.stack(masks))
