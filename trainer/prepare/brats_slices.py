"""BraTS as slices for a 2D U-Net, in the files that Intel's converter writes.

    made = prepare(Path("MICCAI_BraTS17/HGG"), Path("data/brains"), Choices())

imgs_train.npy and imgs_test.npy hold (N, 128, 128, 4): t1, t2, flair, t1ce of axial slices, cropped
in the middle, turned by 270 degrees, normalized with one mean and one deviation a brain.
msks_train.npy and msks_test.npy hold (N, 128, 128, 4) of 0 and 1: a plane that is always 0 (so it
is published, and the sum of all planes is the whole tumour), necrotic core, edema, enhancing.
slices.json says what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.folders import files_below
from trainer.data.slice_files import CHANNELS, NAMES_FILE, PLANES
from trainer.data.volumes.scans import read_label, read_scan
from trainer.errors import InputError
from trainer.files import write_json
from trainer.prepare.new_folder import check_empty, new_folder
from trainer.prepare.split_shares import split_by_patient
from trainer.prepare.volumes import in_turn, told_all

FILE = re.compile(r"(.+)_(t1|t2|flair|t1ce|seg)\.nii(\.gz)?")
VALUES = (0, 1, 2, 4)
"""Of the planes of the mask, in the published labels."""

TURNS = 3
"""Quarter turns, counter-clockwise."""

SHARE, SHARE_OF_ONE = 0.85, 0.80
"""Of the slices that are trained on; the second one for single brains."""

TOGETHER = 25
"""Scans whose slices the published converter splits at a time."""

SCAN_OF_PATIENT = re.compile(r"(Brats1[789]_.+)_\d+", re.IGNORECASE)
"""Names of 2017 to 2019 end in the number of the scan; in others a number is the patient's."""

Progress = Callable[[str, int, int], None]


class Choices(NamedTuple):
    """What the command line says; see its help."""

    size: int = 128
    train_share: float | None = None
    split_by: str = "patient"
    seed: int = 0
    dtype: str = "float32"
    ids: tuple[str, ...] = ()
    jobs: int = 0
    skip_bad: bool = False


class Brain(NamedTuple):
    """One scan: a file a modality, and the file of the labels."""

    name: str
    images: tuple[Path, ...]
    label: Path

    @property
    def patient(self) -> str:
        """Brats17_TCIA_296 of Brats17_TCIA_296_1, the first scan of that patient; the name itself
        of BraTS20_Training_001 and names of one's own."""
        match = SCAN_OF_PATIENT.fullmatch(self.name)
        return match[1] if match else self.name


class Rows(NamedTuple):
    """Slices `first` to `last` (exclusive) of a brain, which go to one part."""

    brain: Brain
    first: int
    last: int


class Made(NamedTuple):
    """How many slices were written by part, and what a user should know."""

    slices: dict[str, int]
    notes: list[str]


def find_brains(folder: Path) -> tuple[list[Brain], list[str]]:
    """The scans below `folder` by name: X/X_t1.nii.gz and so on with X_seg.nii.gz; and what was
    passed over because a file is missing. Raises InputError where there is none."""
    if not folder.is_dir():
        raise InputError(str(folder), "there is no such folder", "a folder of BraTS")
    found, notes = [], []
    for name, files in _named(folder).items():
        if lacks := _lacks(files, (*CHANNELS, "seg")):
            notes.append(f"Passed over: {name} {lacks}.")
            continue
        found.append(Brain(name, tuple(files[one] for one in CHANNELS), files["seg"]))
    if not found:
        accepted = "folders X with X_t1, X_t2, X_flair, X_t1ce and X_seg as .nii.gz"
        raise InputError(str(folder), "has no scans of BraTS", accepted)
    return found, notes


def _named(folder: Path) -> dict[str, dict[str, Path]]:
    """The scans X at or below `folder` by name, each with its files X_t1.nii.gz, X_seg.nii.gz and
    so on by modality. Raises InputError for two of one name."""
    found: dict[str, dict[str, Path]] = {}
    for file in files_below(folder):
        if match := FILE.fullmatch(file.name):
            own = found.setdefault(match[1], {})
            if own and (other := next(iter(own.values())).parent) != file.parent:
                where = f"in {other} and {file.parent}"
                raise InputError(
                    str(folder), f"has two scans of the name {match[1]}, {where}", "one"
                )
            own[match[2]] = file  # .nii.gz, where .nii is beside it
    return {name: own for name, own in sorted(found.items()) if set(own) != {"seg"}}


def _lacks(files: dict[str, Path], wanted: Sequence[str]) -> str:
    """Which of the wanted files are missing, in words; nothing where they are all there."""
    missing = [which for which in wanted if which not in files]
    return f"has no {', '.join(missing)}" if missing else ""


def holds_scans(folder: Path) -> bool:
    """Whether there is a scan of BraTS below, by its files' names."""
    matches = (FILE.fullmatch(file.name) for file in files_below(folder))
    return any(match[2] == "t1" for match in matches if match)


def turned_slices(volume: NDArray[Any], size: int) -> NDArray[Any]:
    """(slices, size, size, ...) of a volume (rows, columns, slices, ...): the middle of each slice,
    turned by 270 degrees counter-clockwise."""
    rows, columns = ((side - size) // 2 for side in volume.shape[:2])
    middle = volume[rows : rows + size, columns : columns + size]
    return np.moveaxis(np.rot90(middle, TURNS, axes=(0, 1)), 2, 0)


def put_back(slices: NDArray[np.bool_], shape: Sequence[int]) -> NDArray[np.uint8]:
    """(slices, size, size) of a volume of `shape` (rows, columns, slices), turned back to where
    they were: uint8, 0 around them."""
    size = slices.shape[1]
    rows, columns = ((side - size) // 2 for side in shape[:2])
    whole = np.zeros(tuple(shape), np.uint8)
    turned = np.rot90(np.moveaxis(slices, 0, 2), -TURNS, axes=(0, 1))
    whole[rows : rows + size, columns : columns + size] = turned
    return whole


def normalised_slices(array: NDArray[Any], size: int, where: str) -> NDArray[np.float64]:
    """The slices (n, size, size, C) of a scan (C, rows, columns, slices), by one mean and standard
    deviation over all of them."""
    if min(array.shape[1:3]) < size:
        found = f"has slices of {array.shape[1]}x{array.shape[2]}"
        raise InputError(where, found, f"at least {size}x{size}")
    image = turned_slices(np.moveaxis(array, 0, 3), size).astype(np.float64)
    if not (std := image.std()):
        raise InputError(where, "has one value everywhere")
    return (image - image.mean()) / std


def find_scans(folder: Path) -> tuple[dict[str, tuple[Path, ...]], dict[str, str]]:
    """The scans at or below `folder` by name, with the files of their modalities, and what was
    passed over, with why; labels are not needed. Raises InputError where there is none."""
    named = _named(folder)
    found = {
        name: tuple(files[which] for which in CHANNELS)
        for name, files in named.items()
        if not _lacks(files, CHANNELS)
    }
    skipped = {name: _lacks(files, CHANNELS) for name, files in named.items() if name not in found}
    if not found:
        accepted = "arrays of slices (.npy), or X_t1, X_t2, X_flair and X_t1ce as .nii.gz"
        raise InputError(str(folder), "has nothing to predict", accepted)
    return found, skipped


def read_brain(brain: Brain, size: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """The slices (n, size, size, 4) of a brain and of its mask; raises InputError."""
    scan = read_scan(list(brain.images))
    label, grid = read_label(brain.label)
    where = f"{brain.name}, {brain.label}"
    if not grid.same_as(scan.grid):
        found = "the label lies on other voxels than its scan"
        raise InputError(where, found, "a label on the voxels of its scan")
    if min(label.shape[:2]) < size:
        found = f"has slices of {label.shape[0]}x{label.shape[1]}"
        raise InputError(f"{brain.name}, {brain.images[0]}", found, f"at least --size {size}")
    if strange := sorted(set(np.unique(label).tolist()) - set(VALUES)):
        raise InputError(where, f"has the values {strange}", f"those of BraTS, {VALUES}")
    image = normalised_slices(scan.array, size, f"{brain.name}, {brain.images[0]}")
    planes = [np.zeros(label.shape, np.uint8), *(label == value for value in VALUES[1:])]
    masks = turned_slices(np.stack(planes, axis=3).astype(np.uint8), size)
    return image, masks


def split_rows(
    brains: Sequence[Brain], counts: Sequence[int], choices: Choices
) -> dict[str, list[Rows]]:
    """The slices of train and test: whole patients, or (as published) the first slices of every 25
    scans and the rest of them."""
    share = choices.train_share or SHARE
    parts: dict[str, list[Rows]] = {"train": [], "test": []}
    if choices.split_by == "patient":
        patients = [brain.patient for brain in brains]
        chosen = split_by_patient(patients, (share, 0.0, 1 - share), choices.seed, "--train-share")
        for brain, count, part in zip(brains, counts, chosen, strict=True):
            parts[part].append(Rows(brain, 0, count))
        return parts
    for start in range(0, len(brains), TOGETHER):
        own = list(zip(brains, counts, strict=True))[start : start + TOGETHER]
        left = int(share * sum(count for _, count in own) + 1e-9)
        for brain, count in own:
            trained = min(left, count)
            left -= trained
            if trained:
                parts["train"].append(Rows(brain, 0, trained))
            if trained < count:
                parts["test"].append(Rows(brain, trained, count))
    return parts


def _check(choices: Choices) -> None:
    if choices.size < 1:
        raise InputError("--size", f"is {choices.size}", "1 or more")
    if choices.train_share is not None and not 0 < choices.train_share < 1:
        raise InputError("--train-share", f"is {choices.train_share:g}", "between 0 and 1")


def prepare(
    source: Path,
    target: Path,
    choices: Choices,
    progress: Progress = lambda what, done, total: None,
) -> Made:
    """Writes the four arrays and slices.json, with `ids` in a folder for each of these scans.

    Raises InputError with all faults of the scans; with `skip_bad` those are left out and told.
    """
    check_empty(target)
    _check(choices)
    brains, notes = find_brains(source)
    if choices.ids:
        known = {brain.name: brain for brain in brains}
        for name in choices.ids:
            if name not in known:
                raise InputError("--ids", f"{source} has no scan {name}", ", ".join(known))
        brains = [known[name] for name in dict.fromkeys(choices.ids)]

    def looked_at(brain: Brain) -> int | InputError:
        try:
            return len(read_brain(brain, choices.size)[0])
        except InputError as error:
            return InputError(
                error.where
                if error.where.startswith(brain.name)
                else f"{brain.name}, {error.where}",
                error.found,
                error.accepted,
                error.fix,
            )

    sound: list[tuple[Brain, int]] = []
    faults: list[InputError] = []
    for number, (brain, result) in enumerate(
        zip(brains, in_turn(looked_at, brains, choices.jobs or 1), strict=True), start=1
    ):
        progress("checked", number, len(brains))
        if isinstance(result, InputError):
            faults.append(result)
        else:
            sound.append((brain, result))
    if faults and (not choices.skip_bad or not sound):
        raise told_all(faults, str(source))
    notes += [f"Left out: {fault.where}: {fault.found}" for fault in faults]
    brains, counts = [brain for brain, _ in sound], [count for _, count in sound]
    with new_folder(target) as folder:
        if not choices.ids:
            parts = split_rows(brains, counts, choices)
            return Made(_write(folder, parts, choices, progress), notes)
        total: dict[str, int] = {}
        one = choices._replace(split_by="slice", train_share=choices.train_share or SHARE_OF_ONE)
        for brain, count in sound:
            own = folder / brain.name
            own.mkdir()
            for part, written in _write(own, split_rows([brain], [count], one), one).items():
                total[part] = total.get(part, 0) + written
        return Made(total, notes)


def _write(
    folder: Path,
    parts: dict[str, list[Rows]],
    choices: Choices,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, int]:
    """The arrays of both parts, a brain at a time; how many slices each has."""
    size, counts = choices.size, dict[str, int]()
    open_array = np.lib.format.open_memmap
    for part, rows in parts.items():
        counts[part] = sum(one.last - one.first for one in rows)
        shape = (counts[part], size, size, len(CHANNELS))
        images = open_array(folder / f"imgs_{part}.npy", "w+", choices.dtype, shape)
        masks = open_array(folder / f"msks_{part}.npy", "w+", "uint8", shape)
        at = 0
        for number, one in enumerate(rows, start=1):
            image, mask = read_brain(one.brain, size)
            there = slice(at, at + one.last - one.first)
            images[there] = image[one.first : one.last]
            masks[there] = mask[one.first : one.last]
            at = there.stop
            progress(f"written for {part}", number, len(rows))
        images.flush()
        masks.flush()
    record = {
        "schema_version": 1,
        "channels": list(CHANNELS),
        "masks": list(PLANES),
        "size": size,
        "split_by": choices.split_by,
        "seed": choices.seed,
        "parts": {
            part: [
                {
                    "scan": one.brain.name,
                    "patient": one.brain.patient,
                    "first_slice": one.first,
                    "slices": one.last - one.first,
                }
                for one in rows
            ]
            for part, rows in parts.items()
        },
    }
    write_json(folder / NAMES_FILE, record)
    return counts
