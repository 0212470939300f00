"""The study in its Optuna storage: opened, created or taken up again."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import optuna
from optuna.trial import FrozenTrial
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from trainer.errors import InputError, nearest

BUSY_SECONDS = 60
TABLES = ("studies", "trials", "version_info", "alembic_version")
"""Some that every database of Optuna has."""

DEFAULT_STORAGE = "sqlite:///rml_study.db"
MADE_WITH_ATTRIBUTE = "made_with"


class MadeWith(NamedTuple):
    """What a study was made with: its options, those that must not change, and the content (by
    checksum) of its data, its network file and the weights that it starts from."""

    options: dict[str, Any]
    fixed: dict[str, Any]
    data: str
    network: str
    weights: str
    schema_version: int = 1


def masked(url: str) -> str:
    """A storage URL without its secrets."""
    try:
        shown = make_url(url)
    except ArgumentError:
        return re.sub(r"://.*@", "://***@", url)
    secret = [key for key in shown.query if re.search("pass|pwd|secret|token|key", key, re.I)]
    shown = shown.update_query_dict(dict.fromkeys(secret, "***"))
    text = shown.render_as_string(hide_password=True).replace("%2A", "*")
    return masked_text(text)  # a password with an @ that was not escaped


def masked_text(text: str) -> str:
    """A message without the password of any URL in it."""
    return re.sub(r"(://[^:/@\s]*:)\S*@", r"\1***@", text)


def _open_to_read(url: str) -> optuna.storages.BaseStorage:
    """The storage as it is: nothing is created or migrated in a database, whosever it is."""
    if url.startswith("redis"):
        return optuna.storages.get_storage(url)
    given = make_url(url)
    waiting: dict[str, Any] = {}
    if given.get_backend_name() == "sqlite" and given.database:
        file = os.path.abspath(given.database)
        # What a killed driver left half written, SQLite takes back before anybody can read.
        mode = "rw" if os.path.exists(f"{file}-journal") else "ro"
        given = given.set(database=f"file:{quote(file)}")
        given = given.update_query_dict({"mode": mode, "uri": "true"})
        waiting = {"connect_args": {"timeout": BUSY_SECONDS}}
    engine = create_engine(given, **waiting)
    try:
        known = inspect(engine)
        is_storage = all(known.has_table(name) for name in TABLES)
    finally:
        engine.dispose()
    if not is_storage:
        accepted = "the --storage of a study, like sqlite:///rml_study.db"
        raise InputError(f"--storage {masked(url)}", "is no storage of Optuna", accepted)
    opened = optuna.storages.RDBStorage(
        given.render_as_string(hide_password=False),
        engine_kwargs=waiting,
        skip_table_creation=True,
    )
    return optuna.storages.get_storage(opened)


def _open(url: str) -> optuna.storages.BaseStorage:
    """The storage; for SQLite one that waits where another program holds the file."""
    if url.startswith("sqlite"):
        waiting = {"connect_args": {"timeout": BUSY_SECONDS}}
        return optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine_kwargs=waiting))
    return optuna.storages.get_storage(url)


def existing_storage(url: str) -> Storage | None:
    """The storage, to be read; None where it is an SQLite file that is not there."""
    file = re.fullmatch(r"sqlite:///(.+)", url)
    return None if file and not Path(file[1]).is_file() else Storage(url, to_read=True)


class Storage:
    """An Optuna storage; a new SQLite file is removed again if no study comes to be in it.

    With `to_read`, what is there is only read; raises InputError where it is no storage.
    """

    def __init__(self, url: str, to_read: bool = False) -> None:
        self.url = url
        file = re.fullmatch(r"sqlite:///(.+)", url)
        self._file = Path(file[1]) if file else None
        self._new_file = self._file is not None and not self._file.exists()
        where = f"--storage {masked(url)}"
        if "://" not in url:
            fix = f"for a file here: sqlite:///{url}"
            raise InputError(where, "is not a storage URL", "like sqlite:///rml_study.db", fix)
        if self._file and not self._file.absolute().parent.is_dir():
            found = f"there is no folder {self._file.absolute().parent}"
            raise InputError(where, found, "an existing folder")
        try:
            self.storage = _open_to_read(url) if to_read else _open(url)
        except (SQLAlchemyError, ImportError, ValueError, OSError, RuntimeError) as error:
            lines = masked_text(str(getattr(error, "orig", None) or error)).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise InputError(
                where,
                f"cannot be opened ({reason})",
                "a storage that Optuna can open, like sqlite:///rml_study.db",
                "check the address, the server, its driver package, or the file's rights",
            ) from None

    def names(self) -> list[str]:
        """The studies that it has."""
        return [s.study_name for s in optuna.get_all_study_summaries(storage=self.storage)]

    def read_all(self) -> dict[str, tuple[dict[str, Any], list[FrozenTrial]]]:
        """Attributes and trials of every study, by its name."""
        return {
            name: (study.user_attrs, study.get_trials(deepcopy=False))
            for name in self.names()
            for study in [self._study(name)]
        }

    def check_name(self, name: str, resume: bool, study_folder: Path) -> None:
        """A new name must be new, a resumed one known."""
        known = self.names()
        if resume and name not in known:
            hint = nearest(name, known)
            accepted = ", ".join(known[-10:]) or "none yet"
            raise InputError(f"study '{name}'", f"is not in {masked(self.url)}{hint}", accepted)
        if not resume and name in known:
            raise InputError(
                f"study '{name}'",
                f"exists already in {masked(self.url)}",
                "a new name",
                f"go on with it: --study-name '{name}' --resume; or give another --study-name",
            )
        if not resume and (study_folder / "split.json").exists():
            raise InputError(
                f"study '{name}'",
                f"has a folder, {study_folder}, but is not in {masked(self.url)}",
                "a new name, or the --storage that it is in",
            )

    def recorded(self, name: str) -> dict[str, Any]:
        """The options that a study was last run with."""
        attributes = self._study(name).user_attrs
        if MADE_WITH_ATTRIBUTE not in attributes:
            raise InputError(f"study '{name}'", "was not made by this program", "one of its own")
        options: dict[str, Any] = attributes[MADE_WITH_ATTRIBUTE]["options"]
        return options

    def _study(self, name: str) -> optuna.Study:
        return optuna.load_study(study_name=name, storage=self.storage)

    def create(self, name: str, made_with: MadeWith, metric: str) -> optuna.Study:
        """A new study that remembers what it was made with."""
        try:
            study = optuna.create_study(study_name=name, storage=self.storage, direction="maximize")
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = masked_text(str(error.__cause__ or error)).strip().splitlines()[0]
            where = f"--storage {masked(self.url)}"
            found = f"cannot be written ({reason})"
            raise InputError(where, found, "a storage that may be written") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([metric])
        study.set_user_attr(MADE_WITH_ATTRIBUTE, made_with._asdict())
        self._new_file = False
        return study

    def resume(self, name: str, made_with: MadeWith) -> optuna.Study:
        """The study as it is; raises InputError where it was made with other settings."""
        study = self._study(name)
        before = MadeWith(**study.user_attrs[MADE_WITH_ATTRIBUTE])
        changed = [
            f"--{key} {before.fixed[key]} -> {value}"
            for key, value in made_with.fixed.items()
            if key in before.fixed and before.fixed[key] != value
        ]
        for what, old, new in (
            ("the images or masks in --data are", before.data, made_with.data),
            ("the network in --layers is", before.network, made_with.network),
            ("the weights to start from are", before.weights, made_with.weights),
        ):
            changed += [f"{what} not the same any more"] if old != new else []
        if changed:
            raise InputError(
                f"study '{name}'",
                "was made with other settings: " + "; ".join(changed),
                "the same settings",
                "leave those options out, or begin a study with another name",
            )
        study.set_user_attr(MADE_WITH_ATTRIBUTE, made_with._asdict())
        return study

    def delete(self, name: str) -> None:
        """Removes a study in which nothing happened."""
        optuna.delete_study(study_name=name, storage=self.storage)

    def close(self) -> None:
        """Removes a new file in which no study came to be."""
        if self._new_file and self._file and not self.names():
            self._file.unlink(missing_ok=True)
