"""Predictions of a model of slices: of an array of slices, or of a raw BraTS scan, prepared alike.

    done = predict_slices(model, "imgs_test", (Path("data/imgs_test.npy"),), Path("out"))

NAME_predictions.npy has (slices, height, width, 1) probabilities, float32, every slice in its row.
Of a raw scan masks/NAME.nii.gz is 1 where they are above 0.5, on the scan's own voxels; what the
crop left out is 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.slice_files import open_array
from trainer.data.volumes.grid import Grid
from trainer.data.volumes.scans import read_scan, write_label
from trainer.errors import InputError
from trainer.losses import probabilities
from trainer.model import Model
from trainer.prepare.brats_slices import normalised_slices, put_back

AT_ONCE = 32
"""Slices in a batch."""


class Predicted(NamedTuple):
    """What was written for one array or scan: its files; the shape of the label, or of the array
    where there is none, and the voxels above 0.5 in it."""

    array: Path
    label: Path | None
    shape: tuple[int, ...]
    voxels: int


def predict_slices(
    model: Model,
    name: str,
    paths: tuple[Path, ...],
    out: Path,
    check: Callable[[], None] = lambda: None,
) -> Predicted:
    """Predicts one .npy file of slices, or one scan (a file a modality), into the folder `out`.

    `check` is called before each batch, and may raise. Raises InputError for what cannot be read,
    and for slices of another shape than the training's.
    """
    array, grid = _slices(model, name, paths)
    used = model.use.slices
    assert used
    target = out / f"{name}_predictions.npy"
    beside = out / f".{target.name}.{os.getpid()}"
    try:
        found = np.lib.format.open_memmap(beside, "w+", np.float32, (*array.shape[:3], 1))
        for first in range(0, len(array), AT_ONCE):
            check()
            rows = np.asarray(array[first : first + AT_ONCE], np.float32)[..., used.channels]
            found[first : first + len(rows), ..., 0] = _forward(model, rows)
        found.flush()
        label = None
        mask: NDArray[Any] = np.asarray(found[..., 0] > 0.5)
        if grid is not None:
            mask = put_back(mask, grid.shape)
            label = write_label(out / "masks" / name, mask, grid, paths[0])
        del found
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    return Predicted(target, label, mask.shape, int(mask.sum()))


def _slices(
    model: Model, name: str, paths: tuple[Path, ...]
) -> tuple[NDArray[np.floating], Grid | None]:
    """(slices, height, width, channels), and the grid of the scan that they are of, if any."""
    used = model.use.slices
    assert used
    if len(paths) > 1:
        scan = read_scan(list(paths))
        return normalised_slices(scan.array, used.height, name), scan.grid
    array = open_array(paths[0])
    channels = max(used.channels) + 1
    if array.shape[3] < channels or array.shape[1:3] != (used.height, used.width):
        accepted = f"(slices, {used.height}, {used.width}, {channels} or more channels)"
        raise InputError(str(paths[0]), f"has the shape {array.shape}", accepted)
    return array, None


@torch.inference_mode()
def _forward(model: Model, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, H, W, C) -> probabilities (n, H, W)."""
    x = torch.from_numpy(np.ascontiguousarray(rows.transpose(0, 3, 1, 2))).to(model.device)
    return probabilities(model.forward(x), model.reading)[:, 0].cpu().numpy()
