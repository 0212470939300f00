"""Folders of images and masks: which files are there, and which mask belongs to which image.

Pairing is by the stem of the file name (`case_1.png` with `case_1.png` or `case_1.tif`), then by
stem + `_mask` (`case_1_mask.png`), never by sorted order. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IGNORED = ("thumbs.db", "desktop.ini")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
DICOM_FIX = "convert it to 8-bit PNG, for example with: dcmj2pnm +on --min-max-window IN OUT.png"


@dataclass(frozen=True)
class Pair:
    """An image and its mask; `mask` is None where there is no truth."""

    image: Path
    mask: Path | None

    @property
    def name(self) -> str:
        """The image's file name: its key in split files and predictions."""
        return self.image.name


@dataclass(frozen=True)
class Layout:
    """The folders of a data set; the test folders are None where there is one part only."""

    inputs: Path
    targets: Path
    test_inputs: Path | None = None
    test_targets: Path | None = None


LAYOUTS = (
    ("train/inputs", "train/targets", "test/inputs", "test/targets"),
    ("inputs", "targets", None, None),
    ("images", "masks", None, None),
)


def find_layout(data: Path) -> Layout:
    """Which of the known layouts the folder `data` has; raises InputError for none of them."""
    accepted = "train/inputs + train/targets + test/inputs + test/targets, or inputs + targets, "
    accepted += "or images + masks"
    if not data.is_dir():
        fix = (
            "give the folder with --data" if not data.exists() else "give the folder that holds it"
        )
        raise InputError(str(data), "there is no such data folder", accepted, fix)
    for names in LAYOUTS:
        folders = [data / name if name else None for name in names]
        if all(folder is None or folder.is_dir() for folder in folders):
            inputs, targets, test_inputs, test_targets = folders
            assert inputs and targets
            return Layout(inputs, targets, test_inputs, test_targets)
    there = sorted(p.name + "/" * p.is_dir() for p in data.iterdir() if not p.name.startswith("."))
    for names in LAYOUTS:
        lacking = [name for name in names if name and not (data / name).is_dir()]
        if len(lacking) < len([name for name in names if name]):
            raise InputError(
                str(data), f"the folder {lacking[0]} is missing", accepted, "add that folder"
            )
    found = "it is empty" if not there else f"it holds {', '.join(there[:8])}"
    raise InputError(str(data), f"no images and masks were found: {found}", accepted)


def list_images(folder: Path) -> tuple[list[Path], list[InputError]]:
    """The image files of a folder in the order of their names, and the faults found there."""
    if not folder.is_dir():
        return [], [InputError(str(folder), "there is no such folder", fix="check the path")]
    images: list[Path] = []
    faults: list[InputError] = []
    stems: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in IGNORED or path.is_dir():
            continue
        suffix = path.suffix.lower()
        if suffix in DICOM_SUFFIXES:
            faults.append(InputError(str(path), "this is a DICOM file", "8-bit images", DICOM_FIX))
        elif suffix not in SUFFIXES:
            accepted = ", ".join(SUFFIXES)
            faults.append(InputError(str(path), "this is not an image", accepted, "move it away"))
        elif path.stem in stems:
            other = stems[path.stem].name
            faults.append(InputError(str(path), f"has the same stem as {other}", "one of them"))
        else:
            stems[path.stem] = path
            images.append(path)
    if not images and not faults:
        faults.append(
            InputError(str(folder), "the folder is empty", "images: " + ", ".join(SUFFIXES))
        )
    return images, faults


def pair(inputs: Path, targets: Path | None) -> tuple[list[Pair], list[InputError]]:
    """Images with their masks, in the order of the images' names, and every fault found.

    With `targets` None, or the same folder as `inputs`, an image has no mask of its own or is its
    own target.
    """
    images, faults = list_images(inputs)
    if targets is None:
        return [Pair(image, None) for image in images], faults
    masks, mask_faults = list_images(targets)
    faults += mask_faults
    by_stem = {mask.stem: mask for mask in masks}
    pairs = []
    for image in images:
        mask = by_stem.pop(image.stem, None) or by_stem.pop(f"{image.stem}_mask", None)
        if mask is None:
            accepted = f"{image.stem}.* or {image.stem}_mask.* in {targets}"
            faults.append(
                InputError(str(image), "has no mask", accepted, "add it, or move the image")
            )
        else:
            pairs.append(Pair(image, mask))
    for mask in by_stem.values():
        accepted = f"an image {mask.stem.removesuffix('_mask')}.* in {inputs}"
        faults.append(InputError(str(mask), "is a mask without an image", accepted))
    return pairs, faults
