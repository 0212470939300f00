"""Encoder weights: fetched from a hub that this file imitates, stored, and trained from."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from trainer.errors import InputError
from trainer.networks.build import build
from trainer.networks.description import parse_network, read_network
from trainer.networks.smp import import_smp
from trainer.networks.weights import find_weights, sha256
from trainer.prepare.__main__ import main
from trainer.prepare.weights import fetch

ROOT = Path(__file__).resolve().parent.parent
SMP_FILE = "/smp-hub/resnet18.imagenet/resolve/3f2325ff978283d47aa6a1d6878ca20565622683"
TIMM_FILE = "/timm/resnet10t.c3_in1k/resolve/main"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Answers as a model hub does: HEAD and GET of resolve addresses, and a model's page."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, body: bool) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                content = hub.files.get(self.path)
                if self.path.startswith("/api/models/"):
                    card = {"id": "some/model", "cardData": {"license": "mit"}, "siblings": []}
                    content = json.dumps(card).encode()
                self.send_response(200 if content is not None else 404)
                revision = self.path.split("/resolve/")[-1].split("/")[0]
                if content is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("X-Repo-Commit", COMMIT if revision == "main" else revision)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if body:
                    self.wfile.write(content or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, address: str, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        path = folder / "published.safetensors"
        save_file(tensors, path)
        self.files[f"{address}/model.safetensors"] = path.read_bytes()


def layers_file(folder: Path, **changes: Any) -> Path:
    """A network file: smp.Unet with resnet18."""
    content = {
        "network": "smp.Unet",
        "encoder": "resnet18",
        "in_channels": 3,
        "classes": 1,
        "activation": "sigmoid",
        "weights": None,
    }
    path = folder / "layers.json"
    path.write_text(json.dumps(content | changes))
    return path


def random_encoder() -> dict[str, torch.Tensor]:
    """Weights of resnet18 as smp publishes them (with its classifier), none of them a constant."""
    torch.manual_seed(5)
    encoder = import_smp().encoders.get_encoder("resnet18", weights=None)
    tensors = {
        name: torch.rand_like(value) * 0.1 + 0.01 if value.is_floating_point() else value
        for name, value in encoder.state_dict().items()
    }
    return tensors | {"fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has resnet18; store and cache are folders of the test."""
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("RML_WEIGHTS", str(tmp_path / "store"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield hub
    hub.close()


@pytest.fixture
def published(hub: Hub, tmp_path: Path) -> dict[str, torch.Tensor]:
    """What the hub has as resnet18, without the classifier."""
    tensors = random_encoder()
    hub.publish(SMP_FILE, tensors, tmp_path)
    return {name: value for name, value in tensors.items() if not name.startswith("fc.")}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


def same(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(
        torch.equal(value, others[name]) for name, value in tensors.items()
    )


# ---- fetching ----
def test_weights_are_fetched_with_their_origin(
    hub: Hub,
    published: dict[str, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers, store = layers_file(tmp_path), tmp_path / "store"
    assert main(["weights", str(layers)]) == 0
    file = store / "resnet18-imagenet.safetensors"
    assert names(store) == ["resnet18-imagenet.json", file.name]
    assert same(load_file(file), published)
    origin = json.loads(file.with_suffix(".json").read_text())
    assert origin["sha256"] == sha256(file)
    assert origin["source"] == f"{hub.address}{SMP_FILE}/model.safetensors"
    assert origin["revision"] == SMP_FILE.rpartition("/")[2]
    assert origin["license"] == "mit"
    assert origin["parameters"] == 11_176_512  # resnet18 without its classifier
    said = capsys.readouterr().out
    assert str(file) in said
    assert "copy this folder" in said and f"--layers {layers}" in said

    asked = len(hub.asked)
    assert main(["weights", str(layers)]) == 0
    assert "already" in capsys.readouterr().out
    assert len(hub.asked) == asked


def test_damaged_weights_are_fetched_again(
    hub: Hub,
    published: dict[str, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers, file = layers_file(tmp_path), tmp_path / "store" / "resnet18-imagenet.safetensors"
    fetch(layers)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    hub.files.clear()  # the hub's own cache has the file: no internet is needed
    fetch(layers)
    assert "checksum is wrong" in capsys.readouterr().out
    assert same(load_file(file), published)


@pytest.mark.usefixtures("published")
def test_a_grey_network_takes_the_same_weights(tmp_path: Path) -> None:
    layers = layers_file(tmp_path, in_channels=1)
    fetch(layers)
    assert load_file(tmp_path / "store/resnet18-imagenet.safetensors")["conv1.weight"].shape[1] == 3
    network = read_network(layers).model_copy(update={"weights": "imagenet"})
    encoder: Any = build(network, find_weights(network, "layers")).body.encoder
    assert encoder.conv1.weight.shape[1] == 1


def test_an_encoder_of_timm(hub: Hub, tmp_path: Path) -> None:
    import timm

    model = timm.create_model("resnet10t", pretrained=False)
    hub.publish(TIMM_FILE, model.state_dict(), tmp_path)
    fetch(layers_file(tmp_path, encoder="tu-resnet10t"))
    stored = load_file(tmp_path / "store/tu-resnet10t-imagenet.safetensors")
    assert torch.equal(
        stored["model.layer4.0.conv1.weight"], model.state_dict()["layer4.0.conv1.weight"]
    )
    origin = json.loads((tmp_path / "store/tu-resnet10t-imagenet.json").read_text())
    assert (origin["revision"], origin["license"]) == (COMMIT, "apache-2.0")
    assert origin["trained_on"] == "c3_in1k"


def test_a_file_of_timm_that_lacks_a_tensor_is_refused(hub: Hub, tmp_path: Path) -> None:
    import timm

    tensors = timm.create_model("resnet10t", pretrained=False).state_dict()
    del tensors["layer4.0.conv1.weight"]
    hub.publish(TIMM_FILE, tensors, tmp_path)
    with pytest.raises(InputError, match="does not fit the encoder"):
        fetch(layers_file(tmp_path, encoder="tu-resnet10t"))
    assert names(tmp_path / "store") == []


# ---- what cannot be fetched ----
def test_a_file_that_does_not_fit_never_gets_its_name(hub: Hub, tmp_path: Path) -> None:
    tensors = random_encoder()
    del tensors["layer3.0.conv1.weight"]
    hub.publish(SMP_FILE, tensors, tmp_path)
    with pytest.raises(InputError, match="does not fit the encoder"):
        fetch(layers_file(tmp_path))
    assert names(tmp_path / "store") == []


def test_a_pickle_under_a_good_name_is_not_opened(hub: Hub, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "opened",))

    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pt")
    hub.files[f"{SMP_FILE}/model.safetensors"] = (tmp_path / "trap.pt").read_bytes()
    with pytest.raises(InputError, match="does not fit the encoder"):
        fetch(layers_file(tmp_path))
    assert not (tmp_path / "opened").exists()


@pytest.mark.usefixtures("hub")
def test_a_hub_without_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", str(layers_file(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert "resnet18.imagenet: cannot be fetched" in error and "Traceback" not in error


@pytest.mark.usefixtures("hub")
def test_no_internet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["weights", str(layers_file(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert "copy the folder" in error and str(tmp_path / "store") in error
    assert names(tmp_path / "store") == []


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "resnet81"}, "did you mean 'resnet18'"),
        ({"encoder": "tu-resnet81"}, "tu-resnet81 cannot be built"),
        ({"encoder": "resnext101_32x16d"}, "has no imagenet weights"),
        ({"encoder": "tu-vovnet39a"}, "no safetensors file"),
        ({"network": "unet", "encoder": None}, "no published weights"),
    ],
)
def test_networks_without_such_weights(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fetch(layers_file(tmp_path, **changes))


# ---- trials ----
def small_data(folder: Path) -> None:
    """Four grey images of 64x64 pixels with their masks."""
    randomness = np.random.default_rng(0)
    for name in ("inputs", "targets"):
        (folder / name).mkdir(parents=True)
    for i in range(4):
        image = randomness.integers(0, 255, (64, 64), np.uint8)
        Image.fromarray(image).save(folder / "inputs" / f"{i}.png")
        Image.fromarray((image > 127).astype(np.uint8) * 255).save(folder / "targets" / f"{i}.png")


@pytest.mark.slow
def test_a_trial_starts_from_exactly_these_tensors(
    published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    layers = layers_file(tmp_path)
    fetch(layers)
    store = tmp_path / "store" / "resnet18-imagenet.safetensors"
    described = json.loads(layers.read_text()) | {"weights": str(store)}
    network = parse_network(described, "layers")
    body: Any = build(network, find_weights(network, "layers")).body
    assert same(body.encoder.state_dict(), published)

    # A run whose rate is too small to change a number: its checkpoint has what it started from.
    run_folder = tmp_path / "trial-0000"
    run_folder.mkdir()
    small_data(tmp_path / "data")
    (run_folder / "layers.json").write_text(json.dumps(described))
    data = {name: f"{tmp_path}/data/{name}/" for name in ("inputs", "targets")}
    config = {
        "outfile": "out.txt",
        "num_epochs": 1,
        "layers": "layers.json",
        "data": {
            "type": "images",
            "input_path": data["inputs"],
            "target_path": data["targets"],
            "test_input_path": data["inputs"],
            "test_target_path": data["targets"],
            "batch_size": 4,
            "transforms": [{"resize": [64, 64]}],
        },
        "optimizer": {"type": "sgd", "learning_rate": 1e-30},
        "loss": {"function": "bce", "source": "sigmoid"},
    }
    (run_folder / "config.json").write_text(json.dumps({"neural_network": config}))
    trainer = [sys.executable, "-m", "trainer", "--config", str(run_folder / "config.json")]
    done = subprocess.run(
        [*trainer, "--run-folder", str(run_folder), "--device", "cpu", "--threads", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    state = torch.load(run_folder / "checkpoints/best.pt", weights_only=True)["state"]
    parameters = dict(nn.Module.named_parameters(body.encoder))
    for name in parameters:
        assert torch.equal(state[f"encoder.{name}"], published[name]), name
    start = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[0])
    assert f"encoder from {store.name} (sha256 {sha256(store)[:12]})" in start["weights"]
    whole = build(network)  # smp's own names: the weights are at home in smp without us
    whole.body.load_state_dict(state)
