"""Predictions of a model of slices: of arrays of slices, or of raw BraTS scans, prepared alike.

    done = predict_slices(model, Path("data/imgs_test.npy"), Path("out"))
    done = predict_slices(model, Path("HGG"), Path("out"))

NAME_predictions.npy has (slices, height, width, 1) probabilities, float32, every slice in its row.
Of a raw scan masks/NAME.nii.gz is 1 where they are above 0.5, on the scan's own voxels; what the
crop left out is 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.volumes.grid import Grid
from trainer.data.volumes.scans import read_scan, write_label
from trainer.errors import InputError
from trainer.losses import probabilities
from trainer.model import Model
from trainer.prepare.brats_slices import find_scans, normalised_slices, put_back

AT_ONCE = 32
"""Slices in a batch."""


class Predicted(NamedTuple):
    """What was written for one array or scan: its files, its shape, the voxels above 0.5."""

    name: str
    array: Path
    label: Path | None
    shape: tuple[int, ...]
    voxels: int


class _Source(NamedTuple):
    """One array (slices, height, width, channels), and the scan that it was made from, if any."""

    name: str
    slices: NDArray[np.floating]
    grid: Grid | None = None
    scan: Path | None = None


def _sources(source: Path, size: int) -> Iterator[_Source]:
    files = [source] if source.is_file() else sorted(source.glob("*.npy"))
    files = [one for one in files if not one.stem.endswith("_predictions")]
    arrays = [one for one in files if one.suffix == ".npy" and not one.stem.startswith("msks_")]
    for one in arrays:
        try:
            array = np.load(one, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(str(one), f"cannot be read ({error})", "a .npy file") from None
        yield _Source(one.stem, array)
    if arrays:
        return
    for name, paths in find_scans(source):
        scan = read_scan(list(paths))
        yield _Source(name, normalised_slices(scan.array, size, name), scan.grid, paths[0])


def predict_slices(
    model: Model,
    source: Path,
    out: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    check: Callable[[], None] = lambda: None,
) -> list[Predicted]:
    """Predicts .npy files of slices (one, or those of a folder), or the raw scans below a folder.

    Raises InputError where there is neither, and for arrays of another shape than the training's.
    """
    used = model.use.slices
    assert used
    done: list[Predicted] = []
    for one in _sources(source, used.height):
        array = one.slices
        channels = max(used.channels) + 1
        if (
            array.ndim != 4
            or array.shape[3] < channels
            or array.shape[1:3]
            != (
                used.height,
                used.width,
            )
        ):
            accepted = f"(slices, {used.height}, {used.width}, {channels} or more channels)"
            raise InputError(one.name, f"has the shape {array.shape}", accepted)
        target = out / f"{one.name}_predictions.npy"
        beside = out / f".{target.name}.{os.getpid()}"
        try:
            found = np.lib.format.open_memmap(beside, "w+", np.float32, (*array.shape[:3], 1))
            for first in range(0, len(array), AT_ONCE):
                check()
                rows = np.asarray(array[first : first + AT_ONCE], np.float32)[..., used.channels]
                found[first : first + len(rows), ..., 0] = _forward(model, rows)
            found.flush()
            label = None
            if one.grid is not None:
                mask = put_back(np.asarray(found[..., 0] > 0.5), one.grid.shape)
                label = write_label(out / "masks" / one.name, mask, one.grid, one.scan)
            voxels = int((found > 0.5).sum())
            del found
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
        done.append(Predicted(one.name, target, label, tuple(array.shape[:3]), voxels))
        progress(len(done), len(done), one.name)
    return done


@torch.inference_mode()
def _forward(model: Model, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, H, W, C) -> probabilities (n, H, W)."""
    x = torch.from_numpy(np.ascontiguousarray(rows.transpose(0, 3, 1, 2))).to(model.device)
    return probabilities(model.forward(x), model.reading)[:, 0].cpu().numpy()
