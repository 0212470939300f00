"""Normalisation in channels last on a CPU: exact values, exact gradients, the layout stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.networks.build import OURS, build, exchange
from trainer.networks.description import parse_network
from trainer.networks.normalization import BatchNorm3d, GroupNorm, InstanceNorm3d

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

SHAPES = [
    (3, 8, 7, 6, 5),
    (1, 4, 12, 12, 12),
    (2, 4, 9, 40),
    (1, 6, 40, 40),
    (2, 8, 32, 32, 32),  # added up in parts
    (1, 8, 32, 32, 40),
    (2, 4, 63, 33, 31),  # does not divide
    (4, 4, 256, 256),
]
KINDS = {
    "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
    "group": (lambda channels, affine=True: nn.GroupNorm(2, channels, affine=affine),) * 2,
    "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
}


def drawn(*shape: int) -> Tensor:
    """Channels last, far from a mean of 0."""
    torch.manual_seed(0)
    return (torch.randn(shape) * 2 + 3).contiguous(memory_format=LAST[len(shape)])


def pair(kind: str, shape: tuple[int, ...], **options: bool) -> tuple[nn.Module, nn.Module]:
    """Ours, and torch's in double precision, with the same values."""
    theirs = KINDS[kind][len(shape) - 4](shape[1], **options).double()
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter)
    ours = copy.deepcopy(theirs).float()
    exchange(ours, OURS)
    assert type(ours) in OURS.values()
    return ours, theirs


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_exact_and_the_layout_stays(
    shape: tuple[int, ...], kind: str, affine: bool
) -> None:
    ours, theirs = pair(kind, shape, affine=affine)
    x = drawn(*shape).requires_grad_()
    exact = x.detach().double().contiguous().requires_grad_()
    found, expected = ours(x), theirs(exact)
    assert found.is_contiguous(memory_format=LAST[len(shape)])
    torch.testing.assert_close(found.double(), expected, atol=4e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), found, atol=4e-6, rtol=0)
    over = torch.randn(shape)
    found.backward(over.contiguous(memory_format=LAST[len(shape)]))
    expected.backward(over.double())
    assert x.grad is not None and exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=4e-6, rtol=0)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        wide = (x.numel() / shape[1]) ** 0.5  # of a sum of so many random numbers
        torch.testing.assert_close(own.grad.double(), other.grad, atol=4e-6 * wide, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_many_voxels_far_from_zero_stay_exact(kind: str) -> None:
    """torch's are wrong by 0.001 or more here, but for instances."""
    shape = (1, 2, 128, 128, 64)
    ours, theirs = pair(kind, shape)
    x = drawn(*shape)
    with torch.no_grad():
        assert float((ours(x) - theirs(x.double().contiguous())).abs().max()) < 5e-6


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32, 16), (2, 3, 4, 4, 4), (8, 3, 64, 64)])
def test_running_statistics_follow_as_torch_s(
    shape: tuple[int, ...], momentum: float | None
) -> None:
    for kind in ("batch", "instance"):
        ours, theirs = pair(kind, shape, track_running_stats=True)
        ours.momentum = theirs.momentum = momentum  # type: ignore[assignment]
        for number in range(3):
            x = drawn(*shape) * (number + 1)
            ours(x)
            theirs(x.double().contiguous())
        for own, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(own.double(), other.double(), atol=1e-5, rtol=1e-5)
        x = drawn(*shape)
        torch.testing.assert_close(
            ours.eval()(x).double(), theirs.eval()(x.double()), atol=1e-5, rtol=1e-5
        )


def test_a_batch_of_one_has_the_gradients_of_the_plain_order() -> None:
    """torch's instance normalisation takes gradients in channels last for plain ones there."""
    layers = {"network": "unet", "dimensions": 3, "width": 8, "depth": 1, "in_channels": 1}
    network = build(parse_network({**layers, "normalization": "instance", "classes": 2}, "x"))
    exact = copy.deepcopy(network).to(memory_format=torch.contiguous_format).double()  # type: ignore[call-overload]
    x = torch.randn(1, 1, 32, 32, 32)
    network(x).square().mean().backward()
    exact(x.double()).square().mean().backward()
    for (name, own), other in zip(network.named_parameters(), exact.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        apart = (own.grad - other.grad).norm() / (other.grad.norm() + 1e-6)
        assert float(apart) < 1e-3, name


def test_half_precision_is_computed_in_single() -> None:
    x = drawn(1, 4, 16, 16, 16).bfloat16()
    found = InstanceNorm3d(4)(x)
    assert found.dtype == torch.bfloat16
    expected = nn.InstanceNorm3d(4)(x.double().contiguous())
    assert float((found - expected).abs().max()) < 0.02


def test_networks_have_it_and_their_names_stay() -> None:
    for normalization, kind in (
        ("instance", InstanceNorm3d),
        ("group", GroupNorm),
        ("batch", BatchNorm3d),
    ):
        layers = {"network": "unet", "dimensions": 3, "width": 8, "depth": 2}
        network = build(parse_network({**layers, "normalization": normalization}, "x"))
        kinds = {type(one) for one in network.modules()}
        assert kind in kinds and not kinds & set(OURS)
        plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        exchange(plain, {own: theirs for theirs, own in OURS.items()})
        assert not {type(one) for one in plain.modules()} & set(OURS.values())
        x = drawn(2, 3, 16, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(network(x), plain(x.contiguous()), atol=1e-5, rtol=1e-5)
        assert "down.0.1.weight" in network.body.state_dict()
