"""trainer/data/volumes/windows.py: whole volumes in windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.config import Window
from trainer.data.volumes.windows import kept_region, plan, predict_windows, weights

MLPERF = Window(cut_remainders=True, fill=-2.2, weighting="gaussian_cube_root")


def both(x: Tensor) -> Tensor:
    return torch.cat([x, 2 * x], dim=1)


@pytest.mark.parametrize(
    ("side", "cut", "filled", "windows"),
    [
        (128, 0, 0, 1),
        (150, 22, 0, 1),
        (159, 31, 0, 1),
        (160, 0, 32, 2),
        (190, 0, 2, 2),
        (246, 0, 10, 3),
        (300, 0, 20, 4),
    ],
)
def test_the_published_plan(side: int, cut: int, filled: int, windows: int) -> None:
    line = plan(side, 128, MLPERF)
    assert side - line.kept == cut and line.first == cut // 2
    assert line.before + line.after == filled and line.before == filled // 2
    assert len(line.starts) == windows


def test_published_windows_of_any_size_and_overlap_leave_no_voxel_out() -> None:
    for size in (5, 16, 48):
        for overlap in (0.0, 0.25, 0.3, 0.5, 0.75, 0.9):
            window = MLPERF.model_copy(update={"overlap": overlap})
            for side in range(1, 4 * size):
                line = plan(side, size, window)
                assert line.kept > 0 and (line.kept == side or side > size)
                seen = {n for start in line.starts for n in range(start, start + size)}
                assert seen == set(range(line.kept + line.before + line.after))


def test_the_published_weights() -> None:
    found = weights((128, 128, 128), "gaussian_cube_root")
    assert found[0, 0, 0] == pytest.approx(3.8013e-4, rel=1e-4)
    assert found[0, 64, 64] == pytest.approx(7.2440e-2, rel=1e-4)
    assert found.max() == 1 and found.mean() == pytest.approx(0.15009, rel=1e-4)


def test_windows_of_any_volume_cover_it_and_stay_inside() -> None:
    for overlap in (0.0, 0.25, 0.5, 0.75):
        for side in (1, 15, 16, 17, 31, 40, 100):
            line = plan(side, 16, Window(overlap=overlap))
            filled = side + line.before + line.after
            seen = {n for start in line.starts for n in range(start, start + 16)}
            assert seen == set(range(filled)), (overlap, side)


@pytest.mark.parametrize(
    "window",
    [Window(), Window(overlap=0.25, weighting="constant"), MLPERF, Window(mirror=True)],
)
def test_a_network_that_changes_nothing_gives_the_volume(window: Window) -> None:
    volume = torch.randn(1, 40, 50, 70)
    size = (32, 32, 64)
    region = kept_region(volume.shape[1:], size, window)
    found = predict_windows(both, volume, size, window, batch_size=3)
    assert torch.allclose(found[:1], volume[(slice(None), *region)], atol=1e-5)
    assert torch.allclose(found[1:], 2 * found[:1], atol=1e-5)


def test_logits_are_averaged_not_probabilities() -> None:
    def by_place(x: Tensor) -> Tensor:
        ramp = torch.arange(x.shape[2], dtype=torch.float32).view(1, 1, -1, 1, 1)
        return ramp.expand(len(x), 1, *x.shape[2:])

    found = predict_windows(
        by_place, torch.zeros(1, 6, 4, 4), (4, 4, 4), Window(weighting="constant")
    )
    # Voxel 2 is place 2 of the first window and 0 of the second, voxel 3 is 3 and 1.
    assert found[0, :, 0, 0].tolist() == [0, 1, 1, 2, 2, 3]


def test_batches_of_windows_change_nothing() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    volume = torch.randn(1, 20, 24, 28)
    one = predict_windows(network, volume, (16, 16, 16), Window(), batch_size=1)
    many = predict_windows(network, volume, (16, 16, 16), Window(), batch_size=5)
    assert torch.allclose(one, many, atol=1e-5)


@pytest.mark.parametrize(("weighting", "near"), [("constant", 1e-6), ("gaussian", 0.02)])
def test_it_is_monai_s_sliding_window(weighting: str, near: float) -> None:
    """MONAI cuts the ends of its Gaussian off at a thousandth, of its own height."""
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1), torch.nn.Tanh())
    volume = torch.randn(1, 33, 40, 47)
    shared = {"overlap": 0.5, "mode": weighting, "sigma_scale": 0.125}
    with torch.no_grad():
        expected = sliding_window_inference(volume[None], (16, 24, 32), 2, network, **shared)[0]
    window = Window.model_validate({"weighting": weighting})
    found = predict_windows(network, volume, (16, 24, 32), window, batch_size=2)
    assert (found - expected).abs().max() < near


def test_mirror_images_are_averaged() -> None:
    def leans(x: Tensor) -> Tensor:
        ramp = torch.arange(x.shape[2], dtype=torch.float32).view(1, 1, -1, 1, 1)
        return x + ramp

    volume = torch.zeros(1, 4, 4, 4)
    plain = predict_windows(leans, volume, (4, 4, 4), Window())
    mirrored = predict_windows(leans, volume, (4, 4, 4), Window(mirror=True))
    assert plain[0, :, 0, 0].tolist() == [0, 1, 2, 3]
    assert mirrored[0, :, 0, 0].tolist() == [1.5] * 4


def test_a_stop_is_heard_between_windows() -> None:
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        predict_windows(both, torch.zeros(1, 64, 16, 16), (16, 16, 16), Window(), check=check)
