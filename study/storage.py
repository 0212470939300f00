"""The study in its Optuna storage: opened, created or taken up again."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.exc import SQLAlchemyError

from trainer.errors import InputError, nearest

DEFAULT_STORAGE = "sqlite:///rml_study.db"
SETTINGS_ATTRIBUTE = "settings"
FINGERPRINT_ATTRIBUTE = "data_fingerprint"


def masked(url: str) -> str:
    """A storage URL without its password."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)


class Storage:
    """An Optuna storage; a new SQLite file is removed again if no study comes to be in it."""

    def __init__(self, url: str) -> None:
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
            self.storage = optuna.storages.get_storage(url)
        except (SQLAlchemyError, ImportError, ValueError, OSError, RuntimeError) as error:
            lines = masked(str(getattr(error, "orig", None) or error)).strip().splitlines()
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

    def check_name(self, name: str, resume: bool, study_folder: Path) -> None:
        """A new name must be new, a resumed one known."""
        known = self.names()
        if resume and name not in known:
            hint = nearest(name, known)
            accepted = ", ".join(known[-10:]) or "none yet"
            raise InputError(f"study '{name}'", f"is not in {masked(self.url)}{hint}", accepted)
        if not resume and (name in known or study_folder.exists()):
            where = masked(self.url) if name in known else study_folder
            raise InputError(
                f"study '{name}'",
                f"exists already in {where}",
                "a new name",
                f"go on with it: --study-name '{name}' --resume; or give another --study-name",
            )

    def recorded(self, name: str) -> dict[str, Any]:
        """The settings that a study was made with."""
        attributes = self._study(name).user_attrs
        settings: dict[str, Any] = attributes.get(SETTINGS_ATTRIBUTE, {})
        return settings

    def _study(self, name: str) -> optuna.Study:
        return optuna.load_study(study_name=name, storage=self.storage)

    def create(
        self, name: str, settings: dict[str, Any], fingerprint: str, metric: str
    ) -> optuna.Study:
        """A new study that remembers what it was made with."""
        study = optuna.create_study(study_name=name, storage=self.storage, direction="maximize")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([metric])
        study.set_user_attr(SETTINGS_ATTRIBUTE, settings)
        study.set_user_attr(FINGERPRINT_ATTRIBUTE, fingerprint)
        self._new_file = False
        return study

    def resume(self, name: str, settings: dict[str, Any], fingerprint: str) -> optuna.Study:
        """The study as it is; raises InputError where it was made with other settings."""
        study = self._study(name)
        before = study.user_attrs.get(SETTINGS_ATTRIBUTE, {})
        changed = [
            f"--{key} {before[key]} -> {value}"
            for key, value in settings.items()
            if key in before and before[key] != value
        ]
        if study.user_attrs.get(FINGERPRINT_ATTRIBUTE) != fingerprint:
            changed.append("the images or masks in --data are not the same any more")
        if changed:
            raise InputError(
                f"study '{name}'",
                "was made with other settings: " + "; ".join(changed),
                "the same settings",
                "leave those options out, or begin a study with another name",
            )
        return study

    def delete(self, name: str) -> None:
        """Removes a study in which nothing happened."""
        optuna.delete_study(study_name=name, storage=self.storage)

    def close(self) -> None:
        """Removes a new file in which no study came to be."""
        if self._new_file and self._file and not self.names():
            self.storage.remove_session() if hasattr(self.storage, "remove_session") else None
            self._file.unlink(missing_ok=True)
