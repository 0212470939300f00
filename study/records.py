"""What a study leaves on the disk: list_acc.json, best_model/, and the checkpoints that stay.

Everything lives in `runs/<study>/`; `./list_acc.json` and `./best_model/` are copies of the study
that ran last. A file or folder at those places that is not such a copy is moved aside first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.files import write_json
from trainer.networks.weights import sha256

LIST_FILE = "list_acc.json"
BEST_FOLDER = "best_model"
MODEL_FILE = "best_model_file.pt"
ORIGIN_FILE = "best_model.json"
CONFIG_FILE = "config_test.json"
SPLIT_FILE = "split.json"
LAYERS_FILE = "layers.json"


@dataclass
class TrialRecord:
    """One line of list_acc.json: the published five fields, and ours beside them."""

    trial: int
    state: str
    optimizer: str = ""
    lr: float = 0.0
    loss: str = ""
    max_acc: float = 0.0
    epoch_max_acc: int = 0
    foreground_dice: float | None = None
    iou: float | None = None
    class_dice: dict[str, float | None] | None = None
    value: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    cause: str = ""
    weights: str = ""
    evaluated_on: str = ""
    lr_scheduler: str = ""
    parameters: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TrialRecord:
        """Back from a storage; fields of another version of this program are passed over."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known})

    def as_dict(self, study: str, metric: str) -> dict[str, Any]:
        """In the published order, ours behind; `value` is the metric that trials are chosen by."""
        published = ("max_acc", "optimizer", "lr", "loss", "epoch_max_acc")
        ours = (
            "trial",
            "state",
            "value",
            "foreground_dice",
            "iou",
            "class_dice",
            "epochs",
            "seconds",
            "cause",
            "weights",
            "evaluated_on",
            "lr_scheduler",
            "parameters",
        )
        return {key: getattr(self, key) for key in (*published, *ours)} | {
            "metric": metric,
            "study": study,
        }


def move_aside(path: Path) -> Path:
    """Renames a file or folder of the user that stands in the way; its new place."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.stem}.before-{stamp}{path.suffix}")
    path.rename(aside)
    return aside


class Records:
    """Keeps the records of one study. `say` is told when something of the user is moved aside."""

    def __init__(self, study_folder: Path, here: Path, say: Callable[[str], None]) -> None:
        self.folder, self._here, self._say = study_folder, here, say
        self.study = study_folder.name

    # ---- list_acc.json ----
    def write_list(self, records: list[TrialRecord], metric: str) -> None:
        """Every trial that ended, in trial order."""
        content = [r.as_dict(self.study, metric) for r in sorted(records, key=lambda r: r.trial)]
        write_json(self.folder / LIST_FILE, content)
        self._copy_list(content)

    def _copy_list(self, content: Any) -> None:
        copy = self._here / LIST_FILE
        if copy.exists() and not self._is_list_of_a_study(copy):
            self._say(f"{copy.name} was not made here; it is now {move_aside(copy).name}")
        write_json(copy, content)

    def _is_list_of_a_study(self, path: Path) -> bool:
        try:
            study = json.loads(path.read_text(encoding="utf-8"))[0]["study"]
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return study == self.study or (self.folder.parent / str(study) / LIST_FILE).exists()

    # ---- best_model/ ----
    def promote(
        self,
        model: str,
        files: dict[str, Path],
        origin: dict[str, Any],
        config_for: Callable[[str], dict[str, Any]] | None,
    ) -> None:
        """Makes `files` (name: source) the study's best model, here and in ./best_model.

        `model` names the checkpoint among them. `config_for(folder)` renders config_test.json with
        the model in `folder`, a path relative to where the program was started; None: there is
        none.
        """
        kept = self.folder / BEST_FOLDER
        content = {**origin, "sha256": sha256(files[model]), "model": model, "files": sorted(files)}
        self._fill(kept, files, content, config_for)
        self._fill_here(files, content, config_for)

    def _fill_here(
        self,
        files: dict[str, Path],
        origin: dict[str, Any],
        config_for: Callable[[str], dict[str, Any]] | None,
    ) -> None:
        here = self._here / BEST_FOLDER
        if not self._is_model_of_a_study(here):
            self._say(f"{here.name}/ was not made here; it is now {move_aside(here).name}/")
        self._fill(here, files, origin, config_for)

    def bring_back(self) -> dict[str, Any]:
        """Makes the study's model, kept in its folder, ./best_model again, and its list
        ./list_acc.json; best_model.json of it. Raises InputError where it has none."""
        kept = self.folder / BEST_FOLDER
        where = f"study '{self.study}'"
        try:
            origin: dict[str, Any] = json.loads((kept / ORIGIN_FILE).read_text(encoding="utf-8"))
            model = kept / str(origin.get("model", MODEL_FILE))
            entries = json.loads((self.folder / LIST_FILE).read_text(encoding="utf-8"))
            checksum = sha256(model)
            config: Any = None
            if (kept / CONFIG_FILE).exists():  # a command's model has none
                config = json.loads((kept / CONFIG_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found = f"has no model to bring back ({getattr(error, 'strerror', None) or error})"
            raise InputError(where, found, "a study with a trial that is complete") from None
        if checksum != origin.get("sha256"):
            found = f"has a damaged model: {model} is not what best_model.json says"
            raise InputError(where, found, fix=f"restore {model} from a copy")
        files = {name: kept / name for name in _files_of(kept) | {model.name}}
        before = os.path.relpath(kept, self._here)
        self._fill_here(
            {name: path for name, path in files.items() if path.exists()},
            origin,
            (lambda place: _moved(config, before, place)) if config else None,
        )
        self._copy_list(entries)
        return origin

    def _fill(
        self,
        folder: Path,
        files: dict[str, Path],
        origin: dict[str, Any],
        config_for: Callable[[str], dict[str, Any]] | None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _files_of(folder) - files.keys():  # of the model before
            (folder / name).unlink(missing_ok=True)
        for name, source in files.items():
            beside = folder / f".{name}.{os.getpid()}"
            shutil.copyfile(source, beside)
            os.replace(beside, folder / name)
        write_json(folder / ORIGIN_FILE, origin)
        if config_for:
            write_json(folder / CONFIG_FILE, config_for(os.path.relpath(folder, self._here)))
        else:
            (folder / CONFIG_FILE).unlink(missing_ok=True)

    def promoted(self) -> tuple[int, bool] | None:
        """The trial whose model is the study's, and whether the study had ended then."""
        try:
            origin = json.loads((self.folder / BEST_FOLDER / ORIGIN_FILE).read_text("utf-8"))
            ended = origin.get("study_ended", origin["test"] is not None)
            return int(origin["trial"]), bool(ended)
        except (OSError, ValueError, LookupError):
            return None

    def _is_model_of_a_study(self, folder: Path) -> bool:
        """Whether replacing the folder loses nothing: it is absent, empty, or a study's copy."""
        files = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        if not [name for name in files if name not in ("README.md", ".gitkeep")]:
            return True
        try:
            study = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))["study"]
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return study == self.study or (self.folder.parent / str(study) / BEST_FOLDER).is_dir()

    # ---- checkpoints ----
    def keep_checkpoints(self, records: list[TrialRecord], keep: int) -> None:
        """Weights stay for the best `keep` trials; what only a running trial needs goes."""
        ended = [record for record in records if record.value is not None]
        best = sorted(ended, key=lambda r: (-(r.value or 0.0), r.trial))[:keep]
        kept = {record.trial for record in best}
        for record in records:
            best_epoch = f"model_checkpoint_{record.epoch_max_acc}.pt"
            for file in checkpoints(self.folder / run_name(record.trial)):
                best_file = file.name.startswith("best.") or file.name == best_epoch
                if record.trial not in kept or not best_file:
                    file.unlink(missing_ok=True)


def _files_of(model: Path) -> set[str]:
    """What a promotion put into a model's folder, by its own word."""
    try:
        told = json.loads((model / ORIGIN_FILE).read_text(encoding="utf-8"))["files"]
        return {name for name in told if re.fullmatch(r"[\w-][\w. -]*\.\w+", name)}
    except (OSError, ValueError, LookupError, TypeError):
        return {SPLIT_FILE, LAYERS_FILE}


def _moved(content: Any, old: str, new: str) -> Any:
    """JSON in which each path in the folder `old` is one in `new`."""
    if isinstance(content, dict):
        return {key: _moved(value, old, new) for key, value in content.items()}
    if isinstance(content, list):
        return [_moved(value, old, new) for value in content]
    if isinstance(content, str) and content.startswith(f"{old}/"):
        return new + content.removeprefix(old)
    return content


def run_name(trial: int) -> str:
    """The name of a trial's run folder."""
    return f"trial-{trial:04d}"


def checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoints that a trial left.

    A trial may write what it likes into its folder: a link there could name a file of somebody
    else, which must be neither removed nor promoted, so links are passed over.
    """
    folder = run_folder / "checkpoints"
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = {*folder.glob("*.pt"), *folder.glob("best.*")}
    return [p for p in sorted(found) if p.is_file() and not p.is_symlink()]


def checkpoint_of(run_folder: Path, epoch: int) -> Path | None:
    """The best checkpoint that a trial left: ours, a foreign image's of its best epoch, or the one
    file best.* of a script of the user."""
    by_name = {path.name: path for path in checkpoints(run_folder)}
    own = [path for name, path in by_name.items() if name.startswith("best.")]
    return (
        by_name.get("best.pt")
        or by_name.get(f"model_checkpoint_{epoch}.pt")
        or (own[0] if len(own) == 1 else None)
    )
