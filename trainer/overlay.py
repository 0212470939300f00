"""Classes drawn over an image: filled half transparently, with an outline. Torch-free."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLOURS = (
    "#ff7f0e",
    "#1f77b4",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#17becf",
    "#bcbd22",
    "#7f7f7f",
)
"""Of the classes after the background, in turn."""

FILL = 0.35


def colour_of(number: int) -> NDArray[np.uint8]:
    """RGB of the class with this number; the background is 0 and has none."""
    text = COLOURS[(number - 1) % len(COLOURS)]
    return np.array([int(text[at : at + 2], 16) for at in (1, 3, 5)], np.uint8)


def edges(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (H, W) of a region that touch another pixel, or the border."""
    inside = np.pad(region, 1)
    whole = inside[1:-1, :-2] & inside[1:-1, 2:] & inside[:-2, 1:-1] & inside[2:, 1:-1]
    return region & ~whole


def overlay(image: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (H, W, 3) with its classes (H, W) drawn on it; (H, W, 3)."""
    drawn = image.astype(np.float32)
    for number in np.unique(classes):
        if number == 0:
            continue
        region = classes == number
        colour = colour_of(int(number)).astype(np.float32)
        drawn[region] = (1 - FILL) * drawn[region] + FILL * colour
        drawn[edges(region)] = colour
    return drawn.round().astype(np.uint8)
