"""Files that others may look at, or may have put there: written whole, read only where plain."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Writes a file beside and renames it, so that a reader sees the old one or the new one.

    A link at `path` is replaced, not followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """JSON, written beside and renamed."""
    write_atomically(path, (json.dumps(content, indent=4) + "\n").encode())


def open_plain(path: Path) -> BinaryIO:
    """A file for reading that is no link, pipe or device: a trial may put anything into its folder.

    Raises OSError (FileNotFoundError where there is nothing).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a plain file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: Path) -> str:
    """The text of a plain file; bytes that are no UTF-8 are replaced. Raises OSError."""
    with open_plain(path) as file:
        return file.read().decode("utf-8", errors="replace")
