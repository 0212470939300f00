"""The best trial's checkpoint becomes the study's model, with a configuration that uses it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.choice import Place
from launchers.image import source_hash
from study.data_kinds import AnyDataset
from study.records import (
    LAYERS_FILE,
    MODEL_FILE,
    SPLIT_FILE,
    Records,
    TrialRecord,
    checkpoint_of,
    run_name,
)
from study.render import network_of, render_test
from study.settings import Settings
from study.start_weights import StartWeights

SCHEMA_VERSION = 1


def best_of(records: list[TrialRecord]) -> TrialRecord | None:
    """The complete trial with the highest value, the first of them."""
    done = [r for r in records if r.state == "COMPLETE" and r.value is not None]
    return max(done, key=lambda r: (r.value or 0.0, -r.trial), default=None)


def near(path: Path, here: Path) -> str:
    """A path as config_test.json names it: relative where it really lies below `here`."""
    real = path.resolve()
    if real.is_relative_to(here.resolve()):
        return f"./{real.relative_to(here.resolve())}"
    return str(real)


@dataclass(frozen=True)
class Promotion:
    """Promotes trials of one study. `here` is where the program was started."""

    settings: Settings
    folder: Path
    here: Path
    place: Place
    dataset: AnyDataset
    start: StartWeights
    records: Records

    def promote(
        self, best: TrialRecord | None, scores: dict[str, Any] | None = None, ended: bool = False
    ) -> None:
        """Makes the trial the study's model, unless it is; `scores` are those on the test images,
        where there are some at the end of the study (`ended`)."""
        if best is None or (not ended and self.records.promoted() == (best.trial, False)):
            return
        run_folder = self.folder / run_name(best.trial)
        checkpoint = checkpoint_of(run_folder, best.epoch_max_acc)
        if checkpoint is None:
            return
        own = self.settings.trial_command is not None
        model = MODEL_FILE
        if own:  # what is in it, only the command knows
            model = str(Path(MODEL_FILE).with_suffix(checkpoint.suffix))
        files = {model: checkpoint}
        if self.place.foreign:  # its checkpoint does not describe the network
            files[LAYERS_FILE] = run_folder / LAYERS_FILE
        else:
            files[SPLIT_FILE] = self.folder / SPLIT_FILE
        if self.start.module:
            files[self.start.module.name] = self.start.module
        config = None if own else lambda folder: self._config(best, folder)
        self.records.promote(
            model, files, {**self._origin(best, scores), "study_ended": ended}, config
        )

    def _origin(self, best: TrialRecord, scores: dict[str, Any] | None) -> dict[str, Any]:
        """Where the model comes from: best_model.json."""
        told = {key: value for key, value in (scores or {}).items() if key != "images"}
        return {
            "schema_version": SCHEMA_VERSION,
            **best.as_dict(self.settings.study_name, self.settings.metric),
            "test": told or None,
            "network": network_of(best.parameters or {}, self.settings, self.start.layers),
            "command": list(own.words) if (own := self.settings.trial_command) else None,
            "options": self.settings.options(),
            "data_checksum": self.dataset.fingerprint,
            "launcher": self.place.launcher.name,
            "image": self.place.image_id,
            "source_checksum": source_hash(),
        }

    def _config(self, best: TrialRecord, model: str) -> dict[str, Any]:
        """config_test.json for the model in the folder `model`."""
        foreign = self.place.foreign
        return render_test(
            self.settings,
            self.dataset,
            best.loss,
            load=f"{model}/{MODEL_FILE}",
            split=None if foreign else f"{model}/{SPLIT_FILE}",
            output="./predictions/",
            near=lambda path: near(path, self.here),
            layers=f"{model}/layers.json" if foreign else None,
        )
