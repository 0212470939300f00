"""Pictures that this program writes: PNG files that say so, and the only ones it overwrites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.data.images import open_image
from trainer.errors import InputError

OURS = "rml-optimization"
"""The value of the key Software in their metadata."""


def is_ours(path: Path) -> bool:
    """Whether this program wrote the picture."""
    try:
        return bool(open_image(path).info.get("Software") == OURS)
    except InputError:
        return False


def check_picture(path: Path, option: str = "--out") -> None:
    """Raises InputError where `path` is no PNG, or a file that this program did not write."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{option} {path}", "this is not a name of a PNG", "FILE.png")
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
