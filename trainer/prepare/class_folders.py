"""Class folders with masks beside the images, as breast ultrasound (BUSI) is published, written in
the standard layout.

    prepare(Path("Dataset_BUSI_with_GT"), Path("data/busi"))
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.folders import Layout, Pair, find_layout, pair
from trainer.data.images import mask_array, open_image
from trainer.data.masks import Masks, MaskValues, read_masks
from trainer.data.twins import small_grey, standardised, twins
from trainer.errors import InputError, joined
from trainer.prepare.new_folder import check_empty, new_folder

RECORD_FILE = "prepared.json"
TEST_SHARE = 0.2
NUMBER = re.compile(r"(\d+)\D*$")

Progress = Callable[[str, int, int], None]


class Prepared(NamedTuple):
    """What was written; `classes` gives images in train and test by class name."""

    classes: dict[str, tuple[int, int]]
    united: int
    together: list[list[str]]

    @property
    def parts(self) -> tuple[int, int]:
        """Images in train and in test."""
        return sum(n for n, _ in self.classes.values()), sum(n for _, n in self.classes.values())


class Seen(NamedTuple):
    """What is read of an image: its 64x64 view, the values of its masks, and what is amiss."""

    view: NDArray[np.float32]
    values: MaskValues
    faults: list[InputError]


def prepare(
    source: Path,
    target: Path,
    test_share: float = TEST_SHARE,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Prepared:
    """Writes `target`/{train,test}/{inputs,targets} and prepared.json from a tree of class folders.

    Images are copied as they are, under CLASS_NNN; masks become one 8-bit grey PNG an image, 0 and
    255. The test images are drawn from each class with `seed`; near-identical images stay in one
    part. Raises InputError for a target that is not empty, and with all faults of the source.
    """
    check_empty(target)
    if not 0 < test_share < 1:
        raise InputError("--test-share", f"is {test_share:g}", "between 0 and 1")
    if seed < 0:
        raise InputError("--seed", f"is {seed}", "0 or more")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise InputError(str(target), f"lies in {source}", "a folder elsewhere")
    pairs, masks, views = _read(source, progress)
    names = new_names(pairs, source)
    groups = _groups(len(pairs), twins(views, views))
    test = drawn(groups, [_class_of(name) for name in names], test_share, seed)
    parts = ["test" if index in test else "train" for index in range(len(pairs))]
    if len(set(parts)) < 2:
        found = f"{test_share:g} of {len(pairs)} images leaves no image for a part"
        raise InputError("--test-share", found, "another share, or more images")
    with new_folder(target) as folder:
        for index, (one, name, part) in enumerate(zip(pairs, names, parts, strict=True), start=1):
            _write(one, folder / part, name, masks)
            progress("written", index, len(pairs))
        together = [[names[i] for i in group] for group in groups if len(group) > 1]
        record = {
            "schema_version": 1,
            "source": str(source.resolve()),
            "seed": seed,
            "test_share": test_share,
            "masks": {"values": masks.values, "foreground_above": masks.threshold},
            "kept_together": together,
            "images": [
                {
                    "source": one.name,
                    "masks": [path.relative_to(source).as_posix() for path in one.masks],
                    "part": part,
                    "name": name,
                }
                for one, name, part in zip(pairs, names, parts, strict=True)
            ],
        }
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        (folder / RECORD_FILE).write_text(text, encoding="utf-8")
    classes: dict[str, tuple[int, int]] = {}
    for name, part in zip(names, parts, strict=True):
        train, tested = classes.get(_class_of(name), (0, 0))
        classes[_class_of(name)] = (train + (part == "train"), tested + (part == "test"))
    return Prepared(classes, sum(len(one.masks) > 1 for one in pairs), together)


def _pairs(source: Path) -> tuple[list[Pair], list[InputError]]:
    if find_layout(source) != Layout(source, source):
        found = "has parts or folders of masks already, nothing is to be prepared"
        raise InputError(str(source), found, "class folders, with X_mask.png beside X.png")
    return pair(source, source)


def _look(one: Pair) -> Seen:
    faults: list[InputError] = []
    values = MaskValues()
    try:
        image = open_image(one.image)
    except InputError as error:
        return Seen(np.zeros(0, np.float32), values, [error])
    for path in one.masks:
        try:
            mask = open_image(path)
        except InputError as error:
            faults.append(error)
            continue
        if mask.size != image.size:
            sizes = [f"{size[0]}x{size[1]}" for size in (mask.size, image.size)]
            found = f"is {sizes[0]} pixels, its image {sizes[1]}"
            faults.append(InputError(str(path), found, "a mask of its image's size"))
        coloured = mask.mode not in ("1", "L", "LA")
        values.add(mask_array(mask), np.asarray(mask.convert("RGB")) if coloured else None)
    return Seen(standardised(small_grey(image)), values, faults)


def _read(source: Path, progress: Progress) -> tuple[list[Pair], Masks, NDArray[np.float32]]:
    """The images, what their masks mean, and their views; raises InputError with all faults."""
    pairs, faults = _pairs(source)
    values = MaskValues()
    views = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for seen in pool.map(_look, pairs):
            faults += seen.faults
            values.histogram += seen.values.histogram
            values.colours.update(seen.values.colours)
            views.append(seen.view)
            progress("read", len(views), len(pairs))
    if faults:
        raise joined(faults, f"the data in {source}")
    return pairs, values.meaning(str(source)), np.stack(views)


def new_names(pairs: list[Pair], source: Path) -> list[str]:
    """CLASS_NNN with the image's suffix: the class is the image's folder.

    The number is the last one in the image's own name where those of a class differ, else images
    are counted. Folders above all images do not count; one folder gives its own name.
    """
    folders = [one.image.parent for one in pairs]
    common = Path(os.path.commonpath(folders))
    labels = ["_".join(f.relative_to(common).parts) or common.resolve().name for f in folders]
    labels = [re.sub(r"\s+", "_", label) for label in labels]
    names = [""] * len(pairs)
    for label in dict.fromkeys(labels):
        members = [index for index, own in enumerate(labels) if own == label]
        found = [NUMBER.search(pairs[index].image.stem) for index in members]
        numbers = [int(match[1]) for match in found if match]
        if len(set(numbers)) < len(members):
            numbers = list(range(1, len(members) + 1))
        for index, number in zip(members, numbers, strict=True):
            names[index] = f"{label}_{number:03d}{pairs[index].image.suffix.lower()}"
    return names


def _class_of(name: str) -> str:
    return name.rpartition("_")[0]


def _groups(count: int, links: list[tuple[int, int]]) -> list[list[int]]:
    """Indices that belong together, each once, in order of their first."""
    first = list(range(count))

    def root(index: int) -> int:
        while first[index] != index:
            index = first[index]
        return index

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        first[high] = low
    members: dict[int, list[int]] = {}
    for index in range(count):
        members.setdefault(root(index), []).append(index)
    return list(members.values())


def drawn(groups: list[list[int]], classes: list[str], share: float, seed: int) -> set[int]:
    """Indices for the test part: whole groups, `share` of each class (that of a group's first)."""
    order = random.Random(f"prepare {seed}")
    test: set[int] = set()
    for name in dict.fromkeys(classes):
        own = [group for group in groups if classes[group[0]] == name]
        order.shuffle(own)
        wanted, taken = round(share * sum(map(len, own))), 0
        for group in own:
            if taken + len(group) <= wanted:
                test.update(group)
                taken += len(group)
    return test


def _write(one: Pair, part: Path, name: str, masks: Masks) -> None:
    for folder in ("inputs", "targets"):
        (part / folder).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(one.image, part / "inputs" / name)
    united = Image.fromarray(read_masks(one.masks, masks))
    united.save((part / "targets" / name).with_suffix(".png"))
