"""One driver a study: a lock in the study's folder that dies with its driver."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from launchers import owner
from trainer.errors import InputError

LOCK_FILE = "driver.lock"


def holder(study_folder: Path) -> dict[str, Any] | None:
    """The driver that runs the study; None where none does.

    Told by what the lock file says and not by trying the lock, which would keep a driver out that
    starts at the same moment.
    """
    try:
        content = json.loads((study_folder / LOCK_FILE).read_text())
        return content if owner.alive(content) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class DriverLock:
    """Held from `__enter__` to `__exit__`; the kernel lets go of it when the driver is killed."""

    def __init__(self, study_folder: Path) -> None:
        self._path = study_folder / LOCK_FILE
        self._descriptor = -1

    def __enter__(self) -> DriverLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise self._taken() from None
        holder = self._holder()
        if holder and not owner.on_this_host(holder):
            os.close(self._descriptor)
            raise self._taken(f"if that driver is gone, remove {self._path}")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(owner.me()).encode(), 0)
        return self

    def _holder(self) -> dict[str, object]:
        try:
            content = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) and "host" in content else {}

    def _taken(
        self, fix: str = "wait for it, stop it, or give this one another name"
    ) -> InputError:
        holder = self._holder()
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        name = self._path.parent.name
        return InputError(f"study '{name}'", f"another driver runs it ({who})", "one driver", fix)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._path.exists():
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
