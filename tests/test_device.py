"""Which device a run takes. No Mac was there: what MPS needs is checked by name alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launchers.docker import DockerLauncher
from launchers.run_folder import device_inside, gpu_name
from study import slots
from tests import studies
from trainer.__main__ import prepare_process, translated
from trainer.device import (
    autocast,
    device_label,
    in_layout,
    on_device,
    open_device,
    peak_memory_bytes,
    placed,
)
from trainer.errors import InputError, OutOfMemory
from trainer.networks.build import build
from trainer.networks.description import parse_network

MPS = torch.device("mps")


def there(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.device._check_cuda", lambda: None)
    for name in ("benchmark",):  # what opening CUDA changes is put back
        monkeypatch.setattr(torch.backends.cudnn, name, torch.backends.cudnn.benchmark)
    for cuda, mps, expected in (
        (True, True, "cuda"),
        (False, True, "mps"),
        (False, False, "cpu"),
    ):
        there(monkeypatch, cuda, mps)
        assert open_device("auto", None, False).type == expected
    torch.set_float32_matmul_precision("highest")


def test_mps_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, False, True)
    assert open_device("mps", None, False) == MPS
    there(monkeypatch, False, False)
    for built, expected in ((True, "finds no Apple GPU"), (False, "was built without MPS")):
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda built=built: built)
        with pytest.raises(InputError, match=expected):
            open_device("mps", None, False)
    for name in ("msp", "cuda0", "cuda:x", ""):
        with pytest.raises(InputError, match="auto, cpu, cuda, cuda:N, mps"):
            open_device(name, None, False)


def test_what_a_run_asks_of_mps() -> None:
    """Plain memory order, single precision, no measured memory, and its name in the log."""
    batch = torch.zeros(2, 3, 4, 5)
    assert in_layout(batch, MPS).is_contiguous()
    last = {"memory_format": torch.channels_last}
    assert in_layout(batch, torch.device("cpu")).is_contiguous(**last)
    with autocast(MPS):
        assert not torch.is_autocast_enabled("mps")
    assert peak_memory_bytes(MPS) is None
    assert device_label(MPS) == "MPS (Apple GPU)"


def test_only_cuda_copies_meanwhile() -> None:
    class Batch:
        def to(self, device: torch.device, non_blocking: bool) -> bool:
            return non_blocking

    found = [on_device(Batch(), torch.device(name)) for name in ("cpu", "mps", "cuda")]  # type: ignore[arg-type]
    assert found == [False, False, True]


def test_weights_lie_as_the_device_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The move to MPS itself is left out here."""
    network = build(parse_network({"network": "unet", "width": 4, "depth": 2}, "x"))

    def channels_last() -> bool:
        weights = [p for p in network.parameters() if p.dim() == 4 and p.shape[1] > 1]
        return all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)

    assert placed(network, torch.device("cpu")) is network and channels_last()
    move = torch.nn.Module.to

    def without_move(module: torch.nn.Module, *arguments: object, **named: object) -> object:
        return module if arguments == (MPS,) else move(module, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(torch.nn.Module, "to", without_move)
    placed(network, MPS)
    assert not channels_last() and all(p.is_contiguous() for p in network.parameters())


def test_a_full_apple_gpu_is_out_of_memory() -> None:
    error = RuntimeError("MPS backend out of memory (MPS allocated: 18.12 GB)")
    assert isinstance(translated(error), OutOfMemory)


def test_the_cpu_helps_out_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    prepare_process(None)
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    code = "import sys, trainer.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=studies.ROOT).returncode == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_stays_with_the_process_unless_its_user_says_otherwise() -> None:
    code = """
import resource, trainer.__main__ as main
main.prepare_process(1)
import torch
for _ in range(20):
    torch.zeros(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=studies.ROOT,
                env={**os.environ, **more},
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for more in ({}, {"MALLOC_TRIM_THRESHOLD_": "131072"})
    ]
    assert faults[0] < faults[1] - 10 * 8_000_000 * 4 / 4096, faults


def test_a_trial_asks_for_what_is_not_there(tmp_path: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("this is a Mac")
    studies.make_data(tmp_path / "data")
    layers = studies.layers(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        '{"neural_network": {"layers": "' + str(layers) + '", "data": {"input_path": '
        '"data/train/inputs", "target_path": "data/train/targets"}, "optimizer": {"type": "sgd"}, '
        '"loss": {"function": "bce"}}}'
    )
    ended = studies.module(tmp_path, "trainer", "--config=config.json", "--device", "mps")
    assert ended.returncode == 2 and "--device" in ended.stderr and "MPS" in ended.stderr


def test_a_process_may_use_mps() -> None:
    assert [device_inside(d) for d in ("mps", "cuda:3", "cpu")] == ["mps", "cuda:0", "cpu"]
    assert gpu_name("mps", {}) is None


def test_a_mac_gives_its_gpu_to_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert slots.gpus() == ["Apple (MPS)"]
    assert slots.choose_slot(True, 2).device == "mps"
    assert slots.choose_slot(False, 2).device == "cpu"
    assert DockerLauncher.probe_gpu(None) == "a container cannot use a Mac's GPU"
