"""What a data set of volumes is like: sizes, spacings, intensities and classes of its cases.

`look` reads one case and tells its faults; `fingerprint` is what fingerprint.json holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.volumes.grid import Grid
from trainer.data.volumes.preparation import Preparation
from trainer.data.volumes.scans import Scan, read_label, read_scan
from trainer.errors import InputError
from trainer.prepare.volume_sources import Source

SAMPLED = 10_000
"""Foreground voxels of a case whose values are kept (as in nnU-Net)."""

BLOCK = 1 << 20
PERCENTILES = {"percentile_00_5": 0.5, "median": 50.0, "percentile_99_5": 99.5}


class Seen(NamedTuple):
    """A case as it was read.

    `voxels` counts those of each class, `sampled` (C, n) are values of foreground voxels, evenly
    drawn, `sha256` is over its files, `digest` over its scan's values, `values` are those of the
    label.
    """

    source: Source
    grid: Grid
    voxels: tuple[int, ...]
    sampled: NDArray[np.float32]
    sha256: str
    digest: str
    values: tuple[int, ...] = ()


def file_sha256(paths: Sequence[Path]) -> str:
    """Of files' contents, one after the other; of a folder, of its files by name."""
    total = hashlib.sha256()
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            with file.open("rb") as opened:
                while block := opened.read(BLOCK):
                    total.update(block)
    return total.hexdigest()


def read_case(source: Source) -> tuple[Scan, NDArray[Any] | None]:
    """The scan of a case and the values of its label, on the same voxels; raises InputError."""
    scan = read_scan(source.images[0] if len(source.images) == 1 else list(source.images))
    if source.label is None:
        return scan, None
    label, grid = read_label(source.label)
    where = f"{source.name}, {source.label}"
    if grid.shape != scan.grid.shape:
        sizes = ["x".join(map(str, one.shape)) for one in (grid, scan.grid)]
        found = f"the label has {sizes[0]} voxels, its scan {sizes[1]}"
        raise InputError(where, found, "a label on the voxels of its scan")
    if not grid.same_as(scan.grid):
        if source.label.suffix == ".npy" or source.images[0].suffix == ".npy":
            return scan, label  # these do not say where they lie
        apart = np.abs(grid.affine - scan.grid.affine)
        found = f"the label lies elsewhere than its scan (affines differ by up to {apart.max():g})"
        raise InputError(where, found, "a label on the voxels of its scan")
    return scan, label


def look(source: Source, classes: Preparation, channels: int | None) -> Seen:
    """Reads one case; raises InputError with its first fault, which names the case.

    `classes` says which values are which class; `channels` is the number that is expected.
    """
    try:
        scan, label = read_case(source)
        if channels is not None and len(scan.array) != channels:
            found = f"has {len(scan.array)} channels"
            raise InputError(str(source.images[0]), found, f"{channels}, as the data set says")
        if scan.array.min() == scan.array.max():
            found = f"all its voxels are {scan.array.flat[0]:g}"
            raise InputError(str(source.images[0]), found, "a scan")
        numbers = None
        if label is not None:
            numbers = classes.classes_of(label, f"the label {source.label}")
        voxels = np.bincount(
            numbers.ravel() if numbers is not None else np.zeros(0, np.int64),
            minlength=len(classes.classes),
        )
        inside = np.flatnonzero(numbers) if numbers is not None else np.zeros(0, np.int64)
        if len(inside) > SAMPLED:
            inside = inside[np.linspace(0, len(inside) - 1, SAMPLED).astype(np.int64)]
        return Seen(
            source,
            scan.grid,
            tuple(voxels.tolist()),
            scan.array.reshape(len(scan.array), -1)[:, inside],
            file_sha256([*source.images, *([source.label] if source.label else [])]),
            hashlib.sha256(scan.array.data).hexdigest(),
            tuple(np.unique(label).tolist()) if label is not None else (),
        )
    except InputError as error:
        if error.where.startswith(source.name + ","):
            raise
        where = f"{source.name}, {error.where}" if error.where else source.name
        raise InputError(where, error.found, error.accepted, error.fix) from None


def _intensities(sampled: NDArray[np.float32]) -> list[dict[str, float]] | None:
    """Of each channel, over foreground voxels."""
    if not sampled.shape[1]:
        return None
    told = []
    for values in sampled.astype(np.float64):
        points = np.percentile(values, list(PERCENTILES.values()))
        facts = dict(zip(PERCENTILES, points.tolist(), strict=True))
        told.append({**facts, "mean": float(values.mean()), "std": float(values.std())})
    return told


def fingerprint(
    kind: str,
    name: str,
    channels: Sequence[str],
    classes: Sequence[str],
    seen: Sequence[Seen],
    orientation: str,
    spacing_known: bool = True,
) -> dict[str, Any]:
    """What fingerprint.json says. Shapes and spacings have their axes in `orientation`; intensities
    and shares are those of the training cases, by the part of each case's source."""
    cases, training = [], [one for one in seen if one.source.part == "train"]
    for one in seen:
        grid = one.grid.turned(orientation)
        cases.append(
            {
                "name": one.source.name,
                "patient": one.source.patient,
                "part": one.source.part,
                "shape": list(grid.shape),
                "spacing_mm": [round(mm, 6) for mm in grid.spacing_mm],
                "orientation": one.grid.orientation,
                "voxels": dict(zip(classes, one.voxels, strict=True)),
                "intensities": _intensities(one.sampled),
                "sha256": one.sha256,
            }
        )
    shapes = np.array([one.grid.turned(orientation).shape for one in training])
    spacings = np.array([one.grid.turned(orientation).spacing_mm for one in training])
    voxels = np.sum([one.voxels for one in training], axis=0)
    total = hashlib.sha256("".join(sorted(one.sha256 for one in seen)).encode())
    return {
        "schema_version": 1,
        "kind": kind,
        "name": name,
        "number_of_cases": len(seen),
        "channels": list(channels),
        "classes": list(classes),
        "orientation": orientation,
        "median_shape": np.median(shapes, axis=0).tolist(),
        "median_spacing_mm": [round(mm, 6) for mm in np.median(spacings, axis=0).tolist()],
        "spacing_mm_percentile_10": [
            round(mm, 6) for mm in np.percentile(spacings, 10, axis=0).tolist()
        ],
        "spacing_known": spacing_known,
        "class_shares": dict(zip(classes, (voxels / max(1, voxels.sum())).tolist(), strict=True)),
        "intensities": _intensities(np.concatenate([one.sampled for one in training], axis=1)),
        "sha256": total.hexdigest(),
        "cases": cases,
    }
