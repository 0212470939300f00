"""The network files that the writer makes: those in layers/, read by Keras too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.keras_reference import difference
from trainer.networks.description import read_network
from trainer.networks.keras.graph import Graph, read_graph
from trainer.networks.keras.module import KerasNetwork
from trainer.networks.keras.write import DEFAULTS, NETWORKS, main

PUBLISHED = ROOT.parent / "shared/data/networks/layers_resunet.json"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_files_are_what_the_writer_writes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([name])
    assert (ROOT / f"layers/keras_{name}.json").read_text() == capsys.readouterr().out


@pytest.mark.parametrize("name", NETWORKS)
def test_classes_and_channels_are_as_asked(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([name, "--classes", "5", "--channels", "2"])
    (tmp_path / "net.json").write_text(capsys.readouterr().out)
    network = read_network(tmp_path / "net.json")
    assert (network.in_channels, network.classes) == (2, 5)
    ends = {"resunet": "softmax", "xception_unet": "softmax", "inpainting": "sigmoid"}
    assert network.activation == ends.get(name, "log_softmax")


@pytest.mark.parametrize(
    ("name", "parameters", "operations"),
    [("resunet", 32513559, 231), ("xception_unet", 2055203, 72), ("classifier", 34826, 11),
     ("birds", 24354192, 178), ("satellite", 23528512, 178), ("inpainted", 23796744, 178),
     ("inpainting", 43068355, 185)],
)  # fmt: skip
def test_counts(name: str, parameters: int, operations: int) -> None:
    graph = read_network(ROOT / f"layers/keras_{name}.json").graph
    assert (graph.parameters, graph.operations) == (parameters, operations)


@pytest.mark.parametrize(
    ("name", "size"),
    [("resunet", (32, 64)), ("xception_unet", (32, 48)), ("unet3d", (8, 16, 8)),
     ("classifier", (28, 28)), ("satellite", (64, 32))],
)  # fmt: skip
def test_keras_reads_them_and_computes_the_same(name: str, size: tuple[int, ...]) -> None:
    content = NETWORKS[name](*DEFAULTS[name]).content()
    assert difference(content, size) < 1e-3
    content["config"]["layers"][-1]["config"]["activation"] = "linear"
    assert difference(content, size) < 1e-4


@pytest.mark.parametrize(("name", "trainable"), [("birds", 819600), ("satellite", 73600)])
def test_what_is_frozen_does_not_learn(name: str, trainable: int) -> None:
    graph = read_network(ROOT / f"layers/keras_{name}.json").graph
    assert graph.trainable_parameters == trainable


def test_published_weights_of_the_resunet_fit() -> None:
    """The same names and shapes."""
    if not PUBLISHED.is_file():
        pytest.skip("the published networks are not here")
    published = read_graph(json.loads(PUBLISHED.read_text()), "x")
    ours = read_graph(NETWORKS["resunet"](1, 3).content(), "x")

    def facts(graph: Graph) -> list[tuple[object, ...]]:
        named = graph.named_parameters()
        return [(name, p.keras, p.keras_shape, p.in_file) for _, name, p in named]

    assert facts(ours) == facts(published)
    torch.manual_seed(0)
    one = KerasNetwork(published).eval()
    two = KerasNetwork(ours).eval()
    two.load_state_dict(one.state_dict())
    x = torch.rand(1, 3, 32, 64)
    assert torch.equal(one(x), two(x))


def test_counts_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["resunet", "--classes", "0"])
    assert caught.value.code == 2 and "1 or more" in capsys.readouterr().err
