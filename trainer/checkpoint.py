"""Checkpoints: a network's weights with all that is needed to use it.

    {"format": 1,
     "network": the network file's content,
     "state": parameters and running statistics by name,
     "use": image_size [width, height], transforms, channels, classes, scaling, threshold,
            mask_threshold,
     "origin": epoch, scores, evaluated_on, weights, versions,
     "training": optimizer, schedule, epoch, … (last.pt only)}

They hold tensors and plain values, and load with `weights_only=True`.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.config import Config
from trainer.console import Console
from trainer.errors import InputError
from trainer.events import EventLog

if TYPE_CHECKING:
    from trainer.parts import Usage

FORMAT = 1
LAST_CHECKPOINT_SECONDS = 60.0


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file beside and renames it, so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint; raises OSError where the disk is full."""
    buffer = io.BytesIO()  # torch.save to a file hides the reason of a failed write
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this program (.pt), or bare weights (.safetensors) under "state".

    Raises InputError for anything else, and never runs code from the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(str(path), "there is no such checkpoint", "a .pt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return {"state": load_file(path)}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # pickle, zip and torch each raise their own kinds
        found = f"cannot be read as a checkpoint ({type(error).__name__})"
        raise InputError(str(path), found, "a .pt of this program, or .safetensors") from None
    whole = isinstance(content, dict) and isinstance(content.get("state"), dict)
    if not whole or content.get("format") != FORMAT:
        raise InputError(str(path), "is not a checkpoint of this program", "a .pt that it wrote")
    return content


def load_weights(
    module: nn.Module, state: dict[str, Tensor], config: Config, console: Console
) -> None:
    """Copies the parameters of `checkpoints.load` by name into `module`.

    One that the file lacks, or that has another shape, keeps its value and is named by a line of
    the log; in a run without training it is an InputError. What the file has beyond is ignored.
    """
    source, strict = str(config.checkpoints.load), not config.trains
    own = module.state_dict()
    skipped = []
    layers_in_file = {key.rpartition(".")[0] for key in state}
    for name, value in own.items():
        if name not in state:
            skipped.append(f"Skipping parameter {name}: not found in model")
        elif state[name].shape != value.shape:
            shapes = f"{list(state[name].shape)} in the file, {list(value.shape)} in the network"
            skipped.append(f"Skipping parameter {name}: {shapes}")
        else:
            value.copy_(state[name])
    if strict and skipped:
        first = skipped[0].removeprefix("Skipping parameter ")
        raise InputError(
            source,
            f"does not fill {len(skipped)} of the network's {len(own)} parameters; first: {first}",
            "the network that the checkpoint was made with",
            "leave `layers` out of the configuration, then the checkpoint's own network is used",
        )
    told: set[str] = set()
    for line in skipped:
        layer = line.removeprefix("Skipping parameter ").split(":")[0].rpartition(".")[0]
        if layer not in layers_in_file and layer not in told:
            told.add(layer)
            console.line(f"   Skipping layer {layer}: not found in model")
        console.line(f"   {line}")
    if len(skipped) == len(own):
        fix = "give a file that was made with this network"
        raise InputError(source, "none of its parameters fits the network", "", fix)


class Saver:
    """Writes best.pt, last.pt and model_checkpoint_N.pt while a run trains."""

    def __init__(
        self,
        folder: Path | None,
        config: Config,
        usage: Usage,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        events: EventLog,
        started_from: str,
    ) -> None:
        self._folder, self._config, self._usage = folder, config, usage
        self._network, self._optimizer = network, optimizer
        self._events, self._started_from = events, started_from
        self._epoch: dict[str, Any] = {"epoch": 0}
        self._saved = time.monotonic()
        self.batches = 0
        """Batches of the running epoch that the network has seen."""

    def _content(self) -> dict[str, Any]:
        network = self._usage.network.model_copy(update={"weights": None})
        return {
            "network": network.model_dump(),
            "state": {key: value.cpu() for key, value in self._network.state_dict().items()},
            "use": self._usage.for_checkpoint(),
            "origin": {
                **self._epoch,
                "weights": self._started_from,
                "torch": str(torch.__version__),
            },
        }

    def _write(self, folder: str | Path | None, name: str, content: dict[str, Any]) -> None:
        if folder is not None:
            path = Path(folder) / name
            save_checkpoint(path, content)
            self._events.write("checkpoint", file=str(path), epoch=self._epoch["epoch"])

    def epoch_done(self, event: dict[str, Any]) -> None:
        """An epoch ended: model_checkpoint_N.pt where asked, last.pt now and then."""
        self._epoch = {key: value for key, value in event.items() if key != "seconds"}
        self.batches = 0
        asked = self._config.checkpoints
        if asked.save and event["epoch"] % asked.interval == 0:
            self._write(asked.save, f"model_checkpoint_{event['epoch']}.pt", self._content())
        self.now_and_then()

    def best(self) -> None:
        """The epoch that ended is the best so far."""
        self._write(self._folder, "best.pt", self._content())

    def now_and_then(self) -> None:
        """last.pt, at most once a minute."""
        if time.monotonic() - self._saved > LAST_CHECKPOINT_SECONDS:
            self.last()

    def last(self) -> None:
        """last.pt: `epoch` whole epochs and `batches` of the next are behind it.

        With the optimizer's state (which has the learning rate) that is all that a resume needs.
        """
        training = {
            "epoch": self._epoch["epoch"],
            "batches": self.batches,
            "optimizer": self._optimizer.state_dict(),
        }
        self._write(self._folder, "last.pt", {**self._content(), "training": training})
        self._saved = time.monotonic()
