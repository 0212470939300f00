"""What is done to a batch of crops, on its device: the transforms of volumes.

Their random numbers follow from seed, epoch and the crop's index alone, as those of images do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.config import Data, Transform
from trainer.data.transforms import DRAWS, BatchTransform, Draw


class VolumeTransform:
    """Made of the configuration's transforms; the same face as BatchTransform."""

    def __init__(self, data: Data) -> None:
        self._transforms = [*data.transforms, *data.input_transforms]
        self._names = [one.name for one in self._transforms]

    @property
    def random(self) -> bool:
        """Whether an epoch of training differs from another, beside its crops."""
        return bool(self._transforms)

    def inputs(self, raw: Tensor) -> Tensor:
        """Crops as the network takes them; nothing random."""
        return raw.float()

    def targets(self, raw: Tensor) -> Tensor:
        """The class of each voxel (n, 1, D, H, W)."""
        return raw.float()

    def evaluated(
        self, raw: Tensor, raw_targets: Tensor | None, indices: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """A batch without anything random."""
        return raw.float(), None if raw_targets is None else raw_targets.float()

    def augmented(
        self, raw: Tensor, raw_targets: Tensor, indices: Tensor, epoch: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """A batch of a training; `indices` (n,) are those of its crops in the epoch."""
        x, y = raw.float(), raw_targets.float()
        if not self._transforms:
            return x, y
        # On the CPU: what is done to which crop is decided without waiting for a GPU.
        draw = Draw(seed, epoch, indices.cpu(), DRAWS * len(self._transforms))
        for place, one in enumerate(self._transforms):
            numbers = draw.uniform(place)
            if one.name == "random_flip":
                chance = torch.tensor(one.value, dtype=torch.float32)
                x, y = _flipped(x, y, numbers[:, :3] < chance)
            elif one.name == "random_affine":
                x, y = _moved(x, y, numbers, one)
            else:
                chosen = (numbers[:, 0] < one.value.probability).nonzero()[:, 0]
                if len(chosen):
                    x = x.clone() if x is raw else x
                    own = numbers[chosen]
                    chosen = chosen.to(x.device, non_blocking=True)
                    x[chosen] = _lit(x[chosen], own, one)
        return x, y


AnyTransform = BatchTransform | VolumeTransform


def _flipped(x: Tensor, y: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
    """Each crop along the axes that `flips` (n, 3) names."""
    both = []
    for crop, label, row in zip(x, y, flips.tolist(), strict=True):
        axes = [axis + 1 for axis, flip in enumerate(row) if flip]
        both.append((crop.flip(axes), label.flip(axes)) if axes else (crop, label))
    return torch.stack([one for one, _ in both]), torch.stack([one for _, one in both])


def _lit(x: Tensor, numbers: Tensor, one: Transform) -> Tensor:
    column = numbers[:, 1].view(-1, *[1] * (x.dim() - 1)).to(x.device, non_blocking=True)
    if one.name == "random_factor":
        return x * (one.value.low + column * (one.value.high - one.value.low))
    noise = torch.empty_like(x)
    # A seed a crop, so that its noise does not depend on the batch that it is in.
    for crop, seed in zip(noise, (numbers[:, 2] * 2**24).long().tolist(), strict=True):
        crop.normal_(generator=torch.Generator(x.device).manual_seed(seed))
    return x + noise * (column * one.value.std)


def _moved(x: Tensor, y: Tensor, numbers: Tensor, one: Transform) -> tuple[Tensor, Tensor]:
    """Turned about the middle, scaled and shifted in one resampling: trilinear, labels nearest.

    What comes from outside is 0, and counts in no loss.
    """
    value = one.value
    chosen = (numbers[:, 0] < value.probability).nonzero()[:, 0]
    if not len(chosen):
        return x, y
    own = numbers[chosen].to(x.device, non_blocking=True)
    chosen = chosen.to(x.device, non_blocking=True)
    sides = torch.tensor(x.shape[2:], dtype=torch.float32, device=x.device).flip(0)  # x, y, z
    turn = _rotation((2 * own[:, 1:4] - 1) * math.radians(value.degrees))
    turn = turn / (1 + (2 * own[:, 4] - 1) * value.zoom).view(-1, 1, 1)
    # grid_sample counts in half sides: a turn has to know how long they are.
    matrix = turn * sides.view(1, 1, 3) / sides.view(1, 3, 1)
    shift = (2 * own[:, 5:8] - 1) * 2 * value.shift
    theta = torch.cat([matrix, shift[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [len(chosen), 1, *x.shape[2:]], align_corners=False)
    x, y = x.clone(), y.clone()
    x[chosen] = F.grid_sample(x[chosen], grid, "bilinear", "zeros", align_corners=False)
    # Outside is what one more than the label leaves at 0; grid_sample knows no other padding.
    labels = (y[chosen] + 1).nan_to_num(0.0)
    labels = F.grid_sample(labels, grid, "nearest", "zeros", align_corners=False)
    y[chosen] = torch.where(labels > 0.5, labels - 1, math.nan)
    return x, y


def _rotation(angles: Tensor) -> Tensor:
    """(n, 3) angles about the three axes -> (n, 3, 3), in the order x, y, z."""
    cos, sin = angles.cos(), angles.sin()
    whole = torch.eye(3, device=angles.device).repeat(len(angles), 1, 1)
    for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
        one = torch.eye(3, device=angles.device).repeat(len(angles), 1, 1)
        one[:, a, a] = one[:, b, b] = cos[:, axis]
        one[:, a, b], one[:, b, a] = -sin[:, axis], sin[:, axis]
        whole = whole @ one
    return whole
