"""Which weights the networks of a study start from: never silent, and a copy in its folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.settings import Settings
from trainer.networks.description import read_network
from trainer.networks.weights import find_weights, stored_path


@dataclass(frozen=True)
class StartWeights:
    """`label` in words; `layers` the network file of each trial; `load` what checkpoints.load says.

    `copies` are (from, to): the files that trials read, put into the study's folder.
    """

    label: str
    layers: dict[str, Any]
    load: str | None = None
    copies: list[tuple[Path, Path]] = field(default_factory=list)
    fingerprint: str = ""

    @property
    def files(self) -> list[Path]:
        """What trials read, where they read it."""
        return [target for _, target in self.copies]

    def put_in_place(self) -> None:
        """Copies the files that are not there yet."""
        for source, target in self.copies:
            if not target.exists():
                shutil.copyfile(source, target)


def find_start_weights(settings: Settings, study_folder: Path) -> StartWeights:
    """The weights that `--weights` and `--transfer-learning` ask for; raises InputError.

    `auto`: an encoder's ImageNet weights where they were fetched before, else random ones.
    """
    network = read_network(settings.layers)
    layers = json.loads(settings.layers.read_text(encoding="utf-8"))
    digest = hashlib.sha256(json.dumps(layers, sort_keys=True).encode()).hexdigest()[:16]
    shown = str(settings.layers)
    if settings.weights not in ("auto", "imagenet", "none"):
        source = Path(settings.weights)
        target = study_folder / f"start{source.suffix}"
        return StartWeights(
            f"from {source}", {**layers, "weights": None}, str(target), [(source, target)], digest
        )
    wanted = network.weights
    if settings.weights == "imagenet":
        wanted = "imagenet"
    elif settings.weights == "none":
        wanted = None
    elif wanted is None and network.encoder and stored_path(network).exists():
        wanted = "imagenet"
    if wanted is None:
        why = ""
        if settings.weights == "auto" and network.encoder:
            why = f" (ImageNet weights were not fetched: python -m trainer.prepare weights {shown})"
        return StartWeights(f"random{why}", {**layers, "weights": None}, fingerprint=digest)
    file = find_weights(network.model_copy(update={"weights": wanted}), shown)
    assert file
    target = study_folder / "weights.safetensors"
    label = f"{wanted} weights of {network.encoder}" if wanted == "imagenet" else f"encoder: {file}"
    return StartWeights(label, {**layers, "weights": str(target)}, None, [(file, target)], digest)
