"""A graph of a Keras network file as a torch module.

Parameters carry the layers' names (`conv1.weight`; a dot in a name is escaped, see
graph.escaped). Tensors are channels first. The result is the last layer's without its final
sigmoid, softmax or log_softmax, which `Graph.activation` names.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.errors import OutOfMemory
from trainer.networks.keras.activations import ACTIVATIONS, LINEAR, Activation
from trainer.networks.keras.graph import Graph, Node, escaped, folded
from trainer.networks.keras.initial import Initial
from trainer.networks.keras.layer import Layer


@dataclass(frozen=True)
class Step:
    """One layer's turn: `done` are the names whose tensors nobody needs after it."""

    name: str
    module: str | None
    inputs: tuple[str, ...]
    layer: Layer
    activation: Activation
    done: tuple[str, ...]
    in_place: bool


class KerasNetwork(nn.Module):
    """(N, C, H, W), for one to three dimensions, → the last layer's output, without its final
    activation; (N, classes) of a classifier, (N, rows, channels) of what is no image.

    Frozen layers (`trainable` false) get no gradient; a frozen batch normalisation uses and keeps
    its running statistics in training, too, as in Keras. Weights start as the initializers in the
    file say, from torch's random numbers.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        _check_memory(graph)
        nodes = folded(graph)
        self.steps = _steps(graph, nodes)
        self.source, self.result = nodes[0].name, nodes[-1].name
        self.literal_output = graph.literal_output
        self.frozen = tuple(escaped(node.name) for node in nodes if not node.trainable)
        for node in nodes:
            if node.layer.build:
                # not add_module, which refuses names that torch's modules have themselves: `type`
                self._modules[escaped(node.name)] = _built(node)

    def forward(self, x: Tensor) -> Tensor:
        tensors = {self.source: x}
        for step in self.steps:
            module = self._modules[step.module] if step.module else None
            y = step.layer.call(module, [tensors[name] for name in step.inputs])
            if step.in_place:
                y = y.relu_()
            elif step.activation is not LINEAR:
                y = step.activation.apply(y, 1)
            for name in step.done:
                del tensors[name]
            tensors[step.name] = y
        y = tensors[self.result]
        return y.movedim(1, -1) if self.literal_output else y

    def train(self, mode: bool = True) -> KerasNetwork:
        """Frozen layers stay as they are when predicting."""
        super().train(mode)
        for name in self.frozen:
            module = self._modules.get(name)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _check_memory(graph: Graph) -> None:
    """Raises OutOfMemory before anything is allocated: a machine that lends out memory which it
    does not have would kill the program later."""
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (needs := 4 * graph.parameters) > has:
        found = f"{graph.name} has {graph.parameters:,} parameters"
        raise OutOfMemory(f"{found}, {needs / 1e9:,.0f} GB; this machine has {has / 1e9:,.0f} GB")


def _steps(graph: Graph, nodes: tuple[Node, ...]) -> tuple[Step, ...]:
    users = Counter(name for node in nodes for name in node.inputs)
    last_use = {name: node.name for node in nodes for name in node.inputs}
    by_name = {node.name: node for node in nodes}
    made = []
    for node in nodes[1:]:
        final = node is nodes[-1] and graph.activation is not None
        activation = LINEAR if final else node.layer.activation
        owner = node.layer if node.layer.fused else by_name[node.inputs[0]].layer
        alone = node.layer.fused or (users[node.inputs[0]] == 1 and owner.activation is LINEAR)
        made.append(
            Step(
                node.name,
                escaped(node.name) if node.layer.build else None,
                node.inputs,
                node.layer,
                activation,
                tuple(name for name in dict.fromkeys(node.inputs) if last_use[name] == node.name),
                owner.fresh and alone and activation is ACTIVATIONS["relu"],
            )
        )
    return tuple(made)


def _built(node: Node) -> nn.Module:
    assert node.layer.build
    with torch.device("meta"):  # its own initialisation would be thrown away
        module: nn.Module = node.layer.build()
    module.to_empty(device=torch.get_default_device())
    for buffer in module.buffers():
        buffer.zero_()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for parameter in node.layer.parameters:
        tensor = tensors[parameter.name]
        if tuple(tensor.shape) != parameter.shape:
            raise AssertionError(f"{node.name}.{parameter.name}: {tensor.shape}")
        fill(tensor, parameter.initial)
    return module.requires_grad_(node.trainable)


def fill(tensor: Tensor, initial: Initial) -> None:
    """Numbers as an initializer says, from torch's generator."""
    with torch.no_grad():
        first, second = initial.first, initial.second
        if initial.kind == "constant":
            tensor.fill_(first)
        elif initial.kind == "uniform":
            tensor.uniform_(first, second)
        elif initial.kind == "normal" or second == 0:
            tensor.normal_(first, second)
        else:
            low, high = first - 2 * second, first + 2 * second
            nn.init.trunc_normal_(tensor, first, second, low, high)
