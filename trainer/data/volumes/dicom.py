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


def read_series(folder: Path) -> Series:
    """The slices of the one series in `folder`, in the order of their places.

    Raises InputError for several series, slices that are missing, twice there or of different
    sizes, for what is no series of images, and where pydicom is missing.
    """
    slices = _slices(folder)
    first = slices[0]
    orientation = np.asarray(first.ImageOrientationPatient, float)
    across, down = orientation[:3], orientation[3:]
    normal = np.cross(across, down)
    slices.sort(key=lambda one: float(normal @ np.asarray(one.ImagePositionPatient, float)))
    places = np.asarray([one.ImagePositionPatient for one in slices], float)
    _check_places(folder, places @ normal)
    rows, columns = int(first.Rows), int(first.Columns)
    array = np.empty((columns, rows, len(slices)), np.float32)
    for number, one in enumerate(slices):
        array[:, :, number] = _pixels(folder, one).T
    between_rows, between_columns = (float(mm) for mm in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = across * between_columns
    affine[:3, 1] = down * between_rows
    affine[:3, 2] = (places[-1] - places[0]) / (len(slices) - 1)
    affine[:3, 3] = places[0]
    return Series(array, affine)


def _slices(folder: Path) -> list[Any]:
    pydicom = import_pydicom()
    found = []
    for path in sorted(one for one in folder.iterdir() if one.is_file() and is_dicom(one)):
        try:
            one = pydicom.dcmread(path)
        except Exception as error:  # pydicom raises many kinds for broken files
            raise InputError(str(path), f"cannot be read ({error})", "a whole file") from None
        if modality := OBJECTS.get(str(one.get("Modality", ""))):
            found_object = f"holds {modality}, which is not supported"
            fix = "convert it to NIfTI on the voxels of its scan, or put it elsewhere"
            raise InputError(str(path), found_object, "slices of a scan", fix)
        found.append(one)
    if len(found) < 2:
        raise InputError(str(folder), f"has {len(found)} DICOM slices", ACCEPTED)
    series = Counter(str(one.get("SeriesInstanceUID", "")) for one in found)
    if len(series) > 1:
        told = ", ".join(f"{uid} ({count} files)" for uid, count in series.items())
        raise InputError(str(folder), f"mixes {len(series)} series: {told}", ACCEPTED)
    for one in found:
        _check_slice(folder, one, found[0])
    return found


def _check_slice(folder: Path, one: Any, first: Any) -> None:
    where = f"{folder}, {Path(one.filename).name}"
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    if missing := [name for name in needed if name not in one]:
        raise InputError(where, f"has no {missing[0]}", ACCEPTED)
    if int(one.get("NumberOfFrames", 1) or 1) > 1:
        raise InputError(where, "has several frames, which is not supported", "a file a slice")
    if int(one.get("SamplesPerPixel", 1)) > 1:
        raise InputError(where, "is in colours", "one number a pixel")
    same = {
        "size": [one.Rows, one.Columns] == [first.Rows, first.Columns],
        "pixel spacing": np.allclose(one.PixelSpacing, first.PixelSpacing, rtol=1e-3),
        "orientation": np.allclose(
            one.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-3
        ),
    }
    if other := next((name for name, equal in same.items() if not equal), None):
        found = f"has another {other} than {Path(first.filename).name}"
        raise InputError(where, found, "slices of one kind")


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
            what = f"{lost} slices are missing" if even else "slices are uneven"
            found = f"{what}: from {at:g} to {at + step:g} mm, else {usual:g} mm apart"
            raise InputError(str(folder), found, "slices at even distances")


def _pixels(folder: Path, one: Any) -> NDArray[np.float32]:
    try:
        pixels = one.pixel_array
    except Exception as error:  # of pydicom and of what decompresses for it
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = f"{folder}, {Path(one.filename).name}"
        raise InputError(where, f"its pixels cannot be read ({told})", "a whole file") from None
    slope = float(one.get("RescaleSlope", 1) or 1)
    return np.asarray(pixels, np.float32) * np.float32(slope) + np.float32(
        one.get("RescaleIntercept", 0) or 0
    )
