"""Scans and labels as files: NIfTI, MetaImage, NRRD, numpy, and folders of DICOM series.

    for files in list_scans(folder):
        scan = read_scan(files.paths)                # scan.array (C, D, H, W), scan.grid
        write_label(out / scan.name, label, scan.grid, like=files.paths[0])

Axes D, H, W are those of the file, the fastest one first (i, j, k, as nibabel gives them).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.volumes.dicom import is_dicom, read_series
from trainer.data.volumes.grid import Grid
from trainer.errors import InputError

NIFTI = (".nii", ".nii.gz")
ITK = (".mha", ".mhd", ".nrrd")
SUFFIXES = (*NIFTI, *ITK, ".npy")
ACCEPTED = f"a scan ({', '.join(SUFFIXES)}) or a folder with a DICOM series"
CHANNEL = re.compile(r"(.+)_(\d{4})$")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NEAR_WHOLE = 1e-3
"""A label that is stored with a scale may miss its whole number by this much."""


class Scan(NamedTuple):
    """The voxels (C, D, H, W) float32 of a scan, where they lie, and its name."""

    array: NDArray[np.float32]
    grid: Grid
    name: str


class Files(NamedTuple):
    """What one scan is read from: a file, a file a channel, or a folder with a DICOM series."""

    name: str
    paths: tuple[Path, ...]


def suffix_of(path: Path) -> str:
    """.nii.gz and the like, in lower case; nothing where it is no scan's."""
    return next((s for s in (".nii.gz", *SUFFIXES) if path.name.lower().endswith(s)), "")


def stem_of(path: Path) -> str:
    """The name of a scan's file without its suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def read_scan(paths: Path | Sequence[Path]) -> Scan:
    """A scan from a file, a folder with a DICOM series, or one file a channel.

    Raises InputError for what cannot be read, has not three axes (and channels), holds values that
    are no numbers, and for channels on different voxels.
    """
    if not isinstance(paths, Path):
        parts = [read_scan(path) for path in paths]
        if len(parts) == 1:
            return parts[0]
        for path, part in zip(paths, parts, strict=True):
            if len(part.array) != 1:
                found = f"has {len(part.array)} channels"
                raise InputError(str(path), found, "one, where each channel has a file")
            if not part.grid.same_as(parts[0].grid):
                found = f"lies on other voxels than {paths[0].name}"
                raise InputError(str(path), found, "channels of one scan on the same voxels")
        match = CHANNEL.fullmatch(parts[0].name)
        name = match[1] if match else parts[0].name
        return Scan(np.concatenate([part.array for part in parts]), parts[0].grid, name)
    array, grid = _read(paths, np.float32)
    if array.ndim == 3:
        array = array[None]
    image = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(image.sum(dtype=np.float64)):
        broken = int((~np.isfinite(image)).sum())
        found = f"{broken} of its {image.size} values are not a number, or infinite"
        raise InputError(str(paths), found, "numbers")
    return Scan(image, grid, paths.name if paths.is_dir() else stem_of(paths))


def read_label(path: Path) -> tuple[NDArray[Any], Grid]:
    """The values (D, H, W) of a label, whole numbers, and where they lie; raises InputError."""
    array, grid = _read(path, None)
    if array.ndim == 4:
        if len(array) != 1:
            raise InputError(str(path), f"has {len(array)} channels", "a label (D, H, W)")
        array = array[0]
    if array.dtype.kind == "b":
        return array.astype(np.uint8), grid
    if array.dtype.kind == "f":
        if not np.isfinite(array.sum(dtype=np.float64)):
            raise InputError(str(path), "has values that are not a number", "whole numbers")
        whole = np.rint(array)
        if np.abs(array - whole).max() > NEAR_WHOLE:
            odd = float(array.flat[int(np.abs(array - whole).argmax())])
            raise InputError(str(path), f"has the value {odd:g}", "a label has whole numbers")
        array = whole.astype(np.int32)
    return array, grid


def read_grid(path: Path) -> tuple[Grid, int]:
    """Where the voxels of a NIfTI, MetaImage or NRRD file lie, and its number of channels, from its
    header; of other files by reading them."""
    if suffix_of(path) not in NIFTI or path.is_dir():
        array, grid = _read(path, None)
        return grid, 1 if array.ndim == 3 else len(array)
    image = _open_nifti(path)
    shape = _without_ones(image.shape)
    if len(shape) not in (3, 4):
        raise _wrong_axes(path, image.shape)
    return _grid(path, shape[:3], image.affine), shape[3] if len(shape) == 4 else 1


def _read(path: Path, dtype: Any) -> tuple[NDArray[Any], Grid]:
    """(D, H, W) or (C, D, H, W) in `dtype` (None: as stored), and the grid."""
    if path.is_dir():
        series = read_series(path)
        return series.array, _grid(path, series.array.shape, LPS_TO_RAS @ series.affine)
    if not path.exists():
        raise InputError(str(path), "there is no such file", ACCEPTED)
    suffix = suffix_of(path)
    if suffix in NIFTI:
        return _read_nifti(path, dtype)
    if suffix in ITK:
        return _read_itk(path)
    if suffix == ".npy":
        return _read_numpy(path)
    raise InputError(str(path), "is no scan", ACCEPTED)


def _broken(path: Path, error: BaseException) -> InputError:
    told = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return InputError(str(path), f"cannot be read ({told})", "a whole file", "copy it anew")


def _wrong_axes(path: Path, shape: Sequence[int]) -> InputError:
    told = "x".join(map(str, shape))
    found = f"has {len(shape)} axes ({told})"
    return InputError(str(path), found, "three axes, and at most one for channels")


def _grid(path: Path, shape: Sequence[int], affine: NDArray[Any]) -> Grid:
    affine = np.asarray(affine, float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise InputError(str(path), "does not say where its voxels lie", "an affine of full rank")
    if 0 in shape:
        raise InputError(str(path), "has no voxels", "a scan")
    return Grid(tuple(int(n) for n in shape), affine)


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes beyond the third, without those of size 1."""
    return (*shape[:3], *(n for n in shape[3:] if n != 1))


def _open_nifti(path: Path) -> Any:
    import nibabel

    # What is wrong with a file is told once, by an error of ours or not at all.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    try:
        image: Any = nibabel.load(path)
        coloured = image.get_data_dtype().fields
    except Exception as error:  # of many kinds, where bytes are wrong
        raise _broken(path, error) from None
    if coloured:
        raise InputError(str(path), "has coloured voxels", "one number a voxel")
    return image


def _read_nifti(path: Path, dtype: Any) -> tuple[NDArray[Any], Grid]:
    image = _open_nifti(path)
    shape = _without_ones(image.shape)
    if len(shape) not in (3, 4):
        raise _wrong_axes(path, image.shape)
    try:
        # Scaled in floating point by the slope and intercept of the header, whatever is stored.
        with np.errstate(all="ignore"):  # what overflows is found by its infinity
            array = image.get_fdata(dtype=dtype) if dtype else np.asanyarray(image.dataobj)
    except Exception as error:  # as above; also MemoryError, for sizes that cannot be
        raise _broken(path, error) from None
    array = array.reshape(shape)
    if array.ndim == 4:
        array = np.moveaxis(array, 3, 0)
    return array, _grid(path, shape[:3], image.affine)


def _read_itk(path: Path) -> tuple[NDArray[Any], Grid]:
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise _broken(path, error) from None
    array = SimpleITK.GetArrayFromImage(image)  # (…, k, j, i), with channels last
    vector = image.GetNumberOfComponentsPerPixel() > 1
    size = image.GetSize()
    if image.GetDimension() == 4 and size[3] == 1 and not vector:
        array = array[0]
    if array.ndim - vector == 3:
        array = array.transpose((3, 2, 1, 0) if vector else (2, 1, 0))
    elif array.ndim == 4 and not vector:
        array = array.transpose(0, 3, 2, 1)
    else:
        raise _wrong_axes(path, size)
    return array, _grid(path, size[:3], _itk_affine(image))


def _itk_affine(image: Any) -> NDArray[np.float64]:
    """RAS+ of an image or reader of SimpleITK, which has LPS+."""
    count = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (count, count))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ affine


def _read_numpy(path: Path) -> tuple[NDArray[Any], Grid]:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy reads the header as Python, which fails in many ways
        raise _broken(path, error) from None
    if array.dtype.kind not in "buif":
        raise InputError(str(path), f"has values of the type {array.dtype}", "numbers")
    if array.ndim not in (3, 4):
        raise _wrong_axes(path, array.shape)
    return array, _grid(path, array.shape[-3:], np.eye(4))


def list_scans(path: Path, channels: int | None = None) -> list[Files]:
    """The scans of a folder by name, or the one at `path`.

    Files with a scan's suffix; CASE_0000, CASE_0001 … are the channels of CASE where each case has
    them all from 0000 on (and as many as `channels`, where given). A folder of DICOM files is one
    scan, and so is each folder of such below, named by its path. CASE/imaging.nii.gz is CASE, as in
    KiTS19. Raises InputError where there is none.
    """
    if not path.exists():
        raise InputError(str(path), "there is no such file or folder", ACCEPTED)
    if path.is_file():
        return [Files(stem_of(path), (path,))]
    visible = sorted(one for one in path.iterdir() if not one.name.startswith("."))
    if _holds_dicom(path):  # a label may lie beside the series
        return [Files(path.name, (path,))]
    if kits := sorted([*path.glob("imaging.nii*"), *path.glob("*/imaging.nii*")]):
        return _once([Files(one.resolve().parent.name, (one,)) for one in kits])
    files = [one for one in visible if suffix_of(one) and one.is_file()]
    if files:
        return _once(_grouped(files, channels))
    folders = sorted(one for one in path.rglob("*") if one.is_dir() and _holds_dicom(one))
    found = [Files("_".join(one.relative_to(path).parts), (one,)) for one in folders]
    if not found:
        raise InputError(str(path), "holds no scans", ACCEPTED)
    return _once(found)


def _once(scans: list[Files]) -> list[Files]:
    """The scans; raises InputError where two have one name, like x.nii and x.nii.gz."""
    held: dict[str, Files] = {}
    for one in scans:
        other = held.setdefault(one.name, one)
        if other is not one:
            found = f"has the name of {other.paths[0].name} beside it"
            raise InputError(str(one.paths[0]), found, "names of their own", "move one away")
    return scans


def _holds_dicom(folder: Path) -> bool:
    return any(is_dicom(one) for one in folder.iterdir() if one.is_file())


def _grouped(files: list[Path], channels: int | None) -> list[Files]:
    found: dict[str, dict[int, Path]] = {}
    for file in files:
        match = CHANNEL.fullmatch(stem_of(file))
        if not match:
            return [Files(stem_of(one), (one,)) for one in files]
        found.setdefault(match[1], {})[int(match[2])] = file
    counts = {len(parts) for parts in found.values()}
    from_zero = all(set(parts) == set(range(len(parts))) for parts in found.values())
    if not from_zero or len(counts) > 1 or (channels is not None and counts != {channels}):
        return [Files(stem_of(one), (one,)) for one in files]
    return [
        Files(name, tuple(parts[i] for i in range(len(parts)))) for name, parts in found.items()
    ]


def write_label(path: Path, label: NDArray[Any], grid: Grid, like: Path | None = None) -> Path:
    """Writes a label (D, H, W) as `path` with the suffix of `like`, and returns that path.

    `like` is the file that the scan was read from: its header gives spacing, orientation and
    place, in NIfTI also the codes of qform and sform. .nii.gz with `grid` where `like` is a DICOM
    series or None, .mha for a .mhd. Raises ValueError for a label of another size than `grid`.
    """
    if label.shape != grid.shape:
        raise ValueError(f"a label of {label.shape} on a grid of {grid.shape}")
    suffix = suffix_of(like) if like and not like.is_dir() else ""
    suffix = ".mha" if suffix == ".mhd" else suffix  # the same in one file, which can be renamed
    path = path.with_name(path.name + (suffix or ".nii.gz"))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        if suffix == ".npy":
            np.save(beside, label)
        elif suffix in ITK:
            _write_itk(beside, label, grid)
        else:
            _write_nifti(beside, label, grid, like if suffix else None)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return path


def _write_nifti(path: Path, label: NDArray[Any], grid: Grid, like: Path | None) -> None:
    import nibabel

    if like is None:
        image: Any = nibabel.Nifti1Image(label, grid.affine)
        image.set_qform(grid.affine, code=1)
        image.set_sform(grid.affine, code=1)
    else:
        source = _open_nifti(like)
        header = source.header.copy()
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = 0, 0
        image = type(source)(label, None, header)  # None: qform and sform of the header
    image.set_data_dtype(label.dtype)
    nibabel.save(image, path)


def _write_itk(path: Path, label: NDArray[Any], grid: Grid) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(label.transpose(2, 1, 0)))
    affine = LPS_TO_RAS @ grid.affine
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(tuple(affine[:3, 3].tolist()))
    image.SetDirection((affine[:3, :3] / grid.spacing_mm).ravel().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)
