"""A DICOM series as one volume. Needs pydicom, which is asked for where it is missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.errors import InputError

SUFFIXES = (".dcm", ".ima", ".dicom")
OBJECTS = {"RTSTRUCT": "contours (RTSTRUCT)", "SEG": "a segmentation object (SEG)"}
UNEVEN = 0.05
"""Distances between slices may differ by this share; positions are written with few digits."""

NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
MOST_ASKEW = 0.9
"""Least length of the cross product of rows and columns, which stand at a right angle."""

ACCEPTED = "a folder with the slices of one DICOM series"


class Series(NamedTuple):
    """(columns, rows, slices) float32 in rescaled units (HU in CT), and the affine (4, 4) to
    millimetres, leftwards, backwards and upwards (LPS+, as DICOM has it)."""

    array: NDArray[np.float32]
    affine: NDArray[np.float64]


def is_dicom(path: Path) -> bool:
    """By its first bytes, or by its suffix where these are missing."""
    if path.name.upper() == "DICOMDIR" or path.name.startswith("."):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" or path.suffix.lower() in SUFFIXES
    except OSError:
        return False


def import_pydicom() -> Any:
    """pydicom, or an InputError that says how to get it."""
    try:
        import pydicom
    except ImportError:
        found = "DICOM files need pydicom, which is not installed"
        raise InputError("", found, fix="pip install pydicom") from None
    return pydicom


class Slice(NamedTuple):
    """What a file says of itself; `place`, `orientation` and `spacing` as DICOM has them."""

    path: Path
    dataset: Any
    modality: str
    series: str
    frames: int
    samples: int
    size: tuple[int, int]
    place: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float
    intercept: float


def read_series(folder: Path) -> Series:
    """The slices of the one series in `folder`, in the order of their places.

    Raises InputError for several series, slices that are missing, twice there or of different
    sizes, for what is no series of images, and where pydicom is missing.
    """
    slices = _slices(folder)
    first = slices[0]
    across, down = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    normal = np.cross(across, down)
    slices.sort(key=lambda one: float(normal @ np.asarray(one.place)))
    places = np.asarray([one.place for one in slices])
    _check_places(folder, places @ normal)
    rows, columns = first.size
    array = np.empty((columns, rows, len(slices)), np.float32)
    for number, one in enumerate(slices):
        array[:, :, number] = _pixels(one).T
    between_rows, between_columns = first.spacing
    affine = np.eye(4)
    affine[:3, 0] = across * between_columns
    affine[:3, 1] = down * between_rows
    affine[:3, 2] = (places[-1] - places[0]) / (len(slices) - 1)
    affine[:3, 3] = places[0]
    return Series(array, affine)


def _slices(folder: Path) -> list[Slice]:
    """The slices of a folder, which are of one series and one kind."""
    pydicom = import_pydicom()
    found = []
    for path in sorted(one for one in folder.iterdir() if one.is_file() and is_dicom(one)):
        try:
            dataset = pydicom.dcmread(path)
            modality = str(dataset.get("Modality", ""))
        except Exception as error:  # pydicom raises many kinds for broken files
            raise InputError(str(path), f"cannot be read ({error})", "a whole file") from None
        if what := OBJECTS.get(modality):
            fix = "convert it to NIfTI on the voxels of its scan, or put it elsewhere"
            told = f"holds {what}, which is not supported"
            raise InputError(str(path), told, "slices of a scan", fix)
        if missing := [name for name in NEEDED if name not in dataset]:
            raise InputError(str(path), f"has no {missing[0]}", ACCEPTED)
        found.append(_slice(path, dataset, modality))
    if len(found) < 2:
        raise InputError(str(folder), f"has {len(found)} DICOM slices", ACCEPTED)
    series = Counter(one.series for one in found)
    if len(series) > 1:
        told = ", ".join(f"{uid} ({count} files)" for uid, count in series.items())
        raise InputError(str(folder), f"mixes {len(series)} series: {told}", ACCEPTED)
    for one in found:
        _check_slice(one, found[0])
    return found


def _slice(path: Path, dataset: Any, modality: str) -> Slice:
    try:
        one = Slice(
            path,
            dataset,
            modality,
            str(dataset.get("SeriesInstanceUID", "")),
            int(dataset.get("NumberOfFrames", 1) or 1),
            int(dataset.get("SamplesPerPixel", 1)),
            (int(dataset.Rows), int(dataset.Columns)),
            tuple(float(mm) for mm in dataset.ImagePositionPatient),
            tuple(float(part) for part in dataset.ImageOrientationPatient),
            tuple(float(mm) for mm in dataset.PixelSpacing),
            float(dataset.get("RescaleSlope", 1) or 1),
            float(dataset.get("RescaleIntercept", 0) or 0),
        )
    except Exception as error:  # values are read late; TypeError, ValueError and pydicom's own
        raise InputError(str(path), f"cannot be read ({error})", "a whole file") from None
    numbers = (*one.place, *one.orientation, *one.spacing, one.slope, one.intercept)
    whole = [len(one.place), len(one.orientation), len(one.spacing)] == [3, 6, 2]
    normal = np.cross(one.orientation[:3], one.orientation[3:]) if whole else np.zeros(3)
    if not np.isfinite(numbers).all() or not np.linalg.norm(normal) > MOST_ASKEW:
        raise InputError(str(path), "does not say where its pixels lie", ACCEPTED)
    if min(one.spacing) <= 0 or min(one.size) < 1:
        raise InputError(str(path), "has no pixels, or no spacing", ACCEPTED)
    return one


def _check_slice(one: Slice, first: Slice) -> None:
    if one.frames > 1:
        found = "has several frames, which is not supported"
        raise InputError(str(one.path), found, "a file a slice")
    if one.samples > 1:
        raise InputError(str(one.path), "is in colours", "one number a pixel")
    same = {
        "size": one.size == first.size,
        "pixel spacing": np.allclose(one.spacing, first.spacing, rtol=1e-3),
        "orientation": np.allclose(one.orientation, first.orientation, atol=1e-3),
    }
    if other := next((name for name, equal in same.items() if not equal), None):
        found = f"has another {other} than {first.path.name}"
        raise InputError(str(one.path), found, "slices of one kind")


def _check_places(folder: Path, depths: NDArray[np.float64]) -> None:
    steps = np.diff(depths)
    usual = float(np.median(steps))
    if steps.min() < 1e-3:
        at = depths[int(steps.argmin())]
        raise InputError(str(folder), f"has two slices at {at:g} mm", "each place once")
    for at, step in zip(depths, steps, strict=False):
        if abs(step - usual) > UNEVEN * usual:
            lost = round(step / usual) - 1
            even = lost >= 1 and abs(step - (lost + 1) * usual) <= UNEVEN * usual
            what = "slices are uneven"
            if even:
                what = "a slice is missing" if lost == 1 else f"{lost} slices are missing"
            found = f"{what}: from {at:g} to {at + step:g} mm, else {usual:g} mm apart"
            raise InputError(str(folder), found, "slices at even distances")


def _pixels(one: Slice) -> NDArray[np.float32]:
    """(rows, columns) in rescaled units."""
    try:
        pixels = np.asarray(one.dataset.pixel_array, np.float32)
    except Exception as error:  # of pydicom and of what decompresses for it
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = str(one.path)
        raise InputError(where, f"its pixels cannot be read ({told})", "a whole file") from None
    if pixels.shape != one.size:
        raise InputError(str(one.path), f"has pixels of the shape {pixels.shape}", f"{one.size}")
    return pixels * np.float32(one.slope) + np.float32(one.intercept)
