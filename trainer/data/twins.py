"""Near-identical images: the same scene saved twice, cropped a little or scaled. Torch-free."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TWIN_SIDE = 64
TWIN_CORRELATION = 0.95
"""Grey images of 64x64 pixels that correlate above this are taken for the same scene."""

BLOCK = 2048


def small_grey(image: Any) -> NDArray[np.float32]:
    """A PIL image as 64x64 grey values (4096,), 0 to 255."""
    small = image.convert("L").resize((TWIN_SIDE, TWIN_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).ravel()


def standardised(view: NDArray[np.float32]) -> NDArray[np.float32]:
    """`view` around 0 and of length 1, so that a product of two is their correlation."""
    centred = view - view.mean()
    length = float(np.linalg.norm(centred))
    return np.asarray(centred / length if length > 0 else centred, np.float32)


def twins(left: NDArray[np.float32], right: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Pairs (row of left, row of right) of near-identical images, in blocks that fit in memory.

    A row is a `small_grey` image, `standardised`.
    """
    found: list[tuple[int, int]] = []
    for start in range(0, len(left), BLOCK):
        for other in range(0, len(right), BLOCK):
            products = left[start : start + BLOCK] @ right[other : other + BLOCK].T
            rows, columns = np.nonzero(products > TWIN_CORRELATION)
            found += zip((rows + start).tolist(), (columns + other).tolist(), strict=True)
    return found
