"""`check`: everything that is amiss with a data folder, in one go, and a picture of it.

    run_check(folder, labels, group_by, picture, console)  -> exit code

Nothing is started or changed. A problem either stops a study or is only told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from rich.console import Console

from study.data_kinds import NO_MEANING, kind_of
from study.dataset import (
    FEWEST_IMAGES,
    Scan,
    Scanned,
    foreground_shares,
    images_of,
    missing_classes,
    odd_masks,
    scan,
    twins,
)
from study.report import print_grid
from study.slices import base_of, read_slices
from study.split import group_keys
from study.volumes import PARTS, read_volumes
from trainer.data.folders import Pair
from trainer.data.images import open_image, read_image
from trainer.data.labels import MaskClass
from trainer.data.masks import Masks, MaskValues, read_masks
from trainer.errors import InputError, printable
from trainer.overlay import overlay
from trainer.picture import check_picture, save_picture

SHOWN = 10
OVERLAYS = 12
MOSTLY_FOREGROUND = 0.6
FEWEST_PIXELS = 10
FLAT = 2.0
"""An image whose grey values deviate less than this from their mean (0 to 255) shows nothing."""

SMALLEST_SIDE = 32
LONGEST_SHAPE = 4.0
FEW = 0.1
"""What less than this share of the images has is an exception worth a word."""

FAULTS = {
    "has no mask": "image without a mask",
    "is a mask without an image": "mask without an image",
    "this is a DICOM file": "DICOM file",
    "this is not an image": "file that is no image",
    "has the same stem": "two files of one name",
    "more than 8 bits": "more than 8 bits a channel",
    "cannot be read": "file that cannot be read",
    "may not be read": "file that may not be read",
    "there is no such file": "link that leads nowhere",
    " pages": "several pages in one file",
    "is to be turned": "TIFF that is to be turned",
    "its image": "mask of another size than its image",
    "masks of one size": "masks of one image that differ in size",
    "what no class names": "mask value that no class names",
    "the folder is empty": "empty folder",
    "is coded in another way": "mask coded in another way",
    "is no mask but": "mask that is no mask",
    "has more than two values": "mask of more than two values",
}
"""What each fault of reading is called: by words of its message."""


@dataclass(frozen=True)
class Problem:
    """One thing amiss: its kind, the file (or what else), more words, and whether a study stops."""

    kind: str
    where: str
    text: str = ""
    stops: bool = False


def run_check(
    folder: Path,
    classes: list[MaskClass],
    group_by: str | None,
    picture: Path,
    everything: bool,
    console: Console,
) -> int:
    """Prints what was found and draws twelve overlays; 2 where a study would refuse the data."""
    check_picture(picture)
    kind = kind_of(folder)
    for option, given in (("labels", bool(classes)), ("group-by", group_by is not None)):
        if given and option in NO_MEANING[kind]:
            raise InputError(f"--{option}", NO_MEANING[kind][option], fix="leave it out")
    if kind == "volumes":
        return _check_volumes(folder, picture, console)
    if kind == "slices":
        return _check_slices(folder, picture, console)
    with console.status("reading the data …") as status:
        found = scan(folder, classes, lambda done, total: status.update(f"reading: {done}/{total}"))
    masks = meaning_of(found, classes)
    problems = find_problems(folder, found, masks, group_by)
    print_grid(_facts(folder, found, masks, group_by), console)
    for line in _told(problems, everything):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    shown = draw(found, masks, picture)
    console.print(f"{picture}: {shown} images with their masks", markup=False, soft_wrap=True)
    stops = sum(problem.stops for problem in problems)
    if stops:
        told = f"{stops} problems stop a study; mend them, then: check again"
    else:
        told = "a study can run on this data"
    console.print(told, markup=False)
    return InputError.exit_code if stops else 0


def _check_volumes(folder: Path, picture: Path, console: Console) -> int:
    """The same for prepared volumes, whose preparation has looked at every case already."""
    from trainer.review_volumes import draw_volumes, open_volume_review

    dataset = read_volumes(folder, "validation")
    rows = [("Data", str(folder)), ("Preparation", dataset.header.kind)]
    print_grid([*rows, *dataset.rows(dataset.own_parts(), "validation")], console)
    with open_volume_review(folder / PARTS["training"]) as source:
        told = draw_volumes(source, None, OVERLAYS, picture, folder.name)
    console.print(f"{picture}: {told} of the training part", markup=False, soft_wrap=True)
    console.print("a study can run on this data", markup=False)
    return 0


def _check_slices(folder: Path, picture: Path, console: Console) -> int:
    """The same for arrays of slices, as a study without --config uses them."""
    from trainer.review_slices import draw_truth, open_slice_arrays

    dataset = read_slices(folder, base_of(folder))
    parts = dataset.parts_for(0, "validation")
    print_grid([("Data", str(folder)), *dataset.rows(parts, "validation")], console)
    told = draw_truth(open_slice_arrays(dataset.train.files), OVERLAYS, picture, folder.name)
    console.print(f"{picture}: {told}", markup=False, soft_wrap=True)
    console.print("a study can run on this data", markup=False)
    return 0


# ---- what is amiss ----


def find_problems(
    folder: Path, found: Scan, masks: Masks | InputError, group_by: str | None
) -> list[Problem]:
    """All problems, those that stop a study first; each kind together."""
    near = _Near(folder)
    problems = [_of_fault(fault, near) for fault in found.faults]
    every = [*found.train, *found.test]
    if len(found.train) < FEWEST_IMAGES:
        text = f"{len(found.train)} can be used, a study needs {FEWEST_IMAGES}"
        problems.append(Problem("too few images", "training images", text, True))
    if isinstance(masks, InputError):
        problems.append(Problem("meaning of the masks", near(masks.where), masks.found, True))
    elif found.train and not foreground_shares(found.train, masks).any():
        problems.append(Problem("no foreground at all", "training masks", "", True))
    elif found.train and masks.classes and (missing := missing_classes(found.train, masks)):
        problems.append(Problem("class that no training mask has", ", ".join(missing), "", True))
    problems += _of_masks(every, masks, near)
    problems += _of_images(every, near)
    problems += _of_copies(found, near)
    problems += _of_groups(found, group_by)
    return sorted(problems, key=lambda p: (not p.stops, p.kind))


class _Near:
    """Paths as a reader knows them: relative to the data folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, path: Path | str) -> str:
        path = Path(path)
        return str(path.relative_to(self._folder) if path.is_relative_to(self._folder) else path)


def _of_fault(fault: InputError, near: _Near) -> Problem:
    kind = next((kind for words, kind in FAULTS.items() if words in fault.found), "other fault")
    return Problem(kind, near(fault.where), fault.found, True)


def _of_masks(images: Sequence[Scanned], masks: Masks | InputError, near: _Near) -> list[Problem]:
    """What single masks hold, compared with the others."""
    problems: list[Problem] = []
    with_truth = [one for one in images if one.pair.masks]
    if isinstance(masks, InputError) or not masks.classes:
        read = isinstance(masks, Masks)
        problems += [_of_fault(fault, near) for fault in odd_masks(with_truth, fringes=read)]
    told = {problem.where for problem in problems}
    known = masks if isinstance(masks, Masks) else _usual(with_truth)
    for one, share in zip(with_truth, foreground_shares(with_truth, known), strict=True):
        where = near(one.pair.masks[0])
        pixels = round(share * int(one.values.sum()))
        if where in told:
            continue
        if not known.classes and one.mask_values.several_colours():
            problems.append(Problem("mask of several colours", where, "all count as foreground"))
        if share == 1:
            problems.append(Problem("mask that is foreground everywhere", where))
        elif share > MOSTLY_FOREGROUND:
            text = f"{share:.0%} is foreground: black and white exchanged?"
            problems.append(Problem("mask that is mostly foreground", where, text))
        elif pixels == 0:
            problems.append(Problem("mask without foreground", where))
        elif pixels < FEWEST_PIXELS:
            problems.append(Problem("foreground of a few pixels", where, f"{pixels} pixels"))
        for mask in one.pair.masks:
            if mask.suffix.lower() in (".jpg", ".jpeg"):
                text = "JPEG blurs edges; PNG does not"
                problems.append(Problem("mask saved with loss", near(mask), text))
    return problems


def _usual(images: Sequence[Scanned]) -> Masks:
    """What most masks mean, where they do not mean one thing: above half of the usual maximum."""
    tops = Counter(int(np.flatnonzero(one.values).max()) for one in images)
    tops.pop(0, None)
    top = tops.most_common(1)[0][0] if tops else 255
    return Masks(threshold=top / 2)


def _of_images(images: Sequence[Scanned], near: _Near) -> list[Problem]:
    """What single images look like, compared with the others."""
    problems: list[Problem] = []
    coloured = [one for one in images if not one.grey]
    exceptions = {
        "colour among grey images": coloured,
        "grey among coloured images": [one for one in images if one.grey],
    }
    for kind, few in exceptions.items():
        if len(few) < FEW * len(images):
            problems += [Problem(kind, near(one.pair.image)) for one in few]
    for one in images:
        where = near(one.pair.image)
        width, height = one.size
        if one.brightness[1] < FLAT:
            text = f"all pixels are about {one.brightness[0]:.0f}"
            problems.append(Problem("image that shows nothing", where, text))
        if min(width, height) < SMALLEST_SIDE:
            problems.append(Problem("very small image", where, f"{width}x{height} pixels"))
        elif max(width, height) / min(width, height) > LONGEST_SHAPE:
            text = f"{width}x{height} pixels: a square network sees it squeezed"
            problems.append(Problem("very long image", where, text))
        if one.distinct <= 2 and one.brightness[1] >= FLAT:
            problems.append(Problem("image of two values", where, "a mask among the images?"))
        problems += _of_file(one.pair.image, where)
    return problems


def _of_file(path: Path, where: str) -> list[Problem]:
    """What the file says of itself: read from its start alone."""
    problems = []
    with Image.open(path) as image:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            problems.append(Problem("transparency, which is left out", where))
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            text = "shown upright, as its EXIF data says; is its mask, too?"
            problems.append(Problem("image stored turned", where, text))
        suffixes = {s for s, name in Image.registered_extensions().items() if name == image.format}
        if path.suffix.lower() not in suffixes and image.format != "MPO":
            text = f"it is {image.format}"
            problems.append(Problem("suffix of another format", where, text))
    return problems


def _of_copies(found: Scan, near: _Near) -> list[Problem]:
    """Images that are there twice, or nearly, within a part and across."""
    problems: list[Problem] = []
    copies: set[str] = set()
    train, test = images_of(found.train), images_of(found.test)
    for part, others in (
        (found.train, found.train),
        (found.test, found.test),
        (found.test, found.train),
    ):
        owners = {one.contents[0]: one for one in others}
        for one in part:
            of = owners.get(one.contents[0])
            if of is None or of is one:
                continue
            where, same = near(one.pair.image), near(of.pair.image)
            copies |= {where, same}
            if part is not others:
                problems.append(Problem("test image that is in training", where, f"as {same}"))
            elif one.contents[1] != of.contents[1]:
                text = f"as {same}, with another mask"
                problems.append(Problem("image there twice with two masks", where, text))
            else:
                problems.append(Problem("image there twice", where, f"as {same}"))
    for kind, left, right in (
        ("near-twins in training (kept together)", train, train),
        ("near-twins in test", test, test),
        ("near-twins in training and test", test, train),
    ):
        for a, b in twins(left, right) if len(left) and len(right) else ():
            where = near(left.pairs[a].image)
            twin = near(right.pairs[b].image)
            if (left is right and a <= b) or {where, twin} <= copies:
                continue
            problems.append(Problem(kind, where, f"like {twin}"))
    return problems


def _of_groups(found: Scan, group_by: str | None) -> list[Problem]:
    """Names and groups that are in both parts."""
    if not found.test:
        return []
    train, test = images_of(found.train), images_of(found.test)
    problems = [
        Problem("one name in training and test", name, "are they one patient?")
        for name in sorted(set(train.names) & set(test.names))
    ]
    if group_by is None:
        return problems
    learnt = {key for key in group_keys(train, group_by) if key is not None}
    for name, key in zip(test.names, group_keys(test, group_by), strict=True):
        if key in learnt:
            problems.append(Problem("group in training and test", name, f"--group-by gives {key}"))
    return problems


# ---- what is told ----


def meaning_of(found: Scan, classes: list[MaskClass]) -> Masks | InputError:
    """What the masks mean, or why they mean nothing."""
    every = [one for one in (*found.train, *found.test) if one.pair.masks]
    if classes:
        return Masks(classes=classes)
    values = MaskValues()
    for one in every:
        values.histogram += one.mask_values.histogram
        values.colours.update(one.mask_values.colours)
    if not every:
        return InputError(str(found.layout.targets), "no mask could be read")
    try:
        return values.meaning(str(found.layout.targets))
    except InputError as error:
        return error


def _facts(
    folder: Path, found: Scan, masks: Masks | InputError, group_by: str | None
) -> list[tuple[str, str]]:
    every = [*found.train, *found.test]
    if not every:
        return [("Data", str(folder)), ("Images", "none can be read")]
    widths, heights = [one.size[0] for one in every], [one.size[1] for one in every]
    with_truth = [one for one in every if one.pair.masks]
    known = masks if isinstance(masks, Masks) else _usual(with_truth)
    shares = foreground_shares(with_truth, known)
    beside = ", masks beside them" if found.layout.masks_beside else ""
    test = f", {len(found.test)} test" if found.layout.test_inputs else ""
    test += " (no masks: predicted only)" if test and not found.layout.test_targets else ""
    several = sum(len(one.pair.masks) > 1 for one in every)
    grey = sum(one.grey for one in every)
    pairs = twins(images_of(found.train), images_of(found.train))
    rows = [
        ("Data", str(folder)),
        ("Layout", f"{found.layout.inputs.relative_to(folder) or '.'}{beside}"),
        ("Images", f"{len(found.train)} training{test}"),
        ("Images with several masks", f"{several} (united)"),
        ("Sizes", f"{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)} pixels"),
        ("Channels", f"{grey} grey, {len(every) - grey} coloured; 8 bits"),
        ("Mask values", _values(with_truth, masks)),
        ("Masks without foreground", f"{int((shares == 0).sum())} of {len(with_truth)}"),
        ("Foreground", f"{shares.mean():.1%} of the pixels" if len(shares) else "-"),
        ("Near-twins in training", f"{sum(a < b for a, b in pairs)} pairs"),
    ]
    if group_by:
        keys = group_keys(images_of(found.train), group_by)
        groups, alone = len({key for key in keys if key}), sum(key is None for key in keys)
        rows.append(("Groups by --group-by", f"{groups}; {alone} names do not match"))
    return rows


def _values(images: Sequence[Scanned], masks: Masks | InputError) -> str:
    counted = sum((one.values for one in images), np.zeros(256, np.int64))
    total = max(1, int(counted.sum()))
    if isinstance(masks, Masks) and masks.classes:
        shares = (counted[: len(masks.names)] / total).tolist()
        return ", ".join(f"{n} {s:.1%}" for n, s in zip(masks.names, shares, strict=True))
    order = [int(v) for v in counted.argsort()[::-1] if counted[v]]
    told = ", ".join(f"{value} ({counted[value] / total:.1%})" for value in order[:6])
    return told + (f" and {len(order) - 6} more" if len(order) > 6 else "")


def _told(problems: Sequence[Problem], everything: bool) -> Iterable[str]:
    """Lines for people: each kind once, with its files."""
    kinds = dict.fromkeys((problem.kind, problem.stops) for problem in problems)
    for kind, stops in kinds:
        those = [p for p in problems if (p.kind, p.stops) == (kind, stops)]
        yield f"{'STOPS A STUDY' if stops else 'note'}: {kind} ({len(those)})"
        shown = those if everything else those[:SHOWN]
        yield from (printable(f"    {p.where}{': ' + p.text if p.text else ''}") for p in shown)
        if len(those) > len(shown):
            yield f"    and {len(those) - len(shown)} more (all: --all)"


# ---- the picture ----


def draw(found: Scan, masks: Masks | InputError, path: Path) -> int:
    """Twelve images with their masks as overlays, from the smallest foreground to the largest."""
    from matplotlib.figure import Figure

    usable = [one for one in (*found.train, *found.test) if one.pair.masks]
    known = masks if isinstance(masks, Masks) else _usual(usable)
    shares = foreground_shares(usable, known)
    order = shares.argsort(kind="stable")
    chosen = [
        order[i] for i in np.linspace(0, len(order) - 1, min(OVERLAYS, len(order))).astype(int)
    ]
    figure = Figure(figsize=(12, 9.6), dpi=100, layout="constrained", facecolor="white")
    grid = figure.subplots(3, 4, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(grid, chosen, strict=False):
        pair = usable[index].pair
        axes.imshow(_overlay(pair, known))
        title = f"{_short(pair.name)}\n{shares[index]:.1%} foreground"
        axes.set_title(title, fontsize=8, parse_math=False)
    told = f"{len(chosen)} of {len(usable)} images, from the smallest foreground to the largest"
    figure.suptitle(told, fontsize=10)
    save_picture(figure, path)
    return len(chosen)


def _overlay(pair: Pair, masks: Masks) -> NDArray[np.uint8]:
    image: Any = open_image(pair.image)
    image.thumbnail((480, 480))
    size = image.size
    truth = read_masks(pair.masks, masks, size)
    if masks.outputs == 1:
        truth = np.asarray(truth > 0, np.uint8)
    return overlay(read_image(pair.image, 3, size).transpose(1, 2, 0), truth)


def _short(name: str) -> str:
    return name if len(name) <= 36 else f"{name[:17]}…{name[-18:]}"
