"""What a study shows: the live table, plain lines, and when it will end."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from study.records import TrialRecord
from study.view import Forecast, StudyView, duration

PARAMS = {"optimizer": "adam", "loss": "bce", "learning_rate": 1.5e-3}
EPOCH = {
    "epoch": 3,
    "epochs": 10,
    "loss": 0.25,
    "evaluated_on": "validation",
    "accuracy": 0.75,
    "foreground_dice": 0.5,
    "seconds": 2.0,
}


def record(trial: int, value: float | None, state: str = "COMPLETE") -> TrialRecord:
    return TrialRecord(
        trial=trial,
        state=state,
        optimizer="sgd",
        lr=1e-2,
        loss="dice",
        value=value,
        epochs=10,
        epoch_max_acc=7,
        seconds=25.0,
        cause="" if state == "COMPLETE" else "out of memory",
    )


def shown(terminal: bool) -> str:
    """A study of three trials: one ended, one failed, one running."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=150, color_system=None)
    with StudyView(console, 3, 10, "accuracy") as view:
        for ended in (record(0, 0.875), record(1, None, "FAIL")):
            view.trial_started(ended.trial, PARAMS)
            view.trial_ended(ended)
        view.trial_started(2, PARAMS)
        view.epoch(2, EPOCH)
        if terminal:
            console.print(view._picture())
    return out.getvalue()


def test_live_table() -> None:
    text = shown(terminal=True)
    for part in (
        "COMPLETE",
        "0.875",
        "out of memory",
        "trial 2: adam, bce, rate 1.50e-03; epoch 3/10, loss 0.250, validation accuracy 0.750, "
        "foreground Dice 0.500",
        "2 of 3 trials; best: trial 0, accuracy 0.875",
        "study ends about",
    ):
        assert part in text, text


def test_plain_lines() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "trial 0: adam, bce, rate 1.50e-03"
    assert lines[1] == "trial 0 COMPLETE: accuracy 0.875 at epoch 7, 25 s"
    assert lines[3].startswith("trial 1 FAIL (out of memory): accuracy -")
    assert lines[5].startswith("trial 2 epoch 3/10: loss 0.250, validation accuracy 0.750")
    assert re.search(r"study ends about \d\d:\d\d \(in \d+ s\)$", lines[5])


def test_no_end_before_the_first_epoch() -> None:
    assert Forecast(50, 50).remaining_seconds(0, 0) is None


def test_end_in_closed_form() -> None:
    """Epochs of 2 s: 7 left of this trial, then 4 trials of 10 epochs and 5 s beside them."""
    forecast = Forecast(6, 10, seconds=[2.0, 2.0], overheads=[5.0], epochs_of_ended=[10])
    assert forecast.remaining_seconds(ended=1, epoch=3) == 7 * 2 + 4 * (10 * 2 + 5)


def test_pruned_trials_shorten_the_forecast() -> None:
    forecast = Forecast(3, 10, seconds=[1.0], epochs_of_ended=[10, 2])
    assert forecast.remaining_seconds(ended=1, epoch=10) == 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (720, "12 min"), (11100, "3 h 05 min"), (187200, "2 days 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
