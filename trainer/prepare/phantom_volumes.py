"""Made-up CT and MRI volumes with the labels of their organs and lesions.

    image, label = draw_ct(rng, (48, 48, 40), organs=2)        # HU; 1 organ, 2 lesion
    images, label = draw_brain(rng, (48, 48, 32))              # four channels; 1 to 3 tumour

Shapes are ellipsoids with a wavy surface, in shares of the volume, so that they do not depend on
its size. Axes run rightwards, forwards and upwards. Nothing medical follows from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]

AIR, FAT, MUSCLE, BONE = -1000.0, -90.0, 45.0, 550.0
ORGAN, LESION = 160.0, -10.0
"""Hounsfield units; the organ is shown with contrast agent, the lesion is a cyst: apart from
muscle, so that a small network learns it in minutes."""

CT_NOISE = 18.0

BRAIN_CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
"""In the order of the Decathlon."""

BRAIN_CLASSES = ("edema", "non-enhancing tumor", "enhancing tumour")
BRAIN_TISSUES: dict[str, tuple[float, float, float, float]] = {
    "grey": (480.0, 430.0, 440.0, 520.0),
    "white": (400.0, 560.0, 570.0, 380.0),
    "fluid": (150.0, 200.0, 210.0, 900.0),
    "edema": (850.0, 380.0, 390.0, 780.0),
    "core": (560.0, 290.0, 300.0, 660.0),
    "enhancing": (640.0, 420.0, 950.0, 600.0),
}
"""Brightness in each of the four channels, as these sequences show them."""

BRAIN_NOISE = 22.0


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], cells: int) -> Floats:
    """A field from about -1 to 1 that varies over a cell; there are `cells` along each axis."""
    from scipy import ndimage

    coarse = rng.uniform(-1, 1, (cells + 1,) * 3)
    places = [np.linspace(0, cells, n) for n in shape]
    grid = np.meshgrid(*places, indexing="ij")
    return ndimage.map_coordinates(coarse, grid, order=1, output=np.float32)


def _places(shape: Sequence[int]) -> list[Floats]:
    """Of voxel centres along each axis, from -1 to 1, ready to be broadcast."""
    axes = [(2 * np.arange(n, dtype=np.float32) + 1) / n - 1 for n in shape]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def blob(
    rng: np.random.Generator,
    shape: Sequence[int],
    centre: Sequence[float],
    radii: Sequence[float],
    wavy: float = 0.12,
) -> Floats:
    """0 in its centre, 1 on its surface; centre and radii in half volumes (-1 to 1)."""
    parts = zip(_places(shape), centre, radii, strict=True)
    squared = sum(((x - c) / r) ** 2 for x, c, r in parts)
    return np.sqrt(squared) + wavy * smooth_noise(rng, shape, 4)


def _within(rng: np.random.Generator, mask: Mask) -> tuple[float, ...]:
    """The place of a voxel of the mask, in half volumes."""
    index = np.unravel_index(rng.choice(np.flatnonzero(mask)), mask.shape)
    return tuple((2 * int(i) + 1) / n - 1 for i, n in zip(index, mask.shape, strict=True))


def draw_ct(
    rng: np.random.Generator, shape: tuple[int, int, int], organs: int = 2
) -> tuple[Floats, Labels]:
    """An abdomen (D, H, W) in HU with one organ (a liver) or two (kidneys), and its label: 1 organ,
    2 lesion inside it."""
    from scipy import ndimage

    image = np.full(shape, AIR, np.float32)
    body = blob(rng, shape, (0, 0, 0), (0.9, 0.75, 3.0), 0.03)
    image[body < 1] = FAT
    image[body < 0.9] = MUSCLE
    image[blob(rng, shape, (0, -0.45, 0), (0.14, 0.14, 3.0), 0.05) < 1] = BONE
    label = np.zeros(shape, np.uint8)
    places = {1: [(-0.25, 0.1, 0.0)], 2: [(-0.45, -0.1, 0.0), (0.45, -0.1, 0.0)]}[organs]
    size = {1: (0.5, 0.45, 0.65), 2: (0.34, 0.38, 0.65)}[organs]
    for place in places:
        centre = [c + rng.uniform(-0.06, 0.06) for c in place]
        radii = [r * rng.uniform(0.85, 1.15) for r in size]
        label[blob(rng, shape, centre, radii) < 1] = 1
    image[label == 1] = ORGAN + rng.uniform(-20, 20)
    for _ in range(int(rng.integers(1, 4))):
        at = _within(rng, label == 1)
        across = rng.uniform(0.18, 0.3, 3)
        lesion = (blob(rng, shape, at, across.tolist()) < 1) & (label > 0)
        label[lesion] = 2
    image[label == 2] = LESION + rng.uniform(-10, 10)
    image = ndimage.gaussian_filter(image, 0.6)
    return image + rng.normal(0, CT_NOISE, shape).astype(np.float32), label


def draw_brain(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Floats, Labels]:
    """A brain (4, D, H, W) with a tumour in the channels of BRAIN_CHANNELS, 0 outside the head, and
    its label: 1 edema, 2 non-enhancing core, 3 enhancing."""
    from scipy import ndimage

    outline = blob(rng, shape, (0, 0, 0), (0.72, 0.85, 0.8), 0.05)
    head = outline < 1
    tissue = np.full(shape, "grey", "U9")
    tissue[outline + 0.35 * smooth_noise(rng, shape, 6) < 0.8] = "white"
    for side in (-0.14, 0.14):
        tissue[blob(rng, shape, (side, 0, 0.05), (0.09, 0.3, 0.16)) < 1] = "fluid"
    label = np.zeros(shape, np.uint8)
    centre = [side * rng.uniform(0.2, 0.4) for side in rng.choice([-1, 1], 3)]
    radius = rng.uniform(0.38, 0.5)
    tumour = blob(rng, shape, centre, [radius * rng.uniform(0.8, 1.2) for _ in range(3)], 0.2)
    for number, share in ((1, 1.0), (3, 0.7), (2, 0.45)):
        label[(tumour < share) & head] = number
    for number, name in ((1, "edema"), (2, "core"), (3, "enhancing")):
        tissue[label == number] = name
    image = np.zeros((4, *shape), np.float32)
    for name, levels in BRAIN_TISSUES.items():
        image[:, (tissue == name) & head] = np.asarray(levels, np.float32)[:, None]
    for channel in image:
        channel[:] = ndimage.gaussian_filter(channel, 0.6)
        channel *= 1 + 0.12 * smooth_noise(rng, shape, 2)  # the bias field of the coil
        channel += rng.normal(0, BRAIN_NOISE, shape)
        channel *= rng.uniform(0.8, 1.25)  # MRI has no unit
        channel[~head] = 0
    return np.maximum(image, 0), label
