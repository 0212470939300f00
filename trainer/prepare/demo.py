"""A made-up data set that looks like breast ultrasound, for a first try without a download.

It is written in the published layout and in a few seconds; trainer/prepare/phantom.py draws it.

    make_demo(Path("data/demo"), images=80, test_images=20, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from trainer.errors import InputError
from trainer.prepare.new_folder import check_empty, new_folder
from trainer.prepare.phantom import draw

KINDS = ("benign", "malignant", "normal")
SHARES = {"malignant": 0.3, "normal": 0.15}
"""Shares of the kinds; the rest is benign."""


class Demo(NamedTuple):
    """What was written: how many images in all, and how many of them have an empty mask."""

    training: int
    test: int
    without_lesion: int


def make_demo(
    target: Path,
    images: int = 80,
    test_images: int = 20,
    seed: int = 0,
    size: tuple[int, int] = (180, 320),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Demo:
    """Writes `target`/{train,test}/{inputs,targets}/NAME.png: 8-bit grey images, masks 0 and 255.

    `size` is the smallest and the largest side in pixels; about 15 % of the masks are empty. The
    same seed gives the same files: an image depends on the seed, `size` and its name. `progress`
    is called with the images done and their number. Raises InputError for a folder that is not
    empty or cannot be written, and for fewer than one image; NoSpace for a full disk.
    """
    _check(target, images, test_images, seed, size)
    named = {"train": _names(images, {}), "test": _names(test_images, _counts(images))}
    total, done = images + test_images, 0
    with new_folder(target) as folder:
        for part, names in named.items():
            for name in names:
                _write(folder / part, name, seed, size)
                done += 1
                progress(done, total)
    empty = sum(name.startswith("normal") for names in named.values() for name in names)
    return Demo(images, test_images, empty)


def _check(target: Path, images: int, test_images: int, seed: int, size: tuple[int, int]) -> None:
    check_empty(target)
    for name, number in (("images", images), ("test images", test_images)):
        if number < 1:
            raise InputError(f"number of {name}", f"is {number}", "1 or more")
    if seed < 0:
        raise InputError("seed", f"is {seed}", "0 or more")
    if not 32 <= size[0] <= size[1]:
        raise InputError("size", f"is {size}", "smallest and largest side, 32 pixels or more")


def _counts(number: int) -> dict[str, int]:
    """How many of `number` images are of each kind."""
    counts = {kind: round(share * number) for kind, share in SHARES.items()}
    return {"benign": number - sum(counts.values()), **counts}


def _names(number: int, taken: dict[str, int]) -> list[str]:
    """File names as in the published data; each kind is counted on from `taken`."""
    return [
        f"{kind}_{taken.get(kind, 0) + i + 1:03d}.png"
        for kind, count in sorted(_counts(number).items())
        for i in range(count)
    ]


def _write(part: Path, name: str, seed: int, size: tuple[int, int]) -> None:
    kind, number = name.removesuffix(".png").split("_")
    rng = np.random.default_rng([seed, KINDS.index(kind), int(number)])
    for folder, pixels in zip(("inputs", "targets"), draw(rng, kind, size), strict=True):
        (part / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(part / folder / name)
