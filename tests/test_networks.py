"""Network files: what is built, what is refused, and encoder weights from the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.errors import InputError
from trainer.networks.build import SegmentationNetwork, build, parameter_counts
from trainer.networks.description import (
    ENCODERS,
    MONAI_NETWORKS,
    SMP_NETWORKS,
    Network,
    check_size,
    parse_network,
    read_network,
)
from trainer.networks.smp import import_smp
from trainer.networks.weights import find_weights, sha256, stored_path, weights_folder

LAYERS = Path(__file__).resolve().parent.parent / "layers"
RESNET18 = {"network": "smp.Unet", "encoder": "resnet18", "activation": "sigmoid"}


def network(**keys: Any) -> Network:
    return parse_network({"network": "unet", **keys}, "layers.json")


def refusal(content: Any) -> str:
    with pytest.raises(InputError) as caught:
        parse_network(content, "layers.json")
    assert "layers.json" in str(caught.value)
    return str(caught.value)


def unet_parameters(channels: int, width: int, depth: int) -> int:
    """From the paper's drawing: two 3x3 convolutions with batch normalisation a level."""

    def double(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs

    widths = [width * 2**level for level in range(depth + 1)]
    down = sum(double(a, b) for a, b in zip([channels, *widths], widths, strict=False))
    up = sum(4 * 2 * w * w + w + double(2 * w, w) for w in widths[:-1])
    return down + up + width + 1


@pytest.mark.parametrize(("channels", "width", "depth"), [(3, 8, 4), (1, 2, 1), (3, 4, 2)])
def test_the_small_unet_has_its_parameters(channels: int, width: int, depth: int) -> None:
    module = build(network(in_channels=channels, width=width, depth=depth))
    expected = unet_parameters(channels, width, depth)
    assert parameter_counts(module) == (expected, expected)


def test_the_layers_file_unet_small() -> None:
    description = read_network(LAYERS / "unet_small.json")
    assert (description.label, description.divisor) == ("unet", 16)
    assert parameter_counts(build(description)) == (486553, 486553)


@pytest.mark.parametrize(
    ("encoder", "hint"),
    [
        ("tu-hf-hub:someone/model", ""),
        ("resnet/50", "did you mean 'resnet50'?"),
        ("tu-convnext_tiny:in1k", "did you mean 'tu-convnext_tiny'?"),
        ("resnet18\n", "did you mean 'resnet18'?"),
        ("", ""),
    ],
)
def test_names_that_would_reach_the_network_are_refused(encoder: str, hint: str) -> None:
    told = refusal({**RESNET18, "encoder": encoder})
    assert "is not the name of an encoder" in told and hint in told


def test_the_encoders_in_hints_are_there() -> None:
    known = set(import_smp().encoders.get_encoder_names())
    import timm  # after smp, which makes torchvision importable

    known |= {f"tu-{name}" for name in timm.list_models()}
    assert set(ENCODERS) <= known


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (32, 4)])
def test_the_output_has_the_size_of_the_input(height: int, width: int) -> None:
    module = build(network(in_channels=1, width=2, depth=2)).eval()
    logits = module(torch.rand(2, 1, height, width))
    assert logits.shape == (2, 1, height, width)
    assert torch.equal(module.probabilities(logits), torch.sigmoid(logits.float()))


def test_the_network_normalises_its_input() -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    module = build(network(width=2, depth=1, mean=mean, std=std)).eval()
    plain = SegmentationNetwork(module.body, network())
    x = torch.rand(1, 3, 4, 4)
    shape = (1, 3, 1, 1)
    normalised = (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    torch.testing.assert_close(module(x), plain(normalised))
    assert not any("mean" in key and "running" not in key for key in module.state_dict())


def test_the_activation_follows_the_classes() -> None:
    assert network().activation == "sigmoid"
    several = build(network(width=2, depth=1, classes=3))
    assert several.description.activation == "softmax"
    probabilities = several.probabilities(several(torch.rand(2, 3, 4, 4)))
    assert probabilities.shape == (2, 3, 4, 4)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 4, 4))


def test_every_parameter_gets_a_gradient() -> None:
    module = build(network(width=2, depth=2))
    module(torch.rand(2, 3, 8, 8)).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"network": "unett"}, "unknown network 'unett'; did you mean 'unet'?"),
        ({"network": "smp/Unet", "encoder": "x"}, "did you mean 'smp.Unet'?"),
        ({"network": "unet", "encoder": "resnet18"}, "unet takes no 'encoder'; accepted: with smp"),
        ({"network": "unet", "arguments": {"width": 1}}, "unet takes no 'arguments'"),
        ({"network": "monai.UNet", "module": "a.py:B"}, "monai.UNet takes no 'module'"),
        ({"network": "module"}, "module: found None; accepted: like my_net.py:Net"),
        ({"module": "my_net.py"}, "like my_net.py:Net"),
        ({"module": "my_net.pickle:Net"}, "like my_net.py:Net"),
        ({"network": "unet", "divisor": -1}, "divisor: Input should be greater than or equal to 0"),
        ({"network": "smp.Unet"}, "smp.Unet needs an 'encoder'"),
        ({"network": "unet", "widht": 8}, "unknown key 'widht'; did you mean 'width'?"),
        ({"network": "unet", "activation": "softmax"}, "classes 1 with activation softmax"),
        (
            {"network": "unet", "classes": 3, "activation": "sigmoid"},
            "classes 3 with activation sigmoid",
        ),
        ({"network": "unet", "in_channels": 0}, "in_channels: Input should be"),
        ({"network": "unet", "depth": 9}, "depth: Input should be less than or equal to 8"),
        ({"width": 8}, "the key 'network' is missing"),
        ({"network": "unet", "activation": "sigmoid", "mean": [0.5]}, "1 numbers for 3 channels"),
        ({"network": "unet", "activation": "sigmoid", "std": [1, 0, 1]}, "0.0 is not positive"),
        ({"class_name": "Functional", "config": {}}, "layers: found nothing"),
        ([{"class_name": "Dense"}], "layer 1 (Dense), config: found nothing"),
        ("unet", "this is not a network file"),
    ],
)
def test_a_wrong_network_file_is_told(content: Any, expected: str) -> None:
    assert expected in refusal(content)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((250, 256), "multiples of 16; the nearest are 240 and 256"),
        ((256, 100), "the nearest are 96 and 112"),
        ((8, 16), "the nearest are 16 and 32"),
    ],
)
def test_a_size_that_does_not_fit_names_the_nearest(size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        check_size(network(), size, "data.transforms, resize")
    assert nearest in str(caught.value) and f"{size[0]}x{size[1]}" in str(caught.value)


@pytest.mark.parametrize("size", [(16, 16), (256, 64)])
def test_sizes_that_fit(size: tuple[int, int]) -> None:
    check_size(network(), size, "resize")
    check_size(network(depth=3), (8, 24), "resize")


def test_random_networks_need_no_weights_and_files_have_to_be_there(tmp_path: Path) -> None:
    assert find_weights(network(), "l.json") is None
    with pytest.raises(InputError, match="no published weights"):
        find_weights(network(weights="imagenet"), "l.json")
    own = tmp_path / "own.safetensors"
    smp = parse_network({**RESNET18, "weights": str(own)}, "l.json")
    with pytest.raises(InputError, match="no such file"):
        find_weights(smp, "l.json")
    own.touch()
    assert find_weights(smp, "l.json") == own


def test_weights_that_were_not_fetched_name_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RML_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError) as caught:
        find_weights(parse_network({**RESNET18, "weights": "imagenet"}, "l.json"), "l.json")
    assert "python -m trainer.prepare weights l.json" in str(caught.value)
    assert "resnet18" in str(caught.value)


def test_the_store_is_in_the_cache_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RML_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert weights_folder() == Path("/cache/rml-optimization/weights")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with made-up weights of resnet18."""
    from safetensors.torch import save_file

    monkeypatch.setenv("RML_WEIGHTS", str(tmp_path))
    torch.manual_seed(1)
    encoder = build(parse_network(RESNET18, "l.json")).body.encoder
    state = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    path = stored_path(parse_network(RESNET18, "l.json"))
    save_file(state, path)
    path.with_suffix(".json").write_text(json.dumps({"source": "made up", "sha256": sha256(path)}))
    return path


def test_weights_of_the_store_reach_the_encoder(store: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(store)
    for channels in (3, 1):
        keys = {**RESNET18, "weights": "imagenet", "in_channels": channels}
        description = parse_network(keys, "l.json")
        torch.manual_seed(2)
        module = build(description, find_weights(description, "l.json"))
        loaded = module.body.encoder.state_dict()
        differ = [key for key in state if not torch.equal(state[key], loaded[key])]
        assert differ == ([] if channels == 3 else ["conv1.weight"])
        if channels == 1:
            torch.testing.assert_close(
                loaded["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True)
            )
        with torch.inference_mode():
            assert module.eval()(torch.rand(1, channels, 32, 64)).shape == (1, 1, 32, 64)


def test_weights_of_another_encoder_are_refused(store: Path) -> None:
    other = parse_network({**RESNET18, "encoder": "resnet34", "weights": str(store)}, "l.json")
    with pytest.raises(InputError, match="does not fit the encoder"):
        build(other, find_weights(other, "l.json"))


@pytest.mark.parametrize("damage", ["changed", "cut", "no checksum"])
def test_damaged_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("RML_WEIGHTS", str(tmp_path))
    description = parse_network({**RESNET18, "weights": "imagenet"}, "l.json")
    path = stored_path(description)
    path.write_bytes(b"weights")
    if damage != "no checksum":
        path.with_suffix(".json").write_text(json.dumps({"sha256": sha256(path)}))
        assert find_weights(description, "l.json") == path
        path.write_bytes(b"Weights" if damage == "changed" else b"weight")
    with pytest.raises(InputError) as caught:
        find_weights(description, "l.json")
    assert "checksum" in str(caught.value)
    assert "python -m trainer.prepare weights l.json" in str(caught.value)


def test_a_misspelt_network_of_smp_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown network 'smp.Unte'; did you mean 'smp.Unet'"):
        build(parse_network({**RESNET18, "network": "smp.Unte"}, "l.json"))


def test_the_networks_in_hints_are_there() -> None:
    smp = import_smp()
    assert [name for name in SMP_NETWORKS if not hasattr(smp, name)] == []
    import monai.networks.nets as nets

    assert [name for name in MONAI_NETWORKS if not hasattr(nets, name)] == []


@pytest.mark.parametrize("name", [name for name in SMP_NETWORKS if name != "DPT"])
def test_every_network_of_smp(name: str) -> None:
    keys = {**RESNET18, "network": f"smp.{name}", "in_channels": 1, "classes": 3}
    module = build(parse_network({**keys, "activation": "softmax"}, "l.json"))
    module.check((128, 160))
    assert module.training


def test_arguments_reach_smp_and_its_size_is_checked() -> None:
    dpt = {"network": "smp.DPT", "encoder": "tu-vit_tiny_patch16_224", "divisor": 16}
    with pytest.raises(InputError, match=r"smp.DPT tu-vit_tiny_patch16_224: cannot take 64x64"):
        build(parse_network(dpt, "l.json")).check((64, 64))
    free = build(parse_network({**dpt, "arguments": {"dynamic_img_size": True}}, "l.json"))
    free.check((64, 64))
    with pytest.raises(InputError, match=r"no 'encoder_depht'; did you mean 'encoder_depth'"):
        build(parse_network({**RESNET18, "arguments": {"encoder_depht": 3}}, "l.json"))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SegResNet", {"init_filters": 8}),
        ("UNet", {"channels": [4, 8], "strides": [2]}),
        ("BasicUNetPlusPlus", {"features": [8, 8, 8, 8, 8, 8]}),
        (
            "DynUNet",
            {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]},
        ),
        ("Quicknat", {}),
    ],
)
def test_networks_of_monai(name: str, arguments: dict[str, Any]) -> None:
    keys = {"network": f"monai.{name}", "arguments": arguments, "in_channels": 1, "classes": 2}
    module = build(parse_network(keys, "l.json"))
    module.check((32, 64))
    assert module(torch.rand(2, 1, 32, 64)).shape == (2, 2, 32, 64)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"network": "monai.SegResnet2"},
            "MONAI has no network 'SegResnet2'; did you mean 'SegRes",
        ),
        ({"network": "monai.UNet"}, "monai.UNet needs channels, strides"),
        ({"network": "monai.UNETR"}, "monai.UNETR needs img_size"),
        (
            {"network": "monai.SegResNet", "arguments": {"init_filter": 8}},
            "takes no 'init_filter'; did you mean 'init_filters'?",
        ),
        ({"network": "monai.VNet", "arguments": {"act": "nosuch"}}, "monai.VNet cannot be built"),
        ({"network": "monai.DenseNet121"}, r"its output is \(1, 1\) for an input \(1, 3, 32, 32\)"),
        ({"network": "monai.SegResNet", "arguments": {"spatial_dims": 3}}, "cannot take 32x32 pix"),
    ],
)
def test_what_does_not_fit_monai_is_told(keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        build(parse_network(keys, "l.json")).check((32, 32))


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What was looked up in the network; empty caches."""
    tried: list[Any] = []

    def forbidden(*address: Any, **more: Any) -> Any:
        tried.append(address)
        raise OSError("no network here")

    monkeypatch.setattr("socket.getaddrinfo", forbidden)
    monkeypatch.setattr("socket.create_connection", forbidden)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tried


TIMM = {"network": "smp.Unet", "encoder": "tu-resnet10t"}


@pytest.mark.parametrize(
    "keys",
    [
        {"network": "monai.DenseNet121", "arguments": {"pretrained": True}},
        {"network": "monai.HoVerNet", "arguments": {"pretrained_url": "http://127.0.0.1:9/a"}},
        {"network": "monai.TorchVisionFCModel", "arguments": {"weights": "DEFAULT"}},
        {"network": "monai.Transchex", "arguments": {"path_or_repo_id": "someone/model"}},
        {**RESNET18, "arguments": {"encoder_weights": "imagenet"}},
        {**TIMM, "arguments": {"pretrained": True}},
        {**TIMM, "arguments": {"checkpoint_path": "weights.bin"}},
        {**TIMM, "arguments": {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/a"}}},
    ],
)
def test_arguments_fetch_nothing(keys: dict[str, Any], reached: list[Any]) -> None:
    """A checkpoint of somebody else's may have such arguments."""
    with pytest.raises(InputError, match="fetch nothing"):
        build(parse_network(keys, "l.json"))
    assert reached == []


def test_networks_that_fetch_unasked_do_not(reached: list[Any]) -> None:
    keys = {"network": "monai.EfficientNetBN", "arguments": {"model_name": "efficientnet-b0"}}
    build(parse_network(keys, "l.json"))
    build(parse_network({"network": "monai.MILModel"}, "l.json"))
    others = {
        "ResNetFeatures": {"model_name": "resnet18"},
        "DenseNet121": {"pretrained": False},
        "HoVerNet": {"pretrained_url": None},
    }
    for name, arguments in others.items():
        build(parse_network({"network": f"monai.{name}", "arguments": arguments}, "l.json"))
    with pytest.raises(InputError, match="fetches its weights"):
        build(parse_network({"network": "monai.Transchex"}, "l.json"))
    assert reached == []


def test_a_misspelt_encoder_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown encoder 'resnet81'; did you mean 'resnet18'"):
        build(parse_network({**RESNET18, "encoder": "resnet81"}, "l.json"))


@pytest.mark.slow
def test_the_layers_file_resunet() -> None:
    description = read_network(LAYERS / "resunet.json")
    assert (description.label, description.divisor) == ("smp.Unet resnet50", 32)
    module = build(description).eval()
    assert 32_000_000 < parameter_counts(module)[0] < 33_000_000
    with torch.inference_mode():
        assert module(torch.rand(1, 3, 64, 96)).shape == (1, 1, 64, 96)
