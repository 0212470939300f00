"""Whole volumes through a network that takes crops: overlapping windows, logits averaged.

    logits = predict_windows(network, volume, size, window, batch_size=2)     # (K, D, H, W)

With `cut_remainders` the windows are those of MLPerf's U-Net3D; else a volume is filled up to one
window where it is smaller, and the last window of an axis is moved inwards, as MONAI does it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.config import Window

SIGMA = 0.125
"""Of the Gaussian, as a share of a window's side."""

LEAST_WEIGHT = 1e-3
"""Of a window's largest, for `gaussian`: a corner counts a little."""


@dataclass(frozen=True)
class Line:
    """Along one axis: `kept` voxels from `first` on, `before` and `after` voxels filled in around
    them, windows beginning at `starts` (in what is filled)."""

    first: int
    kept: int
    before: int
    after: int
    starts: tuple[int, ...]


def plan(side: int, size: int, window: Window) -> Line:
    """The windows of `size` voxels along an axis of `side` voxels."""
    step = max(1, int(size * (1 - window.overlap)))
    if not window.cut_remainders:
        fill = max(0, size - side)
        last = side + fill - size
        starts = [*range(0, last, step), last]
        return Line(0, side, fill // 2, fill - fill // 2, tuple(starts))
    rest = side % step
    cut = rest if side > size and rest < step // 2 else 0
    kept = side - cut
    whole = size + max(0, -(-(kept - size) // step)) * step
    fill = whole - kept
    starts = list(range(0, whole - size + 1, step))
    return Line(cut // 2, kept, fill // 2, fill - fill // 2, tuple(starts))


def weights(size: Sequence[int], weighting: str, device: torch.device | None = None) -> Tensor:
    """(d, h, w): how much each voxel of a window counts; 1 at the most."""
    whole = torch.ones((), dtype=torch.float64)  # which Apple's GPUs do not have
    for axis, side in enumerate(size):
        if weighting == "constant":
            line = torch.ones(side, dtype=torch.float64)
        else:
            x = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
            line = torch.exp(-0.5 * (x / (SIGMA * side)) ** 2)
        whole = whole[..., None] * line.view(*[1] * axis, -1) if axis else line
    if weighting == "gaussian_cube_root":
        whole = whole ** (1 / 3)
    whole = whole / whole.max()
    return whole.clamp_min(LEAST_WEIGHT if weighting == "gaussian" else 0).float().to(device)


def kept_region(shape: Sequence[int], size: Sequence[int], window: Window) -> tuple[slice, ...]:
    """The voxels that are predicted: all, but those that `cut_remainders` cuts off."""
    lines = [plan(n, p, window) for n, p in zip(shape, size, strict=True)]
    return tuple(slice(line.first, line.first + line.kept) for line in lines)


@torch.inference_mode()
def predict_windows(
    network: Callable[[Tensor], Tensor],
    volume: Tensor,
    size: Sequence[int],
    window: Window,
    batch_size: int = 1,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Logits (K, d, h, w) of a volume (C, D, H, W), float32, where the volume is.

    (d, h, w) is `kept_region`. `network` takes (n, C, *size) and gives (n, K, *size). `check` is
    called before each batch, and may raise.
    """
    size = tuple(size)
    lines = [plan(n, p, window) for n, p in zip(volume.shape[1:], size, strict=True)]
    region = kept_region(volume.shape[1:], size, window)
    pads = [n for line in reversed(lines) for n in (line.before, line.after)]
    filled = F.pad(volume[(slice(None), *region)].float(), pads, value=window.fill)
    starts = list(itertools.product(*(line.starts for line in lines)))
    weight = weights(size, window.weighting, volume.device)
    total: Tensor | None = None
    count = torch.zeros(filled.shape[1:], device=volume.device)
    for first in range(0, len(starts), batch_size):
        check()
        batch = starts[first : first + batch_size]
        places = [tuple(slice(s, s + p) for s, p in zip(at, size, strict=True)) for at in batch]
        crops = torch.stack([filled[(slice(None), *place)] for place in places])
        logits = _mirrored(network, crops) if window.mirror else network(crops).float()
        if total is None:
            total = torch.zeros((logits.shape[1], *filled.shape[1:]), device=volume.device)
        # In the plain order, as the sum is; else adding takes twice as long.
        for place, one in zip(places, logits.contiguous(), strict=True):
            if len(starts) == 1:
                total, count = one, torch.ones((), device=volume.device)
                break
            total[(slice(None), *place)].addcmul_(one, weight)
            count[place] += weight
    assert total is not None
    total = total / count if count.dim() else total
    inner = [slice(line.before, line.before + line.kept) for line in lines]
    return total[(slice(None), *inner)]


def _mirrored(network: Callable[[Tensor], Tensor], crops: Tensor) -> Tensor:
    """Mean of the logits over all flips of the crops (n, C, D, H, W), flipped back."""
    total: Tensor | None = None
    axes = [2, 3, 4]
    turns = [c for n in range(4) for c in itertools.combinations(axes, n)]
    for turn in turns:
        own = network(crops.flip(turn) if turn else crops).float()
        own = own.flip(turn) if turn else own
        total = own if total is None else total + own
    assert total is not None
    return total / len(turns)
