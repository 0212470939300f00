"""Which images make up which batch, and the seed of each batch.

Order, augmentation and dropout follow from seed, epoch and batch alone, so that a run can go on
after any batch as if it had not stopped, and that one image can be shown as an epoch had it.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def batch_seed(seed: int, epoch: int, batch: int) -> int:
    """One seed for each batch (1, 2, …) of each epoch of each study seed."""
    return ((seed * 1_000_003 + epoch) * 1_000_003 + batch) % 2**63


def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The indices of all images (images,) in the order in which an epoch takes them."""
    shuffle = Generator().manual_seed(batch_seed(seed, epoch, 0))
    return torch.randperm(images, generator=shuffle)
