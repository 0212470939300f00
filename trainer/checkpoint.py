"""Checkpoints: a network's weights with all that is needed to use it.

    {"format": 1,
     "network": the network file's content,
     "code_sha256": of the Python file of a network of somebody's own, else null,
     "state": parameters and running statistics by the names of the network's own library,
     "use": image_size [width, height], transforms, channels, classes, scaling, threshold,
            masks, images (what those of the training look like)
     "origin": epoch, scores, evaluated_on, weights, versions,
     "training": what a resume needs beside these (last.pt only): epoch, batches, optimizer,
                 progress}

They hold tensors and plain values, and load with `weights_only=True`.
"""

from __future__ import annotations

import io
import math
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.config import Config
from trainer.console import Console
from trainer.errors import InputError
from trainer.events import EventLog
from trainer.files import write_atomically
from trainer.networks.description import parse_network
from trainer.networks.keras.graph import escaped
from trainer.networks.keras.weights_h5 import SUFFIXES, read_h5, state_of
from trainer.networks.weights import sha256

if TYPE_CHECKING:
    from trainer.networks.build import SegmentationNetwork
    from trainer.networks.description import Network
    from trainer.optimizers import Stepping
    from trainer.usage import Usage

FORMAT = 1
LITTLE_FILLED = 0.1
"""A file that fills a smaller share of a network may be another one's, which is told."""

LAST = "last.pt"
LAST_CHECKPOINT_SECONDS = 60.0


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint; raises OSError where the disk is full."""
    buffer = io.BytesIO()  # torch.save to a file hides the reason of a failed write
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(path, buffer.getbuffer())


def put_beside(folder: Path, code: Path) -> None:
    """A copy of a network's Python file beside its checkpoints, which need it."""
    if code.absolute() != (folder / code.name).absolute():
        write_atomically(folder / code.name, code.read_bytes())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this program (.pt), or bare weights: of a .safetensors file under "state", of
    an HDF5 file of Keras (.h5) under "keras", as it lays them out.

    Raises InputError for anything else, and never runs code from the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            str(path), "there is no such checkpoint", "a .pt, .safetensors or .h5 file"
        )
    if path.suffix.lower() in SUFFIXES:
        return read_h5(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return {"state": load_file(path)}
        with zipfile.ZipFile(path) as archive:  # torch reads it without looking at checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum is wrong")
            _refuse_libtorch(archive.namelist(), path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # pickle, zip and torch each raise their own kinds
        found = f"cannot be read as a checkpoint ({type(error).__name__})"
        raise InputError(str(path), found, "a .pt of this program, or .safetensors") from None
    whole = isinstance(content, dict) and isinstance(content.get("state"), dict)
    if not whole or content.get("format") != FORMAT:
        raise InputError(str(path), "is not a checkpoint of this program", "a .pt that it wrote")
    return content


def _refuse_libtorch(names: list[str], path: Path) -> None:
    """What torch::save of C++ writes (rmldnn's .pt) is a program of TorchScript."""
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise InputError(
            str(path),
            "is an archive of libtorch (C++), which this program does not run",
            "a .pt of this program, .safetensors, or .h5 of Keras",
            "train again here, or give the .h5 file that the training there started from",
        )


def load_weights(
    network: SegmentationNetwork, checkpoint: dict[str, Any], config: Config, console: Console
) -> float:
    """Copies the parameters of `checkpoints.load` by name into the network; the share filled.

    One that the file lacks, or that has another shape, keeps its value and is named by a line of
    the log; in a run without training it is an InputError. What the file has beyond is ignored.
    """
    source, strict = str(config.checkpoints.load), not config.trains
    module, description = network.body, network.description
    keras_names: dict[str, str] = {}
    layer_of: dict[str, str] = {}
    optional: set[str] = set()
    for node, name, parameter in description.graph.named_parameters() if description.keras else []:
        layer_of[name] = escaped(node.name)
        keras_names[name] = f" ({node.name}/{parameter.keras}:0)"
        if not parameter.in_file:
            optional.add(name)
    if "keras" not in checkpoint:
        state, keras_names, optional = checkpoint["state"], {}, set()
        layers = {layer_of.get(key, key.rpartition(".")[0]) for key in state}
    elif description.keras is None:
        found = f"has weights of a Keras network, and `layers` is {description.label}"
        raise InputError(source, found, "a .pt or .safetensors file, or a Keras network file")
    else:
        state = state_of(description.graph, checkpoint["keras"])
        layers = {escaped(name) for name in checkpoint["keras"]}
    own = module.state_dict()
    if "keras" in checkpoint:  # which counts no batches
        own = {k: value for k, value in own.items() if not k.endswith(".num_batches_tracked")}
    skipped: list[tuple[str, str]] = []

    def fits(name: str) -> bool:
        return name in state and state[name].shape == own[name].shape

    for name, value in own.items():
        told = f"Skipping parameter {name}{keras_names.get(name, '')}"
        if name not in state:
            skipped.append((name, f"{told}: not found in model"))
        elif state[name].shape != value.shape:
            shapes = f"{list(state[name].shape)} in the file, {list(value.shape)} in the network"
            skipped.append((name, f"{told}: {shapes}"))
        else:
            value.copy_(state[name])
    faults = [line for name, line in skipped if name not in optional or name in state]
    if strict and faults:
        first = faults[0].removeprefix("Skipping parameter ")
        raise InputError(
            source,
            f"does not fill {len(faults)} of the network's {len(own)} parameters; first: {first}",
            "the network that the checkpoint was made with",
            "leave `layers` out of the configuration, then the checkpoint's own network is used",
        )
    told_layers: set[str] = set()
    for name, line in skipped:
        layer = layer_of.get(name, name.rpartition(".")[0])
        if layer not in layers and layer not in told_layers:
            told_layers.add(layer)
            console.line(f"   Skipping layer {layer}: not found in model")
        console.line(f"   {line}")
    filled = sum(p.numel() for n, p in module.named_parameters() if fits(n))
    share = filled / max(1, sum(p.numel() for p in module.parameters()))
    if filled == 0:
        raise InputError(
            source,
            "fills none of the network's parameters",
            "weights of a network that has layers of the same names",
            "give a file that was made with this network, or leave it out",
        )
    if share < LITTLE_FILLED:
        console.line(f"WARNING: {source} fills {share:.1%} of the network's parameters")
    return share


@dataclass
class Progress:
    """How far a training is.

    `event` tells of the last whole epoch (its `epoch` is 0 before the first), `losses` has a pair
    (images, loss) for each batch of the running one; `best` and `best_scores` are the event and
    the scores of the best epoch so far.
    """

    event: dict[str, Any] = field(default_factory=lambda: {"epoch": 0})
    losses: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    best_scores: dict[str, Any] | None = None


def read_last(
    folder: Path | None, network: Network, code: Path | None = None
) -> dict[str, Any] | None:
    """last.pt of a run that stopped; None where there is none. `code` is a network's Python file.

    Raises InputError where it is of another network, or has nothing to go on from.
    """
    if folder is None or not (folder / LAST).exists():
        return None
    where, content = str(folder / LAST), load_checkpoint(folder / LAST)
    if "training" not in content:
        raise InputError(where, "has no state of a training", "a last.pt of this program")
    of_last = parse_network(content["network"], where)
    if of_last != network.for_checkpoint():
        found = "is of another network than `layers`"
        raise InputError(where, found, "the configuration of the run that stopped")
    check_code(content, code, where)
    return content


def code_of(network: Network, beside: Path) -> Path | None:
    """The Python file of a network whose file or checkpoint is `beside`; None without one."""
    return beside.parent / network.module.rpartition(":")[0] if network.module else None


def check_code(checkpoint: dict[str, Any], code: Path | None, where: str) -> None:
    """Raises InputError where the Python file of a network is not the one it was trained with."""
    trained_with = checkpoint.get("code_sha256")
    if trained_with and code and code.is_file() and sha256(code) != trained_with:
        found = f"was trained with another {code.name} than the one in {code.parent}"
        raise InputError(where, found, f"the file with sha256 {trained_with}")


class Saver:
    """Writes best.pt, last.pt and model_checkpoint_N.pt while a run trains."""

    def __init__(
        self,
        folder: Path | None,
        config: Config,
        usage: Usage,
        network: SegmentationNetwork,
        stepping: Stepping,
        progress: Progress,
        events: EventLog,
        started_from: str,
        seen: dict[str, Any] | None,
        seed: int,
    ) -> None:
        self._seed = seed
        self._seen = seen
        code = code_of(usage.network, Path(usage.source))
        self._code_sha256 = sha256(code) if code and code.is_file() else None
        self._folder, self._config, self._usage = folder, config, usage
        self._network, self._stepping = network, stepping
        self._progress, self._events, self._started_from = progress, events, started_from
        self._saved = time.monotonic()

    def _content(self) -> dict[str, Any]:
        network = self._usage.network.for_checkpoint()
        return {
            "network": network.model_dump(),
            "state": {key: value.cpu() for key, value in self._network.body.state_dict().items()},
            "code_sha256": self._code_sha256,
            "use": {**self._usage.for_checkpoint(), "images": self._seen},
            "origin": {
                **self._progress.event,
                "weights": self._started_from,
                "seed": self._seed,
                "torch": str(torch.__version__),
            },
        }

    def _write(self, folder: str | Path | None, name: str, content: dict[str, Any]) -> None:
        if folder is not None:
            path = Path(folder) / name
            save_checkpoint(path, content)
            self._events.write("checkpoint", file=str(path), epoch=self._progress.event["epoch"])

    def epoch_done(self, event: dict[str, Any]) -> None:
        """An epoch ended, with its evaluation: model_checkpoint_N.pt where asked."""
        self._progress.event = {key: value for key, value in event.items() if key != "seconds"}
        self._progress.losses.clear()
        asked = self._config.checkpoints
        if asked.save and event["epoch"] % asked.interval == 0:
            self._write(asked.save, f"model_checkpoint_{event['epoch']}.pt", self._content())
            self._saved = -math.inf  # a resume shall not go further back than this

    def best(self) -> None:
        """The epoch that ended is the best so far."""
        if self._folder is not None:
            self._write(self._folder, "best.pt", self._content())

    def now_and_then(self) -> None:
        """last.pt, at most once a minute."""
        if time.monotonic() - self._saved > LAST_CHECKPOINT_SECONDS:
            self.last()

    def last(self) -> None:
        """last.pt: `epoch` whole epochs and `batches` of the next are behind it."""
        if self._folder is None:
            return
        progress = self._progress
        training = {
            "epoch": progress.event["epoch"],
            "batches": len(progress.losses),
            **self._stepping.state(),
            "progress": vars(progress),
        }
        self._write(self._folder, LAST, {**self._content(), "training": training})
        self._saved = time.monotonic()
