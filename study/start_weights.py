"""Which weights the networks of a study start from: never silent, and a copy in its folder."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from study import paste
from study.data_kinds import AnyDataset
from study.settings import Settings
from trainer.config import read_json
from trainer.errors import InputError
from trainer.files import write_json
from trainer.networks.description import module_file, parse_network, read_network
from trainer.networks.keras.graph import is_keras
from trainer.networks.weights import find_weights, sha256, stored_path


@dataclass(frozen=True)
class StartWeights:
    """`decided` is what --weights comes to (none, imagenet, a file), `label` the same in words.

    `layers` is the network file of each trial (a Keras file as it stands), `load` what
    checkpoints.load says. `copy` is (from, to): the file that trials read, put into the study's
    folder. `module_source` is the Python file that the network file names.
    """

    decided: str
    label: str
    layers: Any
    load: str | None = None
    copy: tuple[Path, Path] | None = None
    module_source: Path | None = None
    study_folder: Path = Path()

    @property
    def module(self) -> Path | None:
        """The study's own copy of the Python file, which each trial gets a copy of."""
        return self.study_folder / self.module_source.name if self.module_source else None

    @property
    def files(self) -> list[Path]:
        """What trials read, where they read it."""
        return [self.copy[1]] if self.copy else []

    @property
    def network_checksum(self) -> str:
        """Of the network file's content, weights apart."""
        content = json.dumps(_with_weights(self.layers, None), sort_keys=True)
        if self.module_source:
            content += sha256(self.module_source)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def checksum(self) -> str:
        """Of the weights; "random" for random ones."""
        return sha256(self.copy[0]) if self.copy else "random"

    def write_network(self, run_folder: Path, layers: Any) -> None:
        """The network file of a trial with this content, and the Python file that it names."""
        write_json(run_folder / "layers.json", layers)
        if self.module:
            shutil.copyfile(self.module, run_folder / self.module.name)

    def put_in_place(self) -> None:
        """Copies the files that are not there yet."""
        copies = [self.copy] if self.copy else []
        if self.module_source and self.module:
            copies.append((self.module_source, self.module))
        for source, target in copies:
            if not target.exists():
                shutil.copyfile(source, target)


def _with_weights(layers: Any, weights: str | None) -> Any:
    """A network file's content with the weights of its encoder; Keras files name none."""
    return layers if is_keras(layers) else {**layers, "weights": weights}


def layers_for(settings: Settings, dataset: AnyDataset) -> Any:
    """The network file's content, with channels, classes and activation by the data where it leaves
    them out; raises InputError where its classes are not those of the masks. A Keras file stays as
    it is."""
    content = read_json(settings.layers, "layers file")
    if is_keras(content):
        if not settings.trial_command:
            _check_keras(content, settings, dataset)
        return content
    if not isinstance(content, dict):
        found = "this is not a network file"
        raise InputError(str(settings.layers), found, 'like {"network": "unet"}')
    outputs = dataset.masks.outputs
    if (told := content.get("classes")) not in (None, outputs):
        found = f"classes is {told}, the masks have {', '.join(dataset.masks.names)}"
        fix = "leave it out: it follows the data"
        raise InputError(f"{settings.layers}, classes", found, str(outputs), fix)
    if content.get("in_channels") is None:
        content["in_channels"] = dataset.channels
    if settings.kind != "images" and content["in_channels"] != dataset.channels:
        found = f"in_channels is {content['in_channels']}, of the {settings.kind} it would see "
        found += f"{dataset.channels}"
        fix = "leave it out: it follows the data"
        raise InputError(str(settings.layers), found, str(dataset.channels), fix)
    activation = "sigmoid" if outputs == 1 else "softmax"
    content |= {"classes": outputs, "activation": activation}
    if not settings.trial_command:
        parse_network(content, str(settings.layers))
    return content


def _check_keras(content: Any, settings: Settings, dataset: AnyDataset) -> None:
    where = str(settings.layers)
    network = parse_network(content, where)
    graph = network.graph
    if settings.kind != "images":
        accepted = f"for {settings.kind}, a network file of ours"
        raise InputError(where, "is a Keras network", accepted)
    if network.dimensions != 2 or network.in_channels not in (1, 3):
        found = f"its input has {network.dimensions} dimensions and {network.in_channels} channels"
        raise InputError(where, found, "images of 1 or 3 channels")
    if not graph.is_image:
        found = f"its output is no image: {network.classes} values"
        raise InputError(where, found, "a network that segments")
    size = (settings.image_size,) * 2
    given = graph.shapes(size)[graph.nodes[-1].name][:-1]
    if given != size:
        found = f"its output is {given[0]}x{given[1]} pixels for {size[0]}x{size[1]}"
        raise InputError(where, found, "an output as large as the input")
    if network.classes != dataset.masks.outputs:
        found = f"its output has {network.classes} channels, "
        found += f"the masks have {', '.join(dataset.masks.names)}"
        raise InputError(where, found, f"{dataset.masks.outputs}")


def find_start_weights(settings: Settings, dataset: AnyDataset, study_folder: Path) -> StartWeights:
    """The weights that `--weights` and `--transfer-learning` ask for; raises InputError.

    `auto`: an encoder's ImageNet weights where they were fetched before, else random ones.
    """
    start = _find(settings, dataset, study_folder)
    module = None if settings.trial_command else module_file(start.layers, settings.layers)
    if module is None:
        return start
    named = f"{module.name}:{start.layers['module'].rpartition(':')[2]}"
    return replace(
        start,
        layers={**start.layers, "module": named},
        module_source=module,
        study_folder=study_folder,
    )


def _find(settings: Settings, dataset: AnyDataset, study_folder: Path) -> StartWeights:
    layers = layers_for(settings, dataset)
    shown = str(settings.layers)
    if settings.trial_command and settings.weights in ("auto", "imagenet", "none"):
        return StartWeights("none", "the command's own", layers)
    network = None if settings.trial_command else read_network(settings.layers)
    if settings.weights not in ("auto", "imagenet", "none"):
        source = Path(settings.weights)
        target = study_folder / f"start{source.suffix}"
        label = f"{source} (sha256 {sha256(source)[:12]})"
        content = _with_weights(layers, None)
        return StartWeights(str(source), label, content, str(target), (source, target))
    assert network
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
            fetch = f"{paste.trainer('trainer.prepare')} weights {shlex.quote(shown)}"
            why = f" (ImageNet weights were not fetched: {fetch})"
        return StartWeights("none", f"random{why}", _with_weights(layers, None))
    file = find_weights(network.model_copy(update={"weights": wanted}), shown)
    assert file
    target = study_folder / file.name
    label = f"{file.stem} (sha256 {sha256(file)[:12]}), the rest random"
    decided = "imagenet" if wanted == "imagenet" else settings.weights
    return StartWeights(decided, label, _with_weights(layers, str(target)), None, (file, target))
