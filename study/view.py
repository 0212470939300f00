"""What a study shows while it runs: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from study.records import TrialRecord

SHOWN_TRIALS = 12


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3 h 05 min, 2 days 4 h."""
    minutes = int(seconds // 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 60 * 24:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // (60 * 24)} days {minutes // 60 % 24} h"


def number(value: Any) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def settings_of(params: dict[str, Any]) -> str:
    """A trial's point in the search space on one line."""
    if not {"optimizer", "loss", "learning_rate"} <= set(params):  # of a --space
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in params.items())
    schedule = f", {params['lr_scheduler']}" if "lr_scheduler" in params else ""
    return f"{params['optimizer']}, {params['loss']}, rate {params['learning_rate']:.2e}{schedule}"


def classes_of(record: TrialRecord) -> str:
    """Dice by name, where there are several classes."""
    told = record.class_dice or {}
    return ", ".join(f"{name} {number(value)}" for name, value in told.items() if len(told) > 1)


def _on(event: dict[str, Any]) -> str:
    """On which images an epoch was evaluated, before the name of its number."""
    return f"{event['evaluated_on']} " if event.get("evaluated_on") else ""


@dataclass
class Forecast:
    """When the study ends: seconds an epoch and epochs a trial as they were so far."""

    num_trials: int
    num_epochs: int
    seconds: list[float] = field(default_factory=list)
    overheads: list[float] = field(default_factory=list)
    """Seconds of trials beside their epochs: start, imports, reading the images."""

    epochs_of_ended: list[int] = field(default_factory=list)

    def remaining_seconds(self, ended: int, epoch: int) -> float | None:
        """With `ended` trials behind and the running one at `epoch`; None before any epoch."""
        if not self.seconds:
            return None
        recent = sorted(self.seconds[-50:])
        median = recent[len(recent) // 2]
        known = self.epochs_of_ended or [self.num_epochs]
        mean_epochs = sum(known) / len(known)
        running = max(0.0, self.num_epochs - epoch)
        overhead = sum(self.overheads) / len(self.overheads) if self.overheads else 0.0
        trial = median * mean_epochs + overhead
        return median * running + max(0, self.num_trials - ended - 1) * trial


class StudyView:
    """Follows a study. Everything is also said once where output is no terminal."""

    def __init__(self, console: Console, num_trials: int, num_epochs: int, metric: str) -> None:
        self._console, self._metric = console, metric
        self._forecast = Forecast(num_trials, num_epochs)
        self._records: list[TrialRecord] = []
        self._running: tuple[int, dict[str, Any]] | None = None
        self._event: dict[str, Any] = {}
        self._epoch_seconds = 0.0
        self._began = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> StudyView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._live:
            self._running = None
            self._live.update(self._picture(), refresh=True)
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def earlier(self, records: list[TrialRecord]) -> None:
        """Trials that ended before this driver came."""
        self._records = list(records)
        self._forecast.epochs_of_ended += [r.epochs for r in records if r.value is not None]

    def trial_started(self, trial: int, params: dict[str, Any]) -> None:
        """A trial is about to start."""
        self._running, self._event, self._epoch_seconds = (trial, params), {}, 0.0
        if self._live:
            self._live.update(self._picture())
        else:
            self.say(f"trial {trial}: {settings_of(params)}")

    def epoch(self, trial: int, event: dict[str, Any]) -> None:
        """An epoch of the running trial."""
        self._event = event
        if event.get("seconds"):
            self._forecast.seconds.append(event["seconds"])
            self._epoch_seconds += event["seconds"]
        if self._live:
            self._live.update(self._picture())
            return
        of = f"/{event['epochs']}" if "epochs" in event else ""
        dice = f", foreground Dice {number(event.get('foreground_dice'))}"
        self.say(
            f"trial {trial} epoch {event['epoch']}{of}: loss {number(event.get('loss'))}, "
            f"{_on(event)}accuracy {number(event.get('accuracy'))}{dice}{self._end()}"
        )

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial was told."""
        self._records.append(record)
        if record.value is not None:
            self._forecast.epochs_of_ended.append(record.epochs)
        self._forecast.overheads.append(max(0.0, record.seconds - self._epoch_seconds))
        self._running = None
        if self._live:
            self._live.update(self._picture())
            return
        cause = f" ({record.cause})" if record.cause else ""
        classes = f", Dice of {classes_of(record)}" if classes_of(record) else ""
        self.say(
            f"trial {record.trial} {record.state}{cause}: {self._metric} {number(record.value)} "
            f"at epoch {record.epoch_max_acc}{classes}, {duration(record.seconds)}"
        )

    def _end(self) -> str:
        counted = [r for r in self._records if not r.cause.startswith("interrupted")]
        left = self._forecast.remaining_seconds(len(counted), int(self._event.get("epoch", 0)))
        if left is None or self._running is None:
            return ""
        at = datetime.now() + timedelta(seconds=left)
        day = "" if at.date() == datetime.now().date() else at.strftime("%a %d %b ")
        return f"; study ends about {day}{at:%H:%M} (in {duration(left)})"

    def _picture(self) -> Group:
        table = Table(title=None, expand=False)
        for name in ("trial", "state", "optimizer", "loss", "rate", self._metric, "Dice", "epoch"):
            table.add_column(
                name, justify="left" if name in ("state", "optimizer", "loss") else "right"
            )
        table.add_column("time", justify="right")
        table.add_column("remarks", overflow="fold")
        done = [r for r in self._records if r.state == "COMPLETE" and r.value is not None]
        best = max(done, key=lambda r: (r.value or 0.0, -r.trial), default=None)
        shown = self._records[-SHOWN_TRIALS:]
        if best and best not in shown:
            shown = [best, *shown[1:]]
        for r in shown:
            rate, style = f"{r.lr:.2e}", "bold green" if r is best else ""
            cells = [str(r.trial), r.state, r.optimizer, r.loss, rate, number(r.value)]
            cells += [number(r.foreground_dice), f"{r.epoch_max_acc}/{r.epochs}"]
            remarks = "; ".join(text for text in (r.cause, classes_of(r)) if text)
            table.add_row(*map(Text, [*cells, duration(r.seconds), remarks]), style=style)
        lines: list[Any] = [table]
        if self._running:
            trial, params = self._running
            e = self._event
            epoch = f"epoch {e['epoch']}/{e.get('epochs', '?')}" if e else "starting"
            numbers = (
                f", loss {number(e.get('loss'))}, {_on(e)}accuracy {number(e.get('accuracy'))}, "
                f"foreground Dice {number(e.get('foreground_dice'))}"
                if e
                else ""
            )
            lines.append(Text(f"trial {trial}: {settings_of(params)}; {epoch}{numbers}"))
        told = (
            f"best: trial {best.trial}, {self._metric} {number(best.value)}"
            if best
            else "no best yet"
        )
        passed = duration(time.monotonic() - self._began)
        total = self._forecast.num_trials
        lines.append(
            Text(f"{len(self._records)} of {total} trials; {told}; {passed} passed{self._end()}")
        )
        return Group(*lines)
