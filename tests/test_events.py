"""The event log that a trial writes and its driver reads, and the errors that both name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer import errors
from trainer.errors import CAUSES, InputError, RmlError, nearest
from trainer.events import UNREADABLE, EventLog, EventReader, plain, read_event


def test_events_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader, log = EventReader(path), EventLog(path)
    assert reader.new() == []
    log.write("start", device="CPU")
    log.write("epoch", epoch=1, loss=0.25)
    assert reader.new() == [
        {"event": "start", "device": "CPU"},
        {"event": "epoch", "epoch": 1, "loss": 0.25},
    ]
    assert reader.new() == []
    log.write("end", reason="dänn\nzwei")
    assert reader.new() == [{"event": "end", "reason": "dänn\nzwei"}]
    log.close()


def test_an_event_is_on_the_disk_at_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "m")
    log.write("start")
    assert (tmp_path / "m").read_text() == '{"event": "start"}\n'
    log.close()


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "m"
    reader = EventReader(path)
    path.write_bytes(b'{"event": "start"}\n{"event": "ep')
    assert reader.new() == [{"event": "start"}]
    assert reader.new() == []
    with path.open("ab") as file:
        file.write(b'och", "epoch": 1}\n')
    assert reader.new() == [{"event": "epoch", "epoch": 1}]


def test_events_are_added_to_a_file_that_is_there(tmp_path: Path) -> None:
    for name in ("start", "end"):
        log = EventLog(tmp_path / "m")
        log.write(name)
        log.close()
    assert [event["event"] for event in EventReader(tmp_path / "m").new()] == ["start", "end"]


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = EventLog(None)
    log.write("start")
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_what_json_cannot_hold_becomes_null(tmp_path: Path) -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1.5, (float("-inf"), "x")], "c": True}
    assert plain(value) == {"a": None, "b": [None, 1.5, [None, "x"]], "c": True}
    log = EventLog(tmp_path / "m")
    log.write("epoch", loss=float("nan"))
    log.close()
    assert json.loads((tmp_path / "m").read_text())["loss"] is None


def test_exit_codes_are_distinct_and_have_a_cause() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, RmlError)]
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert codes == {
        "RmlError": 1,
        "InputError": 2,
        "Stopped": 3,
        "NotANumber": 4,
        "OutOfMemory": 5,
        "NoSpace": 6,
    }
    assert CAUSES.keys() == {0, *codes.values()}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("a.json", "is bad"), "a.json: is bad"),
        (InputError("", "is bad", "good"), "is bad; accepted: good"),
        (InputError("a", "b", "c", "d"), "a: b; accepted: c; to do: d"),
        (InputError("a", "b" * 100, "c" * 30), f"a: {'b' * 100}\n  accepted: {'c' * 30}"),
    ],
)
def test_an_input_error_says_where_what_and_what_to_do(error: InputError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ADMA", "; did you mean 'Adam'?"), ("adam", "; did you mean 'Adam'?"), ("zzz", "")],
)
def test_the_nearest_name(name: str, expected: str) -> None:
    assert nearest(name, ["SGD", "Adam"]) == expected


def test_a_line_that_was_cut_off_is_removed_before_more_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "start"}\n{"event": "epo')
    reader = EventReader(path)
    assert [event["event"] for event in reader.new()] == ["start"]
    log = EventLog(path)
    log.write("start")
    log.close()
    assert [event["event"] for event in reader.new()] == ["start"]
    assert len(EventReader(path).new()) == 2


@pytest.mark.parametrize("told", [["a", "b"], {"a": "b"}, 3])
def test_dice_of_classes_that_is_none_is_unreadable(told: Any) -> None:
    line = json.dumps({"event": "epoch", "epoch": 1, "accuracy": 0.5, "class_dice": told})
    assert read_event(line)["event"] == UNREADABLE
    good = json.dumps({"event": "epoch", "epoch": 1, "class_dice": {"a": 0.5, "b": None}})
    assert read_event(good)["class_dice"] == {"a": 0.5, "b": None}
