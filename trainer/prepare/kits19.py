"""KiTS19 as MLPerf's U-Net3D reads it: the published recipe, split, files and checksums.

    prepare(sources(Path("kits19/data")), target, Choices(), recipe=RECIPE, spacing_mm=SPACING_MM)
    write_arrays(sources(…).cases, target / "npy")

The .npy files are computed as the published ones, to the digit. There the labels are resampled by
torch's `nearest`, whose voxels lie up to half a voxel beside those of the image; train.h5 and
validation.h5 have labels in their place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.volumes.scans import read_label, read_scan
from trainer.errors import InputError, joined
from trainer.files import write_json
from trainer.prepare.volume_sources import Source, Sources, present
from trainer.prepare.volumes import in_turn

SPACING_MM = (1.6, 1.2, 1.2)
CLIP = (-79.0, 304.0)
MEAN, STD = 101.0, 76.9
LEAST = (128, 128, 128)
RECIPE: dict[str, Any] = {
    "corners": True,
    "clip": CLIP,
    "normalization": "constant",
    "mean": (MEAN,),
    "std": (STD,),
    "pad_to": LEAST,
}
"""Keys of a Preparation, beside the spacing."""

LABELS: dict[str, tuple[int, ...]] = {"kidney": (1,), "tumour": (2,)}
LABELLED = 210
"""Cases from 00210 on have no labels."""

VALIDATION = (
    *("00000", "00003", "00005", "00006", "00012", "00024", "00034", "00041", "00044", "00049"),
    *("00052", "00056", "00061", "00065", "00066", "00070", "00076", "00078", "00080", "00084"),
    *("00086", "00087", "00092", "00111", "00112", "00125", "00128", "00138", "00157", "00160"),
    *("00161", "00162", "00169", "00171", "00176", "00185", "00187", "00189", "00198", "00203"),
    *("00206", "00207"),
)
"""The 42 cases of MLPerf's validation set; the other 168 are trained on."""

CASE = re.compile(r"case_(\d{5})")
CHECKSUMS = "checksum.json"


def sources(folder: Path, published_split: bool = True) -> Sources:
    """The labelled cases of `folder` (or of data/ in it): case_00000/imaging.nii.gz and
    segmentation.nii.gz. Raises InputError where there is none."""
    if (folder / "data").is_dir():
        folder = folder / "data"
    if not folder.is_dir():
        raise InputError(str(folder), "there is no such folder", "the folder of KiTS19")
    cases = []
    for own in sorted(folder.iterdir()):
        match = CASE.fullmatch(own.name)
        if match and int(match[1]) < LABELLED and own.is_dir():
            part = "validation" if match[1] in VALIDATION else "train"
            image, label = own / "imaging.nii.gz", own / "segmentation.nii.gz"
            given = part if published_split else ""
            cases.append(Source(own.name, (image,), label, own.name, given))
    if not cases:
        raise InputError(str(folder), "has no cases", "case_00000/imaging.nii.gz and so on")
    there, faults = present(cases)
    return Sources("kits19", "KiTS19", there, LABELS, ["CT"], [], faults)


class Arrays(NamedTuple):
    """The published arrays of a case: (1, D, H, W) float32 and uint8."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]


def published_arrays(source: Source) -> Arrays:
    """Resampled, clipped, normalized and padded as MLPerf does; raises InputError."""
    import nibabel
    import torch
    from torch.nn import functional as F

    assert source.label
    scan = read_scan(source.images[0])
    values, _ = read_label(source.label)
    label = values.astype(np.uint8)
    header: Any = nibabel.load(source.images[0]).header
    spacing = np.asarray(header["pixdim"][1:4])
    image = torch.from_numpy(scan.array)[None]
    # Compared in float32 against float64 as published, so 1.6 mm is resampled too.
    if spacing.tolist() != list(SPACING_MM):
        size = (
            np.floor(spacing / np.asarray(SPACING_MM) * scan.array.shape[1:]).astype(int).tolist()
        )
        image = F.interpolate(image, size=size, mode="trilinear", align_corners=True)
        moved = torch.from_numpy(label)[None, None]
        label = F.interpolate(moved, size=size, mode="nearest")[0, 0].numpy()
    array = (np.clip(image[0].numpy(), *CLIP) - np.float32(MEAN)) / np.float32(STD)
    missing = [max(0, n - own) for n, own in zip(LEAST, label.shape, strict=True)]
    ends = [(n // 2, n - n // 2) for n in missing]
    return Arrays(
        np.pad(array, [(0, 0), *ends], "edge").astype(np.float32),
        np.pad(label[None], [(0, 0), *ends], "edge"),
    )


def write_arrays(
    cases: Sequence[Source],
    folder: Path,
    jobs: int = 1,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, float]:
    """Writes case_XXXXX_x.npy, case_XXXXX_y.npy and checksum.json; the medians of mean, standard
    deviation and size over the cases, as the published program tells them."""
    folder.mkdir(parents=True)
    facts = []
    for number, (source, arrays) in enumerate(
        zip(cases, in_turn(published_arrays, cases, jobs), strict=True), start=1
    ):
        np.save(folder / f"{source.name}_x.npy", arrays.image)
        np.save(folder / f"{source.name}_y.npy", arrays.label)
        shape = arrays.image.shape[1:]
        facts.append([float(arrays.image.mean()), float(arrays.image.std()), *shape])
        progress("written as .npy", number, len(cases))
    write_json(folder / CHECKSUMS, checksums(folder))
    names = ("mean", "std", "D", "H", "W")
    return dict(zip(names, np.median(np.asarray(facts), axis=0).tolist(), strict=True))


def checksums(folder: Path) -> dict[str, str]:
    """MD5 of each .npy file of a folder, by its name."""
    found = {}
    for path in sorted(folder.glob("*.npy")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "md5").hexdigest()
    return found


def verify(folder: Path, expected: Path) -> int:
    """Compares the .npy files of `folder` with a list of MD5 sums (JSON: name to sum).

    Returns how many files are right; raises InputError that names each that is missing, too many
    or different.
    """
    try:
        content = json.loads(expected.read_text(encoding="utf-8"))
        sums = {str(name): str(value) for name, value in content.items()}
    except FileNotFoundError:
        raise InputError(str(expected), "there is no such file", "a file of MD5 sums") from None
    except (OSError, ValueError, AttributeError) as error:
        found = f"cannot be read as sums ({error})"
        raise InputError(str(expected), found, 'JSON like {"case_00000_x.npy": "MD5"}') from None
    own = checksums(folder)
    faults = []
    for name in sorted({*sums, *own}):
        if name not in own:
            faults.append(InputError(str(folder / name), "is missing"))
        elif name not in sums:
            faults.append(InputError(str(folder / name), f"does not stand in {expected.name}"))
        elif own[name] != sums[name]:
            faults.append(InputError(str(folder / name), f"has the MD5 {own[name]}", sums[name]))
    if faults:
        raise joined(faults, f"{len(own)} files against {len(sums)} sums")
    return len(own)
