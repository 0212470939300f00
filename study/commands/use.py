"""An earlier study's model, back in ./best_model."""

from __future__ import annotations

from pathlib import Path

from study import paste
from study.commands import history
from study.commands.history import Past
from study.records import BEST_FOLDER, CONFIG_FILE, Records
from study.view import number


def use_study(past: Past, here: Path, storage: str) -> None:
    """Copies it and says what it did; what is no study's copy there is moved aside first."""
    origin = Records(past.folder, here, print).bring_back()
    print(
        f"./best_model is the model of '{past.name}': trial {origin.get('trial')}, "
        f"{past.metric} {number(origin.get('value'))} on {origin.get('evaluated_on')}; "
        "./list_acc.json lists its trials"
    )
    running = [p.name for p in history.studies(here, storage) if p.state == history.RUNNING]
    if running:
        print(f"'{running[0]}' runs here and puts its own model there when it finds a better one")
    if (here / BEST_FOLDER / CONFIG_FILE).is_file():
        print(f"To predict: {paste.trainer('trainer')} {paste.test_config()}")
    else:
        print(f"How to use {BEST_FOLDER}/{origin.get('model')}, only the study's command knows")
