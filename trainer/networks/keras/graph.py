"""A Keras network file as a graph that is checked before any tensor exists. Torch-free.

    graph = read_graph(json_content, "layers.json")
    graph.parameters, graph.operations, graph.shapes((256, 256))["conv1"]

Read are Functional, Model and Sequential of Keras 2.1 to 3, and a bare array of layers. Names,
edges, order, arity, ranks, shapes, classes and options are checked; each fault is an InputError
that names the layer. The size that the InputLayer declares is advisory: `shapes` says whether
another one fits. Its channels are not.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

from trainer.errors import InputError, nearest
from trainer.networks.keras.layer import Layer, Parameter, Shape, shape_text
from trainer.networks.keras.layers import LAYERS
from trainer.networks.keras.options import LARGEST, Options, short, shown

MODELS = ("Functional", "Model", "Sequential")
OUTER = (
    *("class_name", "config", "name", "inbound_nodes", "module", "registered_name"),
    *("build_config", "compile_config", "shared_object_id", "trainable"),
)
"""Keys of a layer beside its options."""

FINAL = ("sigmoid", "softmax", "log_softmax")
"""Activations at the end of a network that stand apart from its logits."""

DEEPEST = 20
"""Nesting of a call's arguments."""

MOST_LAYERS = 20_000
TRIED_SIZES = (513, 515, 1001)
DIVISORS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 768)
"""Tried one after the other: halvings, and the pools of PSPNet."""


@dataclass(frozen=True)
class Node:
    """A layer in its place: `inputs` are names; `shape` goes out at the declared size."""

    name: str
    class_name: str
    inputs: tuple[str, ...]
    layer: Layer
    shape: Shape
    trainable: bool


@dataclass(frozen=True)
class Graph:
    """A checked network; `nodes` stand in an order in which they can be computed, the first being
    the input and the last the output. Sizes in Keras's order: (height, width) or (depth, height,
    width)."""

    name: str
    nodes: tuple[Node, ...]
    where: str

    @property
    def input_shape(self) -> Shape:
        """As the file declares it, channels last, without the batch."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> Shape:
        """At the declared size, channels last, without the batch."""
        return self.nodes[-1].shape

    @property
    def in_channels(self) -> int:
        """Of the input; 0 where the file does not say."""
        return int(self.input_shape[-1] or 0)

    @property
    def classes(self) -> int:
        """Channels of the output."""
        return int(self.output_shape[-1] or 0)

    @property
    def dimensions(self) -> int:
        """1, 2 or 3 of what comes in; 0 for plain vectors."""
        return len(self.input_shape) - 1

    @property
    def literal_output(self) -> bool:
        """The output is (N, rows, channels), Keras's own order: rows of a network on images, which
        are no image. All others are channels first."""
        return len(self.output_shape) == 2 and self.dimensions != 1

    @property
    def activation(self) -> str | None:
        """Sigmoid, softmax or log_softmax at the very end; None for anything else."""
        name = self.nodes[-1].layer.activation.name
        return name if name in FINAL else None

    @property
    def operations(self) -> int:
        """As rmldnn counts: layers with the input, and each activation that is not linear and an
        option of another layer."""
        fused = [n for n in self.nodes if n.layer.fused and n.layer.activation.name != "linear"]
        return len(self.nodes) + len(fused)

    def _count(self, nodes: Sequence[Node]) -> int:
        return sum(p.count for n in nodes for p in n.layer.parameters if not p.statistic)

    @property
    def parameters(self) -> int:
        """All that can be trained; the running statistics do not count."""
        return self._count(self.nodes)

    @property
    def trainable_parameters(self) -> int:
        """Those that are not frozen."""
        return self._count([node for node in self.nodes if node.trainable])

    def shapes(self, size: Sequence[int | None] | None = None) -> dict[str, Shape]:
        """What goes out of each layer for an image of this size (None: the declared one).

        Raises InputError that names the layer which cannot take it.
        """
        found: dict[str, Shape] = {}
        for node in self.nodes:
            if node.inputs:
                found[node.name] = node.layer.shape([found[name] for name in node.inputs])
            elif size is None:
                found[node.name] = node.shape
            elif len(size) != self.dimensions:
                told = f"{len(size)} sizes for an input {shape_text(self.input_shape)}"
                raise InputError(self.where, told, f"{self.dimensions} sizes")
            else:
                found[node.name] = (*size, self.in_channels)
        return found

    @property
    def is_image(self) -> bool:
        """What goes out has as many dimensions as what comes in, at least one."""
        return 0 < self.dimensions == len(self.output_shape) - 1

    def check_size(self, size: Sequence[int]) -> None:
        """Raises InputError where an image of this size cannot be computed, or would come out in
        another size, though those of other sizes come out in their own."""
        out = self.shapes(size)[self.nodes[-1].name]
        if self._keeps_sizes and out[:-1] != tuple(size):
            found = f"{shape_text(tuple(size))} would come out as {shape_text(out[:-1])}"
            raise InputError(self.where, found, f"multiples of {self.divisor}")

    @cached_property
    def _keeps_sizes(self) -> bool:
        large = (1024,) * self.dimensions
        if not self.is_image:
            return False
        if not self.fits(large):
            return self.output_shape[:-1] == self.input_shape[:-1]
        return self.shapes(large)[self.nodes[-1].name][:-1] == large

    def fits(self, size: Sequence[int]) -> bool:
        """An image of this size can be computed."""
        try:
            self.shapes(size)
        except InputError:
            return False
        return True

    @cached_property
    def divisor(self) -> int | None:
        """Sides must be multiples of this; None for a network of one size (or vectors)."""
        for divisor in DIVISORS if self.dimensions else ():
            sizes = [(divisor * side,) * self.dimensions for side in TRIED_SIZES]
            last = self.nodes[-1].name
            if all(self.fits(size) for size in sizes) and (
                not self._keeps_sizes or all(self.shapes(s)[last][:-1] == s for s in sizes)
            ):
                return divisor
        return None

    def multiply_adds(self, size: Sequence[int]) -> int:
        """Of convolutions and dense layers, for one image; one multiply-add is two operations."""
        shapes = self.shapes(size)
        return sum(
            node.layer.multiply_adds([shapes[name] for name in node.inputs], shapes[node.name])
            for node in self.nodes
        )

    def activation_memory_bytes(self, size: Sequence[int]) -> int:
        """Of one image, forward, in single precision: what goes out of all layers."""
        return 4 * sum(math.prod(s or 0 for s in shape) for shape in self.shapes(size).values())

    def named_parameters(self) -> list[tuple[Node, str, Parameter]]:
        """(layer, name in the module, tensor) of all layers."""
        return [
            (node, f"{escaped(node.name)}.{p.name}", p)
            for node in self.nodes
            for p in node.layer.parameters
        ]


def escaped(name: str) -> str:
    """A layer's name in the module: torch takes no dot, so `.` becomes %2E and `%` %25, as in a
    URL (urllib.parse.unquote reads it back)."""
    return name.replace("%", "%25").replace(".", "%2E")


@lru_cache(maxsize=16)
def graph_of(text: str, where: str) -> Graph:
    """`read_graph` of JSON text, which is remembered."""
    return read_graph(json.loads(text), where)


def is_keras(content: Any) -> bool:
    """Parsed JSON looks like a Keras network file."""
    return isinstance(content, list) or (isinstance(content, dict) and "class_name" in content)


def read_graph(content: Any, where: str) -> Graph:
    """The graph of parsed JSON; raises InputError, which names the file as `where`."""
    model, layers, version = _layers(content, where)
    entries = [_entry(layer, number, where) for number, layer in enumerate(layers)]
    sequential = isinstance(content, list) or content["class_name"] == "Sequential"
    _unique(entries, where)
    if sequential:
        entries = _chained(entries, where)
    output = entries[-1].name
    frozen = not isinstance(content, list) and model.get("trainable") is False
    if not sequential:
        output = _end(model, "output_layers", entries, where)
        start = _end(model, "input_layers", entries, where)
        inputs = [entry.name for entry in entries if entry.class_name == "InputLayer"]
        if inputs != [start]:
            found = f"the InputLayers are {', '.join(map(short, inputs[:6])) or 'missing'}"
            raise InputError(where, found, "one input")
    nodes: dict[str, Node] = {}
    for entry in _ordered(entries, output, where):
        nodes[entry.name] = _node(entry, nodes, frozen, version)
    name = "Unknown" if isinstance(content, list) else model.get("name", "Unknown")
    if not isinstance(name, str):
        raise InputError(f"{where}, name", f"found {shown(name)}", "a text")
    graph = Graph(name, tuple(nodes.values()), where)
    if graph.output_shape[-1] is None:
        raise InputError(where, "the number of output channels is not known")
    return graph


def folded(graph: Graph) -> tuple[Node, ...]:
    """The nodes with even zero padding taken into the layer that follows it, where that is one
    convolution, or a maximum over what is never below zero. Names and results stay."""
    users = Counter(name for node in graph.nodes for name in node.inputs)
    changed: dict[str, Node] = {}
    for node in graph.nodes:
        before = changed.get(node.inputs[0]) if len(node.inputs) == 1 else None
        zeros = before.layer.zeros if before else None
        if before and zeros and users[before.name] == 1 and node.layer.padded:
            if not node.layer.build and not _positive(changed[before.inputs[0]]):
                changed[node.name] = node
                continue
            wider = node.layer.padded(zeros)
            if wider:
                del changed[before.name]
                node = replace(node, layer=wider, inputs=before.inputs)
        changed[node.name] = node
    return tuple(changed.values())


def _positive(node: Node) -> bool:
    return node.layer.activation.positive


# ---- reading ----


@dataclass(frozen=True)
class _Entry:
    """A layer as it stands in the file."""

    name: str
    class_name: str
    config: dict[str, Any]
    inbound: Any
    where: str
    inputs: tuple[str, ...] = ()


def _layers(content: Any, where: str) -> tuple[dict[str, Any], list[Any], int]:
    """The model's own settings, its layers, and the major version of Keras."""
    if isinstance(content, list):
        model: Any = {}
        layers: Any = content
        version = 2
    else:
        if not isinstance(content, dict):
            raise InputError(where, f"found {shown(content)}", "a Keras network file")
        kind = content.get("class_name")
        if not isinstance(kind, str) or kind not in MODELS:
            hint = nearest(kind, MODELS) if isinstance(kind, str) else ""
            raise InputError(
                f"{where}, class_name", f"found {shown(kind)}{hint}", ", ".join(MODELS)
            )
        model = content.get("config")
        if isinstance(model, list) and kind == "Sequential":  # Keras 2.1
            model = {"layers": model}
        if not isinstance(model, dict):
            raise InputError(f"{where}, config", f"found {shown(model)}", "an object")
        layers = model.get("layers")
        told = content.get("keras_version", "3" if "module" in content else "2")
        version = int(told[0]) if isinstance(told, str) and told[:1] in tuple("123456789") else 2
    if not isinstance(layers, list) or not layers:
        raise InputError(f"{where}, layers", f"found {shown(layers)}", "a list of layers")
    if len(layers) > MOST_LAYERS:
        raise InputError(f"{where}, layers", f"{len(layers)} layers", f"at most {MOST_LAYERS}")
    return model, layers, version


def _entry(layer: Any, number: int, where: str) -> _Entry:
    place = f"{where}, layer {number + 1}"
    if not isinstance(layer, dict):
        raise InputError(place, f"found {shown(layer)}", "an object with class_name and config")
    kind, config = layer.get("class_name"), layer.get("config")
    if not isinstance(kind, str):
        raise InputError(f"{place}, class_name", f"found {shown(kind)}", "a layer class")
    if not isinstance(config, dict):
        raise InputError(f"{place} ({short(kind)}), config", f"found {shown(config)}", "an object")
    name = layer.get("name") if layer.get("name") is not None else config.get("name")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InputError(f"{place} ({short(kind)}), name", f"found {shown(name)}", "a text")
    place = f"{where}, layer '{short(name)}' ({short(kind)})"
    for key in layer:  # others than ours are somebody's notes, misspelt ones are not
        if key not in OUTER and (hint := nearest(key, OUTER)):
            raise InputError(place, f"unknown key '{short(key)}'{hint}", ", ".join(OUTER[:4]))
    if kind in MODELS:
        raise InputError(place, "is a network inside of a network", "layers alone")
    if kind != "InputLayer" and kind not in LAYERS:
        hint = nearest(kind, LAYERS)
        raise InputError(place, f"the class {short(kind)} is not supported{hint}", _classes())
    return _Entry(name, kind, config, layer.get("inbound_nodes"), place)


def _classes() -> str:
    """The names without their dimensions."""
    names = dict.fromkeys(n.replace("1D", "").replace("2D", "").replace("3D", "") for n in LAYERS)
    return ", ".join(names)


def _unique(entries: Sequence[_Entry], where: str) -> None:
    name, times = Counter(entry.name for entry in entries).most_common(1)[0]
    if times > 1:
        raise InputError(where, f"{times} layers have the name '{short(name)}'", "unique names")


def _chained(entries: list[_Entry], where: str) -> list[_Entry]:
    """Layers one after another. Without an InputLayer the first one says what comes in."""
    first = entries[0]
    if first.class_name != "InputLayer":
        shape = first.config.get("batch_input_shape", first.config.get("batch_shape"))
        if shape is None:
            found = "has no batch_input_shape, and no InputLayer is before it"
            raise InputError(first.where, found, "like [null, 28, 28, 1]")
        taken = {entry.name for entry in entries}
        name = next(n for k in range(len(taken) + 1) if (n := f"input_{k + 1}") not in taken)
        place = f"{first.where}, batch_input_shape"
        made = _Entry(name, "InputLayer", {"batch_input_shape": shape}, None, place)
        entries = [made, *entries]
    for entry in entries[1:]:
        if entry.class_name == "InputLayer":
            raise InputError(entry.where, "stands after the first layer", "one input")
    following = [replace(entry, inputs=(before.name,)) for before, entry in pairwise(entries)]
    return [entries[0], *following]


def _end(model: dict[str, Any], key: str, entries: Sequence[_Entry], where: str) -> str:
    """The one layer that `input_layers` or `output_layers` names."""
    value = model.get(key)
    place = f"{where}, {key}"
    if not isinstance(value, list) or not value:
        raise InputError(place, f"found {shown(value)}", 'like [["name", 0, 0]]')
    references = [value] if isinstance(value[0], str) else value
    if len(references) != 1:
        raise InputError(place, f"{len(references)} of them", "one")
    name = _reference(references[0], place)
    if name not in {entry.name for entry in entries}:
        hint = nearest(name, [entry.name for entry in entries])
        raise InputError(place, f"there is no layer '{short(name)}'{hint}", "a layer's name")
    return name


def _reference(value: Any, place: str) -> str:
    """The name in ["name", 0, 0, {}]."""
    whole = isinstance(value, list) and 3 <= len(value) <= 4 and isinstance(value[0], str)
    if not whole:
        raise InputError(place, f"found {shown(value)}", 'like ["name", 0, 0, {}]')
    if any(isinstance(n, bool) or n != 0 for n in value[1:3]):
        found = f"refers to another use of '{short(value[0])}'"
        raise InputError(place, found, "0, 0: each layer is used once, with one output")
    if len(value) == 4:
        _no_arguments(value[3], place)
    return str(value[0])


def _no_arguments(value: Any, place: str) -> None:
    if not isinstance(value, dict) or any(v is not None for v in value.values()):
        raise InputError(place, f"the call has arguments: {shown(value)}", "none: {}")


def _inputs(entry: _Entry) -> tuple[str, ...]:
    """The names that `inbound_nodes` has, in the forms of Keras 2 and 3."""
    place = f"{entry.where}, inbound_nodes"
    if entry.inbound is None and entry.class_name == "InputLayer":
        return ()
    if not isinstance(entry.inbound, list):
        raise InputError(place, f"found {shown(entry.inbound)}", 'like [[["name", 0, 0, {}]]]')
    if not entry.inbound:
        return ()
    if len(entry.inbound) > 1:
        found = f"is used {len(entry.inbound)} times"
        raise InputError(entry.where, found, "each layer is used once")
    call = entry.inbound[0]
    if isinstance(call, dict):
        kwargs = call.get("kwargs", {})
        if isinstance(kwargs, dict):  # Keras 3 writes `training`, and follows the model's own
            kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        _no_arguments(kwargs, place)
        names: list[str] = []
        _tensors(call.get("args"), names, place, 0)
        return tuple(names)
    if not isinstance(call, list) or not call:
        raise InputError(place, f"found {shown(call)}", 'like [[["name", 0, 0, {}]]]')
    references = [call] if isinstance(call[0], str) else call
    return tuple(_reference(one, place) for one in references)


def _tensors(value: Any, names: list[str], place: str, depth: int) -> None:
    """Collects the tensors in the arguments of a call, as Keras 3 writes them."""
    if isinstance(value, list) and depth < DEEPEST:
        for one in value:
            _tensors(one, names, place, depth + 1)
        return
    config = value.get("config") if isinstance(value, dict) else None
    if not isinstance(config, dict) or value.get("class_name") != "__keras_tensor__":
        raise InputError(place, f"found {shown(value)}", "tensors alone")
    names.append(_reference(config.get("keras_history"), place))


def _ordered(entries: Sequence[_Entry], output: str, where: str) -> list[_Entry]:
    """Inputs before users, the file's own order otherwise; the output last."""
    wired = {e.name: e if e.inputs else replace(e, inputs=_inputs(e)) for e in entries}
    users: dict[str, list[str]] = {name: [] for name in wired}
    for entry in wired.values():
        if bool(entry.inputs) == (entry.class_name == "InputLayer"):
            found = f"has {len(entry.inputs)} inputs"
            accepted = "none" if entry.inputs else "at least one (inbound_nodes)"
            raise InputError(entry.where, found, accepted)
        for name in entry.inputs:
            if name not in wired:
                hint = nearest(name, wired)
                raise InputError(entry.where, f"its input '{short(name)}' does not exist{hint}")
            users[name].append(entry.name)
    names = list(wired)
    position = {name: number for number, name in enumerate(names)}
    waiting = {name: len(entry.inputs) for name, entry in wired.items()}
    ready = [position[name] for name, count in waiting.items() if not count]
    done: list[_Entry] = []
    while ready:
        name = names[heapq.heappop(ready)]
        done.append(wired[name])
        for user in users[name]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, position[user])
    if len(done) < len(wired):
        stuck = next(name for name, count in waiting.items() if count)
        raise InputError(wired[stuck].where, "is part of a circle, or comes after one", "no circle")
    for entry in done:
        if not users[entry.name] and entry.name != output:
            raise InputError(entry.where, "leads to nothing", f"the output is '{short(output)}'")
    if users[output]:
        user = users[output][0]
        raise InputError(where, f"the output '{short(output)}' is an input of '{short(user)}'")
    return done


def _node(entry: _Entry, nodes: dict[str, Node], frozen: bool, version: int) -> Node:
    options = Options(entry.config, entry.where, version)
    trainable = options.flag("trainable", True) and not frozen
    if entry.class_name == "InputLayer":
        shape = _declared(options)
        options.done()
        return Node(entry.name, entry.class_name, (), Layer(lambda s: shape), shape, trainable)
    shapes = [nodes[name].shape for name in entry.inputs]
    layer = LAYERS[entry.class_name](options, shapes)
    options.done()
    shape = layer.shape(shapes)
    return Node(entry.name, entry.class_name, entry.inputs, layer, shape, trainable)


def _declared(options: Options) -> Shape:
    """What an InputLayer says comes in, without the batch."""
    for key in ("batch_shape", "batch_input_shape", "shape", "input_shape"):
        if options.given(key):
            break
    value = options.value(key)
    if not isinstance(value, list):
        raise options.fault(key, f"found {shown(value)}", "like [null, 256, 256, 3]")
    sizes = value[1:] if key.startswith("batch") else value
    plain = all(
        s is None or (isinstance(s, int) and not isinstance(s, bool) and 0 < s <= LARGEST)
        for s in sizes
    )
    if not plain or not 1 <= len(sizes) <= 4 or sizes[-1] is None:
        accepted = "like [null, 256, 256, 3]: batch, up to three sizes, channels"
        raise options.fault(key, f"found {shown(value)}", accepted)
    return tuple(sizes)
