"""Reading images and masks. Arrays are channels first: image (C, H, W), mask (H, W).

They are 8 bit. An image of 16 bit, where it is let in, is float32 in the same units, 0 to 255
(value * 255 / 65535).

An image is converted to the channels that the network takes (1: grey, 3: RGB). A mask is read as
its brightest channel, so that a red or a white lesion on black are the same; a palette is looked
up, one bit becomes 0 and 255. Sizes are (width, height) as in the configuration. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from trainer.data.folders import DICOM_FIX
from trainer.errors import InputError

SIXTEEN_BIT_FIX = "convert it to 8 bit, for example with: convert IN -auto-level -depth 8 OUT.png"
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MASK_MODES = {"1": "L", "P": "RGB", "PA": "RGB", "LA": "L", "RGBA": "RGB"}

Bytes = NDArray[np.uint8]
Pixels = NDArray[Any]
"""uint8 or float32, from 0 to 255."""

Step = tuple[str, tuple[int, int]]
"""resize or center_crop, and its (width, height)."""

BYTES_OF_WORDS = np.float32(255 / 65535)


def open_image(path: Path, deep: bool = False) -> Any:
    """A PIL image whose pixels can be decoded to 8 bit, upright as its EXIF orientation says.

    With `deep`, an image of 16 bit comes as its array: uint16 (H, W), or (H, W, 3) RGB. Raises
    InputError that names the file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(132)
        if start[128:] == b"DICM":
            raise InputError(str(path), "this is a DICOM file", "8-bit images", DICOM_FIX)
        image = Image.open(path)
        mode = _deep_mode(image)
        words = _sixteen_bit(path) if deep and mode is not None else None
        if mode is not None and words is None:
            found = f"has more than 8 bits a channel (mode {mode})"
            raise InputError(str(path), found, "8-bit images", SIXTEEN_BIT_FIX)
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            fix = "save each as an image of its own"
            raise InputError(str(path), f"has {pages} pages", "one image a file", fix)
        if words is not None:
            return words
        if _turned_twice(image):
            fix = "convert it, for example with: convert IN -auto-orient OUT.png"
            raise InputError(str(path), "is an uncompressed TIFF that is to be turned", "", fix)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(str(path), "there is no such file", "an image") from None
    except PermissionError:
        raise InputError(str(path), "may not be read", fix=f"chmod +r '{path}'") from None
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError … on broken files
        found = f"cannot be read as an image ({str(error) or type(error).__name__})"
        raise InputError(str(path), found, "a whole image file", "replace or remove it") from None
    return image


def _deep_mode(image: Any) -> str | None:
    """The mode of an image of more than 8 bits a channel that is not loaded yet; else None.

    PIL opens 16-bit colours as 8-bit ones and cuts them: only the mode of the raw data tells.
    """
    if image.mode not in EIGHT_BIT_MODES:
        return str(image.mode)
    if image.format not in ("PNG", "TIFF"):  # a BMP of 5 bits a channel has a raw mode "BGR;16"
        return None
    modes = [t.args if isinstance(t.args, str) else t.args[0] for t in image.tile if t.args]
    return next((mode for mode in modes if ";16" in str(mode)), None)


def _sixteen_bit(path: Path) -> NDArray[np.uint16] | None:
    """The pixels of a PNG or TIFF of 16 bit, grey or RGB; None for other depths."""
    import cv2  # PIL cuts 16-bit colours to 8 bit

    content = np.fromfile(path, np.uint8)
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        return None
    return np.asarray(pixels if pixels.ndim == 2 else pixels[..., 2::-1])


def _turned_twice(image: Any) -> bool:
    """Whether Pillow (13.0) would apply the orientation twice: that of a TIFF it decodes itself."""
    decoded_by_pillow = image.format == "TIFF" and image.tile and image.tile[0][0] == "raw"
    return bool(decoded_by_pillow and image.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def _resized(image: Any, size: tuple[int, int] | None, resample: Image.Resampling) -> Any:
    return image if size is None or image.size == size else image.resize(size, resample)


def image_array(image: Any, channels: int, size: tuple[int, int] | None) -> Bytes:
    """A PIL image as (channels, H, W), resized bilinearly (with antialiasing) to `size`."""
    if image.mode not in ("1", "L", "LA"):
        image = image.convert("RGB")  # so that grey is the same from a file and from an array
    image = image.convert("L" if channels == 1 else "RGB")
    array = np.asarray(_resized(image, size, Image.Resampling.BILINEAR))
    return np.array(array[None] if channels == 1 else array.transpose(2, 0, 1), order="C")


def mask_array(image: Any, size: tuple[int, int] | None = None) -> Bytes:
    """A PIL image as (H, W), its brightest channel; resized by the nearest pixel."""
    image = image.convert(MASK_MODES[image.mode]) if image.mode in MASK_MODES else image
    array = np.asarray(_resized(image, size, Image.Resampling.NEAREST))
    return np.array(array.max(axis=2) if array.ndim == 3 else array, order="C")


def read_image(path: Path, channels: int, size: tuple[int, int] | None = None) -> Bytes:
    """The image file at `path` as (channels, H, W), 8 bit."""
    return image_array(open_image(path), channels, size)


def read_pixels(
    path: Path, channels: int, steps: Sequence[Step] = (), grey: bool = False
) -> Pixels:
    """The image file at `path` as (channels, H, W), 8 or 16 bit, after `steps`.

    `grey`: without its colours, whatever the number of channels.
    """
    opened = open_image(path, deep=True)
    return prepared(opened, channels, steps, str(path), grey)


def prepared(
    image: Any, channels: int, steps: Sequence[Step], where: str, grey: bool = False
) -> Pixels:
    """A PIL image, or the array of one of 16 bit, as (channels, H, W), after `steps`."""
    if isinstance(image, np.ndarray):
        planes = [Image.fromarray(plane) for plane in _planes(image, 1 if grey else channels)]
        moved = [np.asarray(_moved(plane, steps, where)) for plane in planes]
        return np.stack(moved * (channels // len(moved)))
    image = image if image.mode in ("1", "L", "LA") else image.convert("RGB")
    image = image.convert("L" if grey or channels == 1 else "RGB")
    return image_array(_moved(image, steps, where), channels, None)


def _planes(words: NDArray[np.uint16], channels: int) -> list[NDArray[np.float32]]:
    pixels = words.astype(np.float32) * BYTES_OF_WORDS
    if pixels.ndim == 2:
        return [pixels] * channels
    if channels == 1:
        return [pixels @ np.array([0.299, 0.587, 0.114], np.float32)]  # as PIL and OpenCV do
    return [np.ascontiguousarray(pixels[..., channel]) for channel in range(3)]


def _moved(image: Any, steps: Sequence[Step], where: str, nearest: bool = False) -> Any:
    """A PIL image after resizes and crops of its middle."""
    resample = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    for name, size in steps:
        if name == "resize":
            image = _resized(image, size, resample)
            continue
        left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
        if left < 0 or top < 0:
            found = f"is {image.width}x{image.height} pixels, center_crop is {size[0]}x{size[1]}"
            raise InputError(
                where, found, "a crop that is no larger than the image", "resize first"
            )
        image = image.crop((left, top, left + size[0], top + size[1]))
    return image


def moved_mask(mask: Bytes, steps: Sequence[Step], where: str) -> Bytes:
    """A mask (H, W) after resizes, by the nearest pixel, and crops."""
    return np.asarray(_moved(Image.fromarray(mask), steps, where, nearest=True)) if steps else mask


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Bytes:
    """The mask file at `path` as (H, W)."""
    return mask_array(open_image(path), size)
