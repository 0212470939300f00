"""MLPerf's log of a training: a real run's file, by MLPerf's own checker and by a table of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlperf_logging.compliance_checker.mlp_compliance import make_checker
from mlperf_logging.compliance_checker.mlp_parser import parse_file
from mlperf_logging.mllog import constants

from tests.studies import ROOT
from tests.test_volume_training import run
from tests.volumes import configuration, write_volumes
from trainer.mlperf_log import tensor_names
from trainer.networks.build import build
from trainer.networks.description import parse_network, read_network

SMALL = {
    **json.loads((ROOT / "layers/unet3d_mlperf.json").read_text()),
    "widths": [4, 4, 4, 4, 4, 4],
}
MLPERF = ROOT / "layers/unet3d_mlperf.json"

ORDER = [
    *["cache_clear", "init_start", "seed", "submission_benchmark", "submission_org"],
    *["submission_division", "submission_status", "submission_platform", "opt_name"],
    *["opt_base_learning_rate", "opt_learning_rate_warmup_epochs"],
    *["opt_learning_rate_decay_boundary_epochs", "opt_learning_rate_decay_factor"],
    *["opt_weight_decay", "opt_momentum", "oversampling", "training_input_shape"],
    *["validation_input_shape", "validation_overlap", *["weights_initialization"] * 50],
    *["init_stop", "run_start", "train_samples", "eval_samples", "samples_per_epoch"],
    *["global_batch_size", "gradient_accumulation_steps"],
    *["block_start", "epoch_start", "epoch_stop", "block_stop"],
    *["block_start", "epoch_start", "epoch_stop", "eval_start", "eval_accuracy", "eval_stop"],
    *["block_stop", "run_stop"],
]
"""Of two epochs, the second evaluated."""

KITS19_ALONE = {"train_samples", "eval_samples"}
"""Rules of the closed division that need KiTS19: 168 and 42 cases; and a quality of 0.908."""


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two epochs of MLPerf's network at small width."""
    folder = tmp_path_factory.mktemp("mlperf")
    prepared = write_volumes(folder / "prepared")
    (folder / "layers.json").write_text(json.dumps(SMALL))
    content = configuration(
        prepared,
        layers=str(folder / "layers.json"),
        seed=5,
        mlperf_log="logs/unet3d.log",
        submission={"org": "nobody", "platform": "test", "cache_cleared": True},
        optimizer={
            "type": "sgd",
            "learning_rate": 0.01,
            "momentum": 0.9,
            "nesterov": True,
            "accumulate_batches": 2,
            "lr_scheduler": {"type": "LinearWarmup", "num_epochs": 4},
        },
        evaluation={"start_at": 2, "window": {"size": [64, 64, 64]}, "stop_at": 0.001},
    )
    content["neural_network"]["data"]["patches"] = {
        "size": [64, 64, 64],
        "per_case": 1,
        "foreground": 0.4,
    }
    run(content, folder / "run")
    return folder / "run"


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "logs/unet3d.log").read_text()
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in text.splitlines()]


def of(folder: Path, key: str) -> dict[str, Any]:
    return next(line for line in lines(folder) if line["key"] == key)


@pytest.mark.slow
def test_the_lines_stand_in_mlperf_s_order(logged: Path) -> None:
    assert [line["key"] for line in lines(logged)] == ORDER
    for line in lines(logged):
        kind = "POINT_IN_TIME"
        if line["key"].endswith("_start"):
            kind = "INTERVAL_START"
        if line["key"].endswith("_stop"):
            kind = "INTERVAL_END"
        assert line["event_type"] == kind
        assert set(line) == {"namespace", "time_ms", "event_type", "key", "value", "metadata"}
        assert {"file", "lineno"} <= set(line["metadata"]) and line["namespace"] == ""
    times = [line["time_ms"] for line in lines(logged)]
    assert times == sorted(times) and times[0] > 1.6e12


@pytest.mark.slow
def test_the_values_are_those_of_the_run(logged: Path) -> None:
    values = {line["key"]: line["value"] for line in lines(logged)}
    expected = {
        "seed": 5,
        "submission_benchmark": "unet3d",
        "submission_division": "closed",
        "submission_status": "onprem",
        "opt_name": "sgd",
        "opt_base_learning_rate": 0.01,
        "opt_learning_rate_warmup_epochs": 4,
        "opt_learning_rate_decay_boundary_epochs": [],
        "opt_learning_rate_decay_factor": 1.0,
        "opt_momentum": 0.9,
        "oversampling": 0.4,
        "training_input_shape": [64, 64, 64],
        "validation_overlap": 0.5,
        "train_samples": 6,
        "eval_samples": 3,
        "samples_per_epoch": 6,
        "global_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    assert {key: values[key] for key in expected} == expected
    evaluated = json.loads((logged / "result.json").read_text())["evaluation"]["foreground_dice"]
    assert values["eval_accuracy"] == evaluated
    blocks = [line["metadata"] for line in lines(logged) if line["key"].startswith("block")]
    assert [(one["first_epoch_num"], one["epoch_count"]) for one in blocks] == [
        *[(1, 1), (1, 1)],
        *[(2, 1), (2, 1)],
    ]
    stops = [line["metadata"] for line in lines(logged) if line["key"] == "epoch_stop"]
    warm = [1e-4 + (0.01 - 1e-4) * epoch / 4 for epoch in (1, 2)]
    assert [one["current_lr"] for one in stops] == pytest.approx(warm)
    assert of(logged, "eval_accuracy")["metadata"]["epoch_num"] == 2
    assert of(logged, "run_stop")["metadata"]["status"] == "success"


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["2.0.0", "4.0.0"])
def test_mlperf_s_own_checker_finds_nothing_but_other_data(logged: Path, rules: str) -> None:
    path = str(logged / "logs/unet3d.log")
    parsed, errors = parse_file(path, ruleset=rules)
    assert not errors and len(parsed) == len(ORDER)
    checker = make_checker("training", rules, quiet=False, werror=True)
    checker.check_file(path, f"training_{rules}/common.yaml")
    assert set(checker.overwritable) == KITS19_ALONE, checker.overwritable
    assert [one for one in checker.not_overwritable if "0.908" not in one] == []
    assert len(checker.not_overwritable) == 1


def test_the_keys_are_mlperf_s_constants() -> None:
    known = {value for name, value in vars(constants).items() if name.isupper()}
    custom = {"training_input_shape", "validation_input_shape", "validation_overlap"}
    assert set(ORDER) - known <= custom | {"oversampling", "opt_momentum", "samples_per_epoch"}


def test_mlperf_s_network_names_fifty_tensors() -> None:
    names = tensor_names(build(read_network(str(MLPERF))).body)
    blocks = [f"input_block_{n}_{kind}" for n in (0, 1) for kind in KINDS]
    for level in range(5):
        blocks += [f"down{level}_block_{n}_{kind}" for n in (0, 1) for kind in KINDS]
    for level in range(5):
        blocks += [f"up{level}_deconv"]
        blocks += [f"up{level}_block_{n}_{kind}" for n in (0, 1) for kind in KINDS]
    assert names == [*blocks, "output_conv"]
    assert len(names) == 50


KINDS = ("conv", "instancenorm")


def test_batch_norm_is_not_named_and_other_networks_name_their_own() -> None:
    batch = build(parse_network({**SMALL, "normalization": "batch"}, "x"))
    assert not any("norm" in name for name in tensor_names(batch.body))
    other = build(read_network(str(ROOT / "layers/segresnet3d.json")))
    assert "convInit.conv" in tensor_names(other.body)


def test_a_run_without_the_key_writes_none(tmp_path: Path) -> None:
    prepared = write_volumes(tmp_path / "prepared")
    run(configuration(prepared, num_epochs=1), tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*.log")] == ["trainer.log"]
