"""Distances between surfaces, in millimetres.

    hd95_mm(truth, found, spacing_mm)              # 95th percentile of the Hausdorff distance
    surface_dice(truth, found, spacing_mm, 1.0)    # share of both surfaces within 1 mm

A surface are the voxels of an object that have a neighbour (over a face) outside of it; a distance
is that of their centres. HD95 is the larger of the two directions' 95th percentiles, as in MONAI;
surface Dice is that of Nikolov et al. 2018, each surface voxel counting the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def _distances(
    truth: Mask, found: Mask, spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """From each voxel of the truth's surface to the other's, and back; None where one is empty."""
    from scipy import ndimage

    if not truth.any() or not found.any():
        return None
    box = ndimage.find_objects((truth | found).astype(np.uint8))[0]
    around = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
    surfaces = []
    for mask in (truth[around], found[around]):
        # What lies beyond the volume is outside of the object.
        surfaces.append(mask & ~ndimage.binary_erosion(mask, border_value=0))
    own, other = surfaces
    to_other = ndimage.distance_transform_edt(~other, sampling=spacing_mm)[own]
    to_own = ndimage.distance_transform_edt(~own, sampling=spacing_mm)[other]
    return np.asarray(to_other), np.asarray(to_own)


def hd95_mm(truth: Mask, found: Mask, spacing_mm: Sequence[float]) -> float | None:
    """Of two objects (D, H, W); None where one of them is empty."""
    both = _distances(truth, found, spacing_mm)
    if both is None:
        return None
    return float(max(np.percentile(one, 95) for one in both))


def surface_dice(
    truth: Mask, found: Mask, spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    """Of two objects (D, H, W), 0 to 1: 1 where both are empty, 0 where one of them is."""
    if not truth.any() and not found.any():
        return 1.0
    both = _distances(truth, found, spacing_mm)
    if both is None:
        return 0.0
    near = sum(int((one <= tolerance_mm).sum()) for one in both)
    return near / sum(len(one) for one in both)
