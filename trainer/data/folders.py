"""Folders of images and masks: which files are there, and which masks belong to which image.

A folder is read with its subfolders. Pairing is by name, never by sorted order: the mask of
`case_1.png` is `case_1.*` or `case_1_mask.*` in the folder of masks, or `case_1_mask.*` beside it.
`case_1_mask_1.*`, `case_1_mask_2.*` … belong to the same image: they are united. Torch-free.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import InputError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IGNORED = ("thumbs.db", "desktop.ini")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
DICOM_FIX = "convert it to 8-bit PNG, for example with: dcmj2pnm +on --min-max-window IN OUT.png"
MOST_HINTS = 1000
MASK_NAME = re.compile(r"(.+)_mask(?:_\d+)?")


@dataclass(frozen=True)
class Pair:
    """An image and its truth: the masks that make it up, or a class; neither where there is none.

    `name` is the image's path relative to its folder, with slashes: its key in split files and
    predictions. `place` is the image's number in a file of many.
    """

    image: Path
    masks: tuple[Path, ...]
    name: str
    label: int | None = None
    place: int | None = None


@dataclass(frozen=True)
class Layout:
    """The folders of a data set. `targets` equal to `inputs` means: masks beside the images.

    The test folders are None where there is one part only; `test_targets` alone is None where the
    test images have no truth.
    """

    inputs: Path
    targets: Path
    test_inputs: Path | None = None
    test_targets: Path | None = None

    @property
    def masks_beside(self) -> bool:
        """Whether masks lie beside their images, as X_mask.png beside X.png."""
        return self.inputs == self.targets


PREPARED = ("train.h5", "imgs_train.npy")
"""Of volumes and of slices, as trainer.prepare writes them."""

LAYOUTS = (
    ("train/inputs", "train/targets", "test/inputs", "test/targets"),
    ("inputs", "targets", None, None),
    ("images", "masks", None, None),
)
ACCEPTED = (
    "train/inputs + train/targets + test/inputs + test/targets (test, or its targets, may be left "
    "out), or inputs + targets, or images + masks, or folders of images with their masks beside "
    "them (X.png, X_mask.png)"
)


def find_layout(data: Path) -> Layout:
    """Which of the known layouts the folder `data` has; raises InputError for none of them."""
    if not data.is_dir():
        fix = (
            "give the folder with --data" if not data.exists() else "give the folder that holds it"
        )
        raise InputError(str(data), "there is no such data folder", ACCEPTED, fix)
    if (data / "train/inputs").is_dir() and (data / "train/targets").is_dir():
        tested = data / "test/inputs"
        truth = data / "test/targets"
        return Layout(
            data / "train/inputs",
            data / "train/targets",
            tested if tested.is_dir() else None,
            truth if tested.is_dir() and truth.is_dir() else None,
        )
    for inputs, targets, *_ in LAYOUTS[1:]:
        if inputs and targets and (data / inputs).is_dir() and (data / targets).is_dir():
            return Layout(data / inputs, data / targets)
    train, test = data / "train", data / "test"
    if _masks_beside(train) and test.is_dir():
        return Layout(train, train, test, test if _masks_beside(test) else None)
    if _masks_beside(data):
        return Layout(data, data)
    _explain_nothing(data)
    raise AssertionError("unreachable")


def _explain_nothing(data: Path) -> None:
    from trainer.data.volumes.raw_layout import kind_of_scans

    if kind := kind_of_scans(data):
        found = "holds raw scans, which a study takes when they are prepared"
        raw, prepared = shlex.quote(str(data)), shlex.quote(f"{data.resolve().name}-prepared")
        fix = f"python -m trainer.prepare {kind} {raw} {prepared}; then --data {prepared}"
        raise InputError(str(data), found, "what python -m trainer.prepare writes", fix)
    for one in sorted(data.iterdir()):
        if any((one / name).is_file() for name in PREPARED):
            found = f"its folder {one.name} is one to study, and not it"
            raise InputError(str(data), found, ACCEPTED, f"--data {shlex.quote(str(one))}")
    there = sorted(p.name + "/" * p.is_dir() for p in data.iterdir() if not p.name.startswith("."))
    for names in LAYOUTS:
        lacking = [name for name in names if name and not (data / name).is_dir()]
        if len(lacking) < len([name for name in names if name]):
            found = f"the folder {lacking[0]} is missing"
            raise InputError(str(data), found, ACCEPTED, "add that folder")
    found = "it is empty" if not there else f"it holds {', '.join(there[:8])}"
    raise InputError(str(data), f"no images and masks were found: {found}", ACCEPTED)


def _masks_beside(folder: Path) -> bool:
    """Whether some image in a folder or its subfolders has a mask beside it."""
    here: set[str] = set()
    for path in files_below(folder) if folder.is_dir() else ():
        if path.suffix.lower() in SUFFIXES:
            here.add(str(path.with_suffix("")))
    return any((m := MASK_NAME.fullmatch(stem)) and m[1] in here for stem in here)


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, sorted; hidden ones apart, no folder twice."""
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # links in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower() not in IGNORED:
                yield Path(here) / name


def list_images(folder: Path, paired: bool = True) -> tuple[list[Path], list[InputError]]:
    """The image files of a folder and its subfolders in order, and the faults found there.

    Where images are `paired` with masks by name, two of one stem are a fault.
    """
    if not folder.is_dir():
        return [], [InputError(str(folder), "there is no such folder", fix="check the path")]
    from trainer.data.volumes.scans import suffix_of

    images: list[Path] = []
    faults: list[InputError] = []
    stems: dict[Path, Path] = {}
    for path in files_below(folder):
        suffix = path.suffix.lower()
        stem = path.with_suffix("")
        if suffix in DICOM_SUFFIXES:
            faults.append(InputError(str(path), "this is a DICOM file", "8-bit images", DICOM_FIX))
        elif suffix_of(path) not in ("", ".npy"):
            told = "this is a scan, which python -m trainer.prepare takes"
            faults.append(InputError(str(path), told, "8-bit images"))
        elif suffix not in SUFFIXES:
            accepted = ", ".join(SUFFIXES)
            faults.append(InputError(str(path), "this is not an image", accepted, "move it away"))
        elif paired and stem in stems:
            other = stems[stem].name
            faults.append(InputError(str(path), f"has the same stem as {other}", "one of them"))
        else:
            stems[stem] = path
            images.append(path)
    if not images and not faults:
        faults.append(
            InputError(str(folder), "the folder is empty", "images: " + ", ".join(SUFFIXES))
        )
    return images, faults


def name_in(folder: Path, image: Path) -> str:
    """An image's name: its path relative to the folder of its part, with slashes."""
    return image.relative_to(folder).as_posix()


def _stem(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def pair(inputs: Path, targets: Path | None) -> tuple[list[Pair], list[InputError]]:
    """Images with their masks, in the order of the images' names, and every fault found.

    With `targets` None an image has no mask. With `targets` the same folder as `inputs` its masks
    lie beside it; where no file there is named like a mask, an image is its own target.
    """
    found, faults = list_images(inputs)
    if targets is None:
        return [Pair(image, (), name_in(inputs, image)) for image in found], faults
    if targets.resolve() == inputs.resolve():
        images = {_stem(inputs, p): p for p in found if not MASK_NAME.fullmatch(p.stem)}
        masks = {_stem(inputs, p): p for p in found if MASK_NAME.fullmatch(p.stem)}
        if not masks:
            return [Pair(image, (image,), name_in(inputs, image)) for image in found], faults
    else:
        images = {_stem(inputs, path): path for path in found}
        files, mask_faults = list_images(targets)
        faults += mask_faults
        masks = {_stem(targets, path): path for path in files}
    of: dict[str, list[Path]] = {}
    orphans: dict[str, Path] = {}
    for stem, mask in masks.items():
        united = MASK_NAME.fullmatch(stem)
        owner = stem if stem in images else united[1] if united else stem
        if owner in images:
            of.setdefault(owner, []).append(mask)
        else:
            orphans[owner] = mask
    pairs = []
    lonely = [stem for stem in images if stem not in of]
    for owner, mask in orphans.items():
        hint = nearest(owner, lonely) if len(lonely) < MOST_HINTS else ""
        found_that = f"is a mask without an image{hint}"
        faults.append(InputError(str(mask), found_that, f"an image {owner}.* in {inputs}"))
    for stem, image in images.items():
        if stem in of:
            pairs.append(Pair(image, tuple(of[stem]), name_in(inputs, image)))
            continue
        accepted = f"{image.stem}_mask.* beside it"
        if targets.resolve() != inputs.resolve():
            accepted = f"{stem}.* or {stem}_mask.* in {targets}"
        faults.append(InputError(str(image), "has no mask", accepted, "add it, or move the image"))
    return pairs, faults
