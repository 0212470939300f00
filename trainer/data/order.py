"""Which samples make up which batch, and the seed of each batch.

Order and dropout follow from seed, epoch and batch alone, augmentation from seed, epoch and sample,
so that a run can go on after any batch as if it had not stopped, and that one image can be shown as
an epoch had it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Generator, Tensor


def batch_seed(seed: int, epoch: int, batch: int) -> int:
    """One seed for each batch (1, 2, …) of each epoch of each study seed."""
    return ((seed * 1_000_003 + epoch) * 1_000_003 + batch) % 2**63


def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The indices of all images (images,) in the order in which an epoch takes them."""
    shuffle = Generator().manual_seed(batch_seed(seed, epoch, 0))
    return torch.randperm(images, generator=shuffle)


def shuffled_batches(
    seed: int,
    epoch: int,
    groups: Sequence[int],
    batch_size: int,
    device: torch.device | None = None,
) -> list[Tensor]:
    """The batches of an epoch of training, each with the indices of its samples, on `device`.

    `groups` are the lengths of the runs of samples that may share a batch; the batches of different
    groups come mixed.
    """
    order = epoch_order(seed, epoch, sum(groups)).to(device)
    if len(groups) == 1:
        return list(order.split(batch_size))
    ends = list(accumulate(groups))
    batches = [
        batch
        for count, end in zip(groups, ends, strict=True)
        for batch in order[(order >= end - count) & (order < end)].split(batch_size)
    ]
    return [batches[place] for place in epoch_order(seed, -epoch, len(batches)).tolist()]


def batches_in_order(
    groups: Sequence[int], batch_size: int, device: torch.device | None = None
) -> list[Tensor]:
    """All samples in their order, in batches that mix no groups, indices on `device`."""
    ends = list(accumulate(groups))
    return [
        batch
        for count, end in zip(groups, ends, strict=True)
        for batch in torch.arange(end - count, end, device=device).split(batch_size)
    ]
