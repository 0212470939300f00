"""A data folder that is written whole or not at all."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import InputError, NoSpace


def check_empty(target: Path) -> None:
    """Raises InputError where `target` is a file, or a folder that holds anything."""
    if target.exists() and not target.is_dir():
        raise InputError(str(target), "this is a file", "a folder that is new or empty")
    if target.is_dir() and any(target.iterdir()):
        fix = "name another folder, or empty this one first; nothing was written"
        raise InputError(
            str(target), "the folder is not empty", "a folder that is new or empty", fix
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into; what is in it at the end is moved to `target`.

    An interrupted run must not leave half a data set that looks like a whole one. Raises InputError
    where `target` is not empty or cannot be written, NoSpace for a full disk.
    """
    check_empty(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target) as scratch:
            yield Path(scratch)
            for item in sorted(Path(scratch).iterdir()):
                item.rename(target / item.name)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpace(f"{target}: no space is left on the disk") from None
        found = f"cannot be written ({error.strerror or error})"
        raise InputError(str(target), found, "a folder that you may write to") from None
