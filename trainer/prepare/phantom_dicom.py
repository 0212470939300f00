"""A made-up volume as a DICOM series of CT slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.volumes.dicom import import_pydicom
from trainer.data.volumes.grid import Grid

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
ROOT_UID = "2.25."
"""For numbers of one's own."""

INTERCEPT = -1024


def write_series(
    folder: Path, volume: NDArray[np.float32], grid: Grid, patient: str, number: int
) -> None:
    """Writes the slices along the last axis of `volume` (columns, rows, slices), in HU, as
    `folder`/slice_NNN.dcm. `number` gives the series its UID."""
    pydicom = import_pydicom()
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine  # LPS+
    across, down = (affine[:3, axis] / grid.spacing_mm[axis] for axis in (0, 1))
    series = f"{ROOT_UID}{number + 1}"
    for index in range(volume.shape[2]):
        one = pydicom.Dataset()
        one.SOPClassUID, one.SOPInstanceUID = CT_IMAGE, f"{series}.{index + 1}"
        one.StudyInstanceUID, one.SeriesInstanceUID = f"{series}.0", series
        one.Modality, one.PatientID, one.PatientName = "CT", patient, patient
        one.InstanceNumber = index + 1
        place = affine[:3, :3] @ [0, 0, index] + affine[:3, 3]
        one.ImagePositionPatient = [f"{mm:.6g}" for mm in place]
        one.ImageOrientationPatient = [f"{part:.6g}" for part in (*across, *down)]
        one.PixelSpacing = [f"{grid.spacing_mm[axis]:.6g}" for axis in (1, 0)]
        one.SliceThickness = f"{grid.spacing_mm[2]:.6g}"
        one.Columns, one.Rows = volume.shape[0], volume.shape[1]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.RescaleSlope, one.RescaleIntercept = 1, INTERCEPT
        pixels = np.clip(np.rint(volume[:, :, index].T - INTERCEPT), 0, 65_535)
        one.PixelData = pixels.astype("<u2").tobytes()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = EXPLICIT_LITTLE_ENDIAN
        one.save_as(folder / f"slice_{index:03d}.dcm", enforce_file_format=True)
