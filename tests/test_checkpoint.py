"""Checkpoints: what they hold, that they never run code, and what happens where they do not fit."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import files
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.errors import InputError

Build = Callable[..., dict[str, Any]]
Train = Callable[..., Any]


def evaluation(configuration: Build, load: Path, **data: Any) -> dict[str, Any]:
    """A configuration without training, layers and transforms."""
    sections = {"input_path": None, "target_path": None, "transforms": None, **data}
    return configuration(
        layers=None, optimizer=None, checkpoints={"load": str(load)}, data=sections
    )


def test_a_run_leaves_its_checkpoints(trained: Any) -> None:
    names = sorted(path.name for path in (trained.folder / "model").iterdir())
    assert names == ["best.pt", "last.pt", "model_checkpoint_2.pt", "model_checkpoint_4.pt"]
    events = [event for event in trained.events if event["event"] == "checkpoint"]
    kept = {(Path(event["file"]).name, event["epoch"]) for event in events}
    assert {("model_checkpoint_2.pt", 2), ("model_checkpoint_4.pt", 4), ("last.pt", 5)} <= kept


def test_without_a_folder_named_they_lie_in_the_run_folder(
    train: Train, configuration: Build
) -> None:
    ended = train(configuration(num_epochs=2))
    names = sorted(path.name for path in (ended.folder / "checkpoints").iterdir())
    assert names == ["best.pt", "last.pt"]


def test_a_checkpoint_holds_all_that_is_needed(trained: Any) -> None:
    best = torch.load(trained.folder / "model/best.pt", weights_only=True)
    assert best.keys() == {"format", "network", "code_sha256", "state", "use", "origin"}
    assert best["network"]["network"] == "unet" and best["network"]["weights"] is None
    use = best["use"]
    assert use["image_size"] == [16, 16]
    assert use["transforms"] == [{"resize": [16, 16]}]
    assert use["input_transforms"] == [{"normalize": {"mean": 0.25, "std": 0.5}}]
    assert (use["channels"], use["classes"], use["threshold"]) == (3, 1, 0.5)
    top = max(trained.epochs, key=lambda event: event["accuracy"])
    assert best["origin"]["epoch"] == top["epoch"]
    assert best["origin"]["accuracy"] == top["accuracy"]
    assert best["origin"]["evaluated_on"] == "test"
    last = torch.load(trained.folder / "model/last.pt", weights_only=True)
    assert last["training"]["epoch"] == 5
    assert len(last["training"]["optimizer"]["state"]) == len(
        [key for key in last["state"] if key.endswith(("weight", "bias"))]
    )


def test_evaluation_takes_network_and_transforms_from_the_checkpoint(
    trained: Any, train: Train, configuration: Build
) -> None:
    load = trained.folder / "model/best.pt"
    ended = train(evaluation(configuration, load))
    assert ended.code == 0, ended.err
    best = max(trained.epochs, key=lambda event: event["accuracy"])
    again = ended.result["evaluation"]
    for key in ("accuracy", "foreground_dice", "iou"):
        assert again[key] == best[key]
    assert again["loss"] == pytest.approx(best["evaluation_loss"], rel=1e-6)
    assert not (ended.folder / "checkpoints").exists()
    assert ended.result["weights"] == f"checkpoint {load}"


@pytest.mark.parametrize(
    ("transforms", "found"),
    [
        ([{"resize": [32, 32]}], "32x32, but"),
        ([{"normalize": {"mean": 0.5}}], "no resize, but"),
    ],
)
def test_another_size_than_the_trained_one_is_refused(
    trained: Any, train: Train, configuration: Build, transforms: Any, found: str
) -> None:
    load = trained.folder / "model/best.pt"
    ended = train(evaluation(configuration, load, transforms=transforms))
    assert ended.code == 2
    assert found in ended.err and "was trained at 16x16" in ended.err


def cut(source: Path, target: Path, *keys: str) -> Path:
    """A copy of a checkpoint without these parameters."""
    content = torch.load(source, weights_only=True)
    for key in keys:
        del content["state"][key]
    save_checkpoint(target, content)
    return target


def test_evaluation_needs_every_parameter(
    trained: Any, train: Train, configuration: Build, tmp_path: Path
) -> None:
    part = cut(trained.folder / "model/best.pt", tmp_path / "part.pt", "head.bias")
    ended = train(evaluation(configuration, part))
    assert ended.code == 2
    assert "does not fill 1 of the network's" in ended.err and "head.bias" in ended.err


def test_training_starts_from_what_fits_and_names_the_rest(
    trained: Any, train: Train, configuration: Build, tmp_path: Path
) -> None:
    source = trained.folder / "model/best.pt"
    part = cut(source, tmp_path / "part.pt", "head.weight", "head.bias")
    ended = train(configuration(checkpoints={"load": str(part)}))
    assert ended.code == 0, ended.err
    lines = [line.partition("] ")[2] for line in ended.out.splitlines() if "Skipping" in line]
    assert lines == [
        "   Skipping layer head: not found in model",
        "   Skipping parameter head.weight: not found in model",
        "   Skipping parameter head.bias: not found in model",
    ]
    assert f"Loading model checkpoint from file: {part}" in ended.out
    told = ended.result["weights"]
    assert told.startswith(f"checkpoint {part} (fills 9") and "the rest random" in told


def test_training_goes_on_from_the_loaded_parameters(
    trained: Any, train: Train, configuration: Build
) -> None:
    source = trained.folder / "model/best.pt"
    content = configuration(
        checkpoints={"load": str(source)},
        optimizer={"type": "sgd", "learning_rate": 1e-12},
    )
    ended = train(content)
    loaded, kept = (
        load_checkpoint(p)["state"] for p in (source, ended.folder / "checkpoints/last.pt")
    )
    weights = [key for key in kept if "running" not in key and "tracked" not in key]
    assert all(torch.allclose(loaded[key], kept[key]) for key in weights)


def test_another_shape_is_skipped_and_nothing_at_all_is_refused(
    trained: Any, train: Train, configuration: Build, tmp_path: Path
) -> None:
    grey = tmp_path / "grey.json"
    grey.write_text(
        '{"network": "unet", "width": 4, "depth": 2, "in_channels": 1, "activation": "sigmoid"}'
    )
    load = {"load": str(trained.folder / "model/best.pt")}
    ended = train(configuration(layers=str(grey), checkpoints=load))
    assert ended.code == 0, ended.err
    assert "down.0.0.weight: [4, 3, 3, 3] in the file, [4, 1, 3, 3] in the network" in ended.out
    other = tmp_path / "other.pt"
    save_checkpoint(other, {"state": {"x": torch.ones(1)}})
    ended = train(configuration(checkpoints={"load": str(other)}), "other")
    assert ended.code == 2 and "fills none of the network's parameters" in ended.err


def test_bare_safetensors_load_with_a_network_file(
    trained: Any, train: Train, configuration: Build, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    state = load_checkpoint(trained.folder / "model/best.pt")["state"]
    bare = tmp_path / "bare.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, bare)
    ended = train(evaluation(configuration, bare))
    assert ended.code == 2 and "does not describe its network" in ended.err
    sections = evaluation(configuration, bare)["neural_network"]
    sections["layers"] = configuration()["neural_network"]["layers"]
    sections["data"]["transforms"] = [{"resize": [16, 16]}]
    sections["data"]["input_transforms"] = [{"normalize": {"mean": 0.25, "std": 0.5}}]
    ended = train({"neural_network": sections}, "bare")
    assert ended.code == 0, ended.err
    best = max(event["accuracy"] for event in trained.epochs)
    assert ended.result["evaluation"]["accuracy"] == best


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.target}'",)


def bomb_by_torch(path: Path, target: Path) -> None:
    torch.save({"format": 1, "state": {"x": Bomb(target)}}, path)


def bomb_of_old(path: Path, target: Path) -> None:
    torch.save({"format": 1, "state": Bomb(target)}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, target: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(target), protocol=2))


@pytest.mark.parametrize("make", [bomb_by_torch, bomb_of_old, bare_pickle])
def test_a_malicious_checkpoint_does_not_run(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    path, target = tmp_path / "bomb.pt", tmp_path / "boom"
    make(path, target)
    with pytest.raises(InputError, match=r"bomb\.pt"):
        load_checkpoint(path)
    assert not target.exists()


def test_the_bomb_would_have_gone_off(tmp_path: Path) -> None:
    bare_pickle(tmp_path / "bomb.pt", tmp_path / "boom")
    pickle.loads((tmp_path / "bomb.pt").read_bytes())
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04garbage", bytes(100)])
@pytest.mark.parametrize("suffix", ["pt", "safetensors", "h5"])
def test_garbage_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"format": 2, "state": {}}, {"format": 1}, [1], 5])
def test_foreign_content_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(InputError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_cut_file_and_a_missing_one(trained: Any, tmp_path: Path) -> None:
    data = (trained.folder / "model/best.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    for name, found in (("cut.pt", "cannot be read"), ("none.pt", "there is no such checkpoint")):
        with pytest.raises(InputError, match=found):
            load_checkpoint(tmp_path / name)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"state": {"x": torch.ones(3)}})

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"state": {}})
    assert torch.equal(load_checkpoint(path)["state"]["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
