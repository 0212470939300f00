"""Which published layout a folder of raw scans has, by its names: what `trainer.prepare` calls it.

    kind_of_scans(Path("Task04_Hippocampus"))     # "msd"

No more than a thousand names are looked at; dataset.json is opened, and the first bytes of files
without a suffix, which may be DICOM.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.data.folders import DICOM_SUFFIXES, files_below
from trainer.data.volumes.scans import suffix_of

MOST_NAMES = 1000
NAMES = (
    ("kits19", re.compile(r"imaging\.nii(\.gz)?")),
    ("lits", re.compile(r"volume-\d+\.nii(\.gz)?")),
    ("brats-slices", re.compile(r".+_t1\.nii(\.gz)?")),
)
"""Files that only one of the published data sets has."""


def kind_of_scans(folder: Path) -> str | None:
    """msd, nnunet, kits19, lits, brats-slices, dicom or pairs; None where there is no scan."""
    if (folder / "dataset.json").is_file() and (folder / "imagesTr").is_dir():
        return _of_json(folder / "dataset.json")
    files = list(itertools.islice(_files(folder), MOST_NAMES))
    for kind, name in NAMES:
        if any(name.fullmatch(file.name) for file in files):
            return kind
    if any(_is_dicom(file) for file in files):  # labels may lie beside them as NIfTI
        return "dicom"
    return "pairs" if any(suffix_of(file) not in ("", ".npy") for file in files) else None


def _files(folder: Path) -> Iterator[Path]:
    return files_below(folder) if folder.is_dir() else iter(())


def _is_dicom(file: Path) -> bool:
    from trainer.data.volumes.dicom import is_dicom

    return file.suffix.lower() in DICOM_SUFFIXES or (not file.suffix and is_dicom(file))


def _of_json(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "msd"
    return "msd" if not isinstance(content, dict) or "training" in content else "nnunet"
