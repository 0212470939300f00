"""Made-up volumes in the layouts of published data sets, for a first try, tests and benchmarks.

make_phantoms("msd", Path("data/phantoms"), cases=12, size=48, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.volumes.grid import Grid
from trainer.errors import InputError
from trainer.files import write_json
from trainer.prepare.new_folder import check_empty, new_folder
from trainer.prepare.phantom_dicom import write_series
from trainer.prepare.phantom_volumes import BRAIN_CHANNELS, BRAIN_CLASSES, draw_brain, draw_ct

SMALLEST = 16
FOLDS = 5
BRATS_CHANNELS = {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
"""Files of a BraTS scan, and the channel of draw_brain that each of them has."""

BRATS_VALUES = np.array([0, 2, 1, 4], np.uint8)
"""Edema is 2, the non-enhancing core 1, what enhances 4."""


class Drawn(NamedTuple):
    """A phantom: (C, D, H, W), (D, H, W), and where the voxels lie."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    grid: Grid


def make_phantoms(
    kind: str,
    target: Path,
    cases: int = 12,
    size: int = 48,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Writes `cases` phantoms of about `size` voxels a side in the layout `kind` (KINDS).

    The same seed gives the same volumes. Raises InputError for a target that is not empty.
    """
    check_empty(target)
    for option, number, least in (("--cases", cases, 1), ("--size", size, SMALLEST)):
        if number < least:
            raise InputError(option, f"is {number}", f"{least} or more")
    if seed < 0:
        raise InputError("--seed", f"is {seed}", "0 or more")
    draw, write, finish = KINDS[kind]
    with new_folder(target) as folder:
        for number in range(cases):
            rng = np.random.default_rng([seed, number])
            write(folder, number, draw(rng, size))
            progress("written", number + 1, cases)
        finish(folder, cases)


def _shape(rng: np.random.Generator, size: int, depth: float = 0.85) -> tuple[int, int, int]:
    """Sides of about `size`, and less upwards; every case has its own."""
    sides = [size, size, size * depth]
    found = [max(SMALLEST, round(side * rng.uniform(0.92, 1.08))) for side in sides]
    return found[0], found[1], found[2]


def _grid(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> Grid:
    """Axes rightwards, forwards and upwards, with the middle of the volume at 0."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.asarray(shape) - 1) / 2 * spacing
    return Grid(tuple(shape), affine)


def _brain(rng: np.random.Generator, size: int) -> Drawn:
    shape = _shape(rng, size)
    image, label = draw_brain(rng, shape)
    return Drawn(image, label, _grid(shape, (1.0, 1.0, 1.0)))


def _brats(rng: np.random.Generator, size: int) -> Drawn:
    """All of one size, as BraTS has 240 x 240 x 155; axes leftwards, backwards, upwards."""
    shape = (size, size, max(SMALLEST, round(size * 155 / 240)))
    image, label = draw_brain(rng, shape)
    grid = _grid(shape, (1.0, 1.0, 1.0)).turned("LPS")
    return Drawn(image[:, ::-1, ::-1].copy(), label[::-1, ::-1].copy(), grid)


def _ct(organs: int) -> Callable[[np.random.Generator, int], Drawn]:
    def draw(rng: np.random.Generator, size: int) -> Drawn:
        shape = _shape(rng, size)
        image, label = draw_ct(rng, shape, organs)
        spacing = (0.8, 0.8, float(rng.choice([1.0, 1.25, 1.5])))
        return Drawn(np.rint(image)[None], label, _grid(shape, spacing))

    return draw


def _kits(rng: np.random.Generator, size: int) -> Drawn:
    """Slices along the first axis, downwards, as KiTS19 has them."""
    image, label, grid = _ct(2)(rng, size)
    spacing = np.array([2.4, 2.4, float(rng.choice([2.4, 3.2, 4.0]))])
    turned = Grid(grid.shape, _grid(grid.shape, tuple(spacing)).affine).turned("IPL")
    moved = image.transpose(0, 3, 2, 1)[:, ::-1, ::-1, ::-1].copy()
    return Drawn(moved, label.transpose(2, 1, 0)[::-1, ::-1, ::-1].copy(), turned)


def _nifti(path: Path, array: NDArray[Any], grid: Grid) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image: Any = nibabel.Nifti1Image(array, grid.affine)
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    nibabel.save(image, path)


def _itk(path: Path, array: NDArray[Any], grid: Grid) -> None:
    import SimpleITK

    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine  # LPS+
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / grid.spacing_mm).ravel().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def _write_msd(folder: Path, number: int, one: Drawn) -> None:
    name = f"PHANTOM_{number:03d}.nii.gz"
    image = np.moveaxis(np.rint(one.image).astype(np.int16), 0, 3)
    _nifti(folder / "imagesTr" / name, image, one.grid)
    _nifti(folder / "labelsTr" / name, one.label, one.grid)


def _finish_msd(folder: Path, cases: int) -> None:
    names = [f"PHANTOM_{number:03d}.nii.gz" for number in range(cases)]
    content = {
        "name": "Phantoms",
        "description": "Made-up brains with tumours",
        "tensorImageSize": "4D",
        "modality": {str(n): name for n, name in enumerate(BRAIN_CHANNELS)},
        "labels": {str(n): name for n, name in enumerate(("background", *BRAIN_CLASSES))},
        "numTraining": cases,
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names
        ],
        "test": [],
    }
    write_json(folder / "dataset.json", content)


def _write_nnunet(folder: Path, number: int, one: Drawn) -> None:
    name = f"phantom_{number:03d}"
    for channel, image in enumerate(one.image):
        path = folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz"
        _nifti(path, np.rint(image).astype(np.int16), one.grid)
    _nifti(folder / "labelsTr" / f"{name}.nii.gz", one.label, one.grid)


def _finish_nnunet(folder: Path, cases: int) -> None:
    content = {
        "name": "Phantoms",
        "channel_names": {str(n): name for n, name in enumerate(BRAIN_CHANNELS)},
        "labels": {
            "background": 0,
            "whole tumour": [1, 2, 3],
            "tumour core": [2, 3],
            "enhancing tumour": [3],
        },
        "regions_class_order": [1, 2, 3],
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", content)
    names = [f"phantom_{number:03d}" for number in range(cases)]
    folds = [
        {
            "train": [name for n, name in enumerate(names) if n % FOLDS != fold],
            "val": [name for n, name in enumerate(names) if n % FOLDS == fold],
        }
        for fold in range(min(FOLDS, cases))
    ]
    write_json(folder / "splits_final.json", folds)


def _write_pairs(folder: Path, number: int, one: Drawn) -> None:
    name = f"phantom_{number:03d}.nrrd"
    _itk(folder / "images" / name, one.image[0].astype(np.int16), one.grid)
    _itk(folder / "labels" / name, one.label, one.grid)


def _write_dicom(folder: Path, number: int, one: Drawn) -> None:
    """Columns leftwards and rows backwards, as scanners write them."""
    grid = one.grid.turned("LPS")
    name = f"patient_{number:03d}"
    write_series(folder / name / "ct", one.image[0, ::-1, ::-1], grid, name, number)
    _nifti(folder / name / "ct" / "label.nii.gz", one.label[::-1, ::-1].copy(), grid)


def _write_kits(folder: Path, number: int, one: Drawn) -> None:
    own = folder / f"case_{number:05d}"
    _nifti(own / "imaging.nii.gz", one.image[0].astype(np.int16), one.grid)
    _nifti(own / "segmentation.nii.gz", one.label, one.grid)


def _write_lits(folder: Path, number: int, one: Drawn) -> None:
    _nifti(folder / f"volume-{number}.nii", one.image[0].astype(np.int16), one.grid)
    _nifti(folder / f"segmentation-{number}.nii", one.label, one.grid)


def _write_brats(folder: Path, number: int, one: Drawn) -> None:
    name = f"Brats17_PHANTOM_{number:03d}_1"
    for modality, channel in BRATS_CHANNELS.items():
        path = folder / "HGG" / name / f"{name}_{modality}.nii.gz"
        _nifti(path, np.rint(one.image[channel]).astype(np.int16), one.grid)
    path = folder / "HGG" / name / f"{name}_seg.nii.gz"
    _nifti(path, BRATS_VALUES[one.label], one.grid)


def _nothing(folder: Path, cases: int) -> None:
    pass


Draw = Callable[[np.random.Generator, int], Drawn]
Write = Callable[[Path, int, Drawn], None]
Finish = Callable[[Path, int], None]

KINDS: dict[str, tuple[Draw, Write, Finish]] = {
    "msd": (_brain, _write_msd, _finish_msd),
    "nnunet": (_brain, _write_nnunet, _finish_nnunet),
    "pairs": (_ct(1), _write_pairs, _nothing),
    "dicom": (_ct(1), _write_dicom, _nothing),
    "kits19": (_kits, _write_kits, _nothing),
    "lits": (_ct(1), _write_lits, _nothing),
    "brats": (_brats, _write_brats, _nothing),
}
"""By the name of a layout: what is drawn, how a case is written, and what completes the folder."""
