"""Pictures that this program writes: PNG and GIF files that say so, the only ones it overwrites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from trainer.data.images import open_image
from trainer.errors import InputError

OURS = "rml-optimization"
"""The value of the key Software in their metadata."""


def is_ours(path: Path) -> bool:
    """Whether this program wrote the picture."""
    try:
        if path.suffix.lower() == ".gif":
            with Image.open(path) as picture:
                return picture.info.get("comment") == OURS.encode()
        return bool(open_image(path).info.get("Software") == OURS)
    except (InputError, OSError):
        return False


def check_picture(path: Path, option: str = "--out", suffix: str = ".png") -> None:
    """Raises InputError where `path` has another suffix, or is a file that this program did not
    write."""
    if path.suffix.lower() != suffix:
        kind = suffix.removeprefix(".").upper()
        raise InputError(f"{option} {path}", f"this is not a name of a {kind}", f"FILE{suffix}")
    if not path.parent.is_dir():
        raise InputError(f"{option} {path}", f"there is no folder {path.parent}", fix="make it")
    if path.exists() and not is_ours(path):
        found = "is there already, and is no picture of this program"
        raise InputError(str(path), found, fix=f"name another file with {option}")


def save_picture(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure, beside and renamed; raises InputError where it cannot."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format="png", metadata={"Software": OURS})
        partial.replace(path)
    except OSError as error:
        found = f"cannot be written ({error.strerror or error})"
        raise InputError(str(path), found, fix="name another file with --out") from None
    finally:
        partial.unlink(missing_ok=True)
