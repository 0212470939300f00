"""IDX files, in which MNIST is published: images (N, H, W) and labels (N,) of 8 bit. Torch-free.

Big-endian: two zero bytes, the type (8: unsigned byte), the number of axes, their lengths as 32-bit
integers, then the values (Y. LeCun, "The MNIST database", the file format). May be gzipped.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.class_names import Labelled
from trainer.data.folders import Pair
from trainer.errors import InputError

PARTS = {"training": ("train",), "test": ("t10k", "test")}
"""How the names of a part's files begin."""

ACCEPTED = "train-images-idx3-ubyte and t10k-images-idx3-ubyte, their labels beside, plain or .gz"


@lru_cache(maxsize=4)
def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file; raises InputError that names it."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise InputError(str(path), "there is no such file", ACCEPTED) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), f"cannot be read ({error})", ACCEPTED) from None
    axes = content[3] if len(content) > 3 else 0
    if content[:3] != b"\0\0\x08" or not 1 <= axes <= 4 or len(content) < 4 + 4 * axes:
        raise InputError(str(path), "is no IDX file of unsigned bytes", ACCEPTED)
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = len(content) - 4 - 4 * axes
    if values != math.prod(shape):
        found = f"holds {values} values, its header says {' x '.join(map(str, shape))}"
        raise InputError(str(path), found, "a whole file", "fetch it again")
    array = np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    return np.asarray(array)


def images_file(path: Path, part: str) -> Path:
    """The file of images of a part: `path` itself, or the one in a folder."""
    if not path.is_dir():
        return path
    found = sorted(one for one in path.iterdir() if "images" in one.name and "idx3" in one.name)
    own = [one for one in found if one.name.lower().startswith(PARTS[part])] or found
    if not own or (len(own) > 1 and len({one.name.removesuffix(".gz") for one in own}) > 1):
        told = f"has {len(own)} files of {part} images" if own else f"has no file of {part} images"
        raise InputError(str(path), told, ACCEPTED)
    return own[0]


def open_idx(path: Path, part: str, truth: bool) -> Labelled:
    """The digits of one part; with `truth` the labels have to lie beside."""
    file = images_file(path, part)
    images = read_idx(file)
    if images.ndim != 3 or 0 in images.shape:
        found = f"is an array of shape {images.shape}"
        raise InputError(str(file), found, "images, an array (N, H, W)")
    stem = file.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = [one for name in (stem, f"{stem}.gz") if (one := file.with_name(name)).exists()]
    if truth and not beside:
        raise InputError(str(file), "has no labels beside it", f"{stem} or {stem}.gz there")
    labels = read_idx(beside[0]) if beside and beside[0] != file else None
    if labels is not None and labels.shape != images.shape[:1]:
        found = f"has labels of shape {labels.shape}, {file.name} has {len(images)} images"
        raise InputError(str(beside[0]), found, "one label an image")
    pairs = [Pair(file, (), f"{number:05d}", place=number) for number in range(len(images))]
    if labels is None:
        return Labelled(pairs, [], [])
    digits = sorted({*range(10), *labels.tolist()})
    width = len(str(digits[-1]))
    return Labelled(
        pairs, [f"{n:0{width}d}" for n in labels.tolist()], [f"{n:0{width}d}" for n in digits]
    )
