"""Reading images and masks. Every array is 8 bit, channels first: image (C, H, W), mask (H, W).

An image is converted to the channels that the network takes (1: grey, 3: RGB). A mask is read as
its brightest channel, so that a red or a white lesion on black are the same; a palette is looked
up, one bit becomes 0 and 255. Sizes are (width, height) as in the configuration. Torch-free.
"""

from __future__ import annotations

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


def open_image(path: Path) -> Any:
    """A PIL image whose pixels can be decoded to 8 bit, upright as its EXIF orientation says.

    Raises InputError that names the file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(132)
        if start[128:] == b"DICM":
            raise InputError(str(path), "this is a DICOM file", "8-bit images", DICOM_FIX)
        image = Image.open(path)
        if (mode := _deep_mode(image)) is not None:
            found = f"has more than 8 bits a channel (mode {mode})"
            raise InputError(str(path), found, "8-bit images", SIXTEEN_BIT_FIX)
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            fix = "save each as an image of its own"
            raise InputError(str(path), f"has {pages} pages", "one image a file", fix)
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
    """The image file at `path` as (channels, H, W)."""
    return image_array(open_image(path), channels, size)


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Bytes:
    """The mask file at `path` as (H, W)."""
    return mask_array(open_image(path), size)
