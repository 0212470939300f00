"""Instance normalisation in channels last: torch's numbers, another layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.networks.build import build
from trainer.networks.description import parse_network
from trainer.networks.instance_norm import OURS, InstanceNorm3d, keep_layout

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def drawn(*shape: int) -> Tensor:
    """Channels last, far from a mean of 0."""
    torch.manual_seed(0)
    return (torch.randn(shape) * 2 + 3).contiguous(memory_format=LAST[len(shape)])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 8, 7, 6, 5), (1, 4, 6, 6, 6), (2, 5, 9, 8)])
def test_values_and_gradients_are_torch_s_and_the_layout_stays(
    shape: tuple[int, ...], affine: bool
) -> None:
    kind = nn.InstanceNorm3d if len(shape) == 5 else nn.InstanceNorm2d
    theirs = kind(shape[1], affine=affine).double()
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter)
    ours = copy.deepcopy(theirs).float()
    keep_layout(ours)
    assert type(ours) is OURS[kind]
    x = drawn(*shape).requires_grad_()
    exact = x.detach().double().requires_grad_()
    found, expected = ours(x), theirs(exact)
    assert found.is_contiguous(memory_format=LAST[len(shape)])
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=0)
    over = torch.randn(shape)
    found.backward(over)
    expected.backward(over.double())
    assert x.grad is not None and exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=2e-6, rtol=0)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert own.grad is not None and other.grad is not None
        torch.testing.assert_close(own.grad.double(), other.grad, atol=1e-4, rtol=1e-5)


def test_many_voxels_far_from_zero_stay_exact() -> None:
    x = drawn(1, 2, 128, 128, 64)
    with torch.no_grad():
        found = InstanceNorm3d(2)(x)
        expected = nn.InstanceNorm3d(2)(x.double())
    assert float((found - expected).abs().max()) < 5e-6


def test_networks_have_it_and_their_names_stay() -> None:
    layers = {"network": "unet", "dimensions": 3, "width": 4, "depth": 2}
    network = build(parse_network({**layers, "normalization": "instance"}, "x"))
    kinds = {type(one) for one in network.modules()}
    assert InstanceNorm3d in kinds and nn.InstanceNorm3d not in kinds
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    x = drawn(2, 3, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(x.contiguous()), atol=1e-5, rtol=1e-5)
    assert "down.0.1.weight" in network.body.state_dict()


def test_running_statistics_are_left_to_torch() -> None:
    module = nn.InstanceNorm3d(4, track_running_stats=True)
    keep_layout(module)
    assert type(module) is nn.InstanceNorm3d
