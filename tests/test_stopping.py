"""Why a run ends early: a signal, a heartbeat that stands still, a parent that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer import stopping
from trainer.errors import Stopped
from trainer.stopping import StopRequest

Started = Callable[..., "subprocess.Popen[str]"]


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> float:
    """How long it took until the condition was true; fails after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "waited too long"
        time.sleep(0.02)
    return time.monotonic() - began


def test_the_first_reason_stays() -> None:
    stop = StopRequest()
    stop.check()
    assert not stop.asked()
    stop.ask("first")
    stop.ask("second")
    assert stop.asked()
    with pytest.raises(Stopped, match=r"^first$"):
        stop.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_ask(number: signal.Signals, own_state: None) -> None:
    stop = StopRequest()
    stop.on_signals()
    os.kill(os.getpid(), number)
    wait_for(stop.asked)
    assert stop.reason == f"{number.name} received"


def test_a_second_interrupt_ends_at_once(started: Started) -> None:
    process = started(
        "-c",
        "import time; from trainer.stopping import StopRequest; s = StopRequest(); "
        "s.on_signals(); print('ready', flush=True)\nwhile True: time.sleep(0.01)",
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 3


def test_a_heartbeat_that_beats_keeps_a_run_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 1e6)
    heartbeat, stop = tmp_path / "heartbeat", StopRequest()
    heartbeat.touch()
    stop.on_still_heartbeat(heartbeat, still_seconds=0.6)
    for beat in range(12):
        time.sleep(0.1)
        os.utime(heartbeat, (beat, beat))
        assert not stop.asked()
    assert wait_for(stop.asked, 3) > 0.3
    assert stop.reason == "the driver is gone: its heartbeat stands still"


def test_a_heartbeat_that_vanishes_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 1e6)
    heartbeat, stop = tmp_path / "heartbeat", StopRequest()
    heartbeat.touch()
    stop.on_still_heartbeat(heartbeat, still_seconds=0.4)
    heartbeat.unlink()
    wait_for(stop.asked, 3)


def test_without_a_heartbeat_nobody_watches(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.on_still_heartbeat(tmp_path / "heartbeat", still_seconds=0.0)
    time.sleep(0.1)
    assert not stop.asked()


def test_a_batch_that_never_ends_does_not_outlive_its_driver(
    tmp_path: Path, started: Started
) -> None:
    (tmp_path / "heartbeat").touch()
    process = started(
        "-c",
        "import time; from pathlib import Path; from trainer import stopping; "
        "stopping.GRACE_SECONDS = 0.2; stop = stopping.StopRequest(); "
        f"stop.on_still_heartbeat(Path({str(tmp_path / 'heartbeat')!r}), 0.2); time.sleep(60)",
    )
    assert process.wait(10) == 3


def test_a_parent_that_is_gone_already(own_state: None) -> None:
    stop = StopRequest()
    stop.on_parent_death(os.getppid())
    assert not stop.asked()
    stop.on_parent_death(1_000_000)
    assert stop.reason == "the driver is gone"


def test_a_parent_that_dies(tmp_path: Path, started: Started) -> None:
    child = (
        "import sys, time; from pathlib import Path; from trainer.stopping import StopRequest; "
        "s = StopRequest(); s.on_signals(); s.on_parent_death(int(sys.argv[1])); "
        "Path('ready').touch()\n"
        "while not s.asked(): time.sleep(0.02)\n"
        "Path('reason.new').write_text(s.reason); Path('reason.new').rename('reason')"
    )
    parent = started(
        "-c",
        "import os, subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())]).wait()",
        cwd=tmp_path,
    )
    wait_for((tmp_path / "ready").exists)
    parent.kill()
    wait_for((tmp_path / "reason").exists)
    assert (tmp_path / "reason").read_text() == "SIGTERM received"
