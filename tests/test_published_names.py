"""configs/PUBLISHED.md: a row for every name of the published systems; ours exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from pydantic import BaseModel

from tests.conftest import environment
from tests.studies import ROOT
from trainer.config import Config
from trainer.networks.description import Network

PAGE = ROOT / "configs/PUBLISHED.md"
CODE = re.compile(r"`([^`]+)`")

PUBLISHED: dict[str, tuple[str, ...]] = {
    "rmldnn and its driver": (
        "--num-epochs, -ne",
        "--num-trials, -nt",
        "--docker-image, -docker",
        "--singularity-image, -singularity",
        "--gpu, --no-gpu",
        "--num_procs",
        "--optimizers, -o",
        "--loss, -l",
        "--layers",
        "--lr-range-min, -lr-min",
        "--lr-range-max, -lr-max",
        "--lr-scheduler, --no-lr-scheduler",
        "--lr-scheduler-gamma, -lr-gamma",
        "--transfer-learning, -tl",
        "--install-completion",
        "--show-completion",
        "--config",
        "--app",
        "mpirun -np",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "RMLDNN_IMAGE",
        "outfile",
        "num_epochs",
        "layers",
        "debug",
        "debug_interval",
        "checkpoints.save",
        "checkpoints.interval",
        "checkpoints.load",
        "data.type",
        "data.input_type",
        "data.target_type",
        "data.input_path",
        "data.target_path",
        "data.test_input_path",
        "data.test_target_path",
        "data.test_output_path",
        "data.batch_size",
        "data.test_batch_size",
        "data.preload",
        "data.grayscale",
        "data.input_grayscale",
        "data.target_grayscale",
        "data.target_is_mask",
        "data.training_tag",
        "data.test_tag",
        "data.testing_tag",
        "data.transforms",
        "data.input_transforms",
        "data.target_transforms",
        "data.slicers",
        "data.hdf5_outfile",
        "data.hdf5_precision",
        "data.domain_size",
        "data.num_examples",
        "data.num_test_examples",
        "data.bc_frequency",
        "data.bc_type",
        "slicers.name",
        "slicers.sizes",
        "slicers.padding",
        "slicers.padded_sizes",
        "slicers.strides",
        "slicers.discard_remainders",
        "slicers.transpose",
        "transforms.resize",
        "transforms.center_crop",
        "transforms.jitter_crop",
        "transforms.random_horizontal_flip",
        "transforms.random_vertical_flip",
        "transforms.random_zoom",
        "transforms.rotate",
        "transforms.random_rotate",
        "transforms.convert_color",
        "transforms.normalize",
        "transforms.random_patches",
        "optimizer.type",
        "optimizer.learning_rate",
        "optimizer.momentum",
        "optimizer.weight_decay",
        "optimizer.dampening",
        "optimizer.nesterov",
        "optimizer.lr_decay",
        "optimizer.beta1",
        "optimizer.beta2",
        "optimizer.eps",
        "optimizer.amsgrad",
        "optimizer.alpha",
        "optimizer.centered",
        "optimizer.eta",
        "optimizer.max_iterations",
        "optimizer.max_func_eval",
        "optimizer.absolute_tolerance",
        "optimizer.relative_tolerance",
        "lr_scheduler.type",
        "lr_scheduler.gamma",
        "lr_scheduler.step_size",
        "lr_scheduler.milestones",
        "lr_scheduler.num_epochs",
        "lr_scheduler.start_factor",
        "lr_scheduler.verbose",
        "loss.function",
        "loss.weight",
        "loss.source",
        "loss.ignore_index",
        "loss.eps",
        "loss.diffusion_coeff",
        "loss.boundary_factor",
    ),
    "MLPerf U-Net3D": (
        "--data_dir",
        "--log_dir",
        "--save_ckpt_path",
        "--load_ckpt_path",
        "--loader",
        "--local_rank",
        "--epochs",
        "--quality_threshold",
        "--ga_steps",
        "--warmup_steps",
        "--batch_size",
        "--input_shape",
        "--val_input_shape",
        "--seed",
        "--num_workers",
        "--exec_mode",
        "--benchmark",
        "--amp",
        "--optimizer",
        "--learning_rate",
        "--init_learning_rate",
        "--lr_warmup_epochs",
        "--lr_decay_epochs",
        "--lr_decay_factor",
        "--lamb_betas",
        "--momentum",
        "--weight_decay",
        "--evaluate_every, --eval_every",
        "--start_eval_at",
        "--verbose, -v",
        "--normalization",
        "--activation",
        "--oversampling",
        "--overlap",
        "--include_background",
        "--cudnn_benchmark",
        "--cudnn_deterministic",
        "layout NCDHW",
        "preprocess --data_dir",
        "preprocess --results_dir",
        "preprocess --mode",
        "checksum.json",
        "evaluation cases",
        "target spacing",
        "padding value",
        "padding mode",
        "weight map",
        "last_model_state_dict",
        "best_model_state_dict",
        "last_optimizer_state_dict",
        "best_optimizer_state_dict",
        "log.json",
        "first_conv_ep",
        "throughput_train",
        "latency_train_mean",
        "latency_train_90, _95, _99",
        "worker seeds",
        "shuffling seeds",
        "unet3d.log",
        "submission_benchmark",
        "submission_org",
        "submission_division",
        "submission_status",
        "submission_platform",
        "cache_clear",
        "opt_name, opt_base_learning_rate, \u2026",
        "RESULT line",
    ),
    "TensorFlow 3D U-Net": (
        "tpu_config",
        "model_dir",
        "training_file_pattern",
        "eval_file_pattern",
        "compressed_input",
        "use_bfloat16",
        "dtype",
        "label_dtype",
        "train_batch_size",
        "eval_batch_size",
        "predict_batch_size",
        "train_epochs",
        "train_item_count",
        "eval_item_count",
        "train_steps",
        "eval_steps",
        "num_steps_per_eval",
        "min_eval_interval",
        "eval_timeout",
        "optimizer",
        "momentum",
        "input_image_size",
        "num_channels",
        "input_partition_dims",
        "deconvolution",
        "num_classes",
        "num_base_filters",
        "depth",
        "dropout_rate",
        "num_segmentation_levels",
        "use_batch_norm",
        "init_learning_rate",
        "lr_decay_steps",
        "lr_decay_rate",
        "data_format",
        "use_index_label_in_train",
        "loss",
        "restrictions",
        "--tpu",
        "--gcp_project",
        "--tpu_zone",
        "--num_cores",
        "--eval_master",
        "--use_tpu",
        "--iterations_per_loop",
        "--input_partition_dims",
        "--mode",
        "--min_eval_interval",
        "--eval_timeout",
        "--config_file",
        "--params_override",
        "--model_dir",
        "--training_file_pattern",
        "--eval_file_pattern",
        "params.yaml",
        "--distribution_strategy",
        "--num_gpus",
        "--steps_per_loop",
        "--checkpoint_interval",
        "--epochs",
        "--eval_checkpoint_dir",
        "--lr_init_value",
        "--lr_decay_rate",
        "--lr_decay_steps",
        "TensorBoard",
        "convert --image_file_pattern",
        "convert --label_file_pattern",
        "convert --output_path",
        "convert --crop_liver_region",
        "convert --apply_data_aug",
        "convert --shard_start",
        "convert --shard_stride",
        "convert --output_size",
        "convert --resize_size",
        "fake --size",
        "fake --num_classes",
        "fake --num_samples_per_mode",
        "fake --save_dir",
        "export --export_dir",
        "export --checkpoint_path",
        "export --config_file",
        "export --batch_size",
        "export --input_type",
        "export --input_name",
        "export --use_tpu",
        "export --iterations_per_loop",
        "export --model_name",
        "infer --input pattern",
        "infer --output_dir",
        "infer node names",
    ),
    "DistMIS": (
        "--source-dir",
        "--target-dir",
        "--reshape",
        "--split",
        "dataset.json",
        "depth crop",
        "whole tumour",
        "shards",
        "info.json",
        "noise augmentation",
        "flip augmentation",
        "visualize --dataset-dir",
        "visualize --sample",
        "visualize --data-shape",
        "visualize --no-screen",
        "num_replicas",
        "batch_size_per_replica",
        "num_epochs",
        "debug",
        "multi",
        "lr",
        "norm",
        "beta2",
        "amsgrad",
        "resources per trial",
        "Ray metric, mode",
        "Ray progress columns",
        "ray start --head",
        "ray start --num-cpus",
        "ray start --num-gpus",
        "ip_head",
        "redis_password",
        "logs/<date>",
    ),
    "Intel 2D U-Net": (
        "converter: data folder",
        "converter: output folder",
        "converter: resize",
        "converter: train share",
        "converter: split",
        "converter: dtype",
        "MODE",
        "IN_CHANNEL_NO, OUT_CHANNEL_NO",
        "CHANNELS_LAST",
        "--use_upsampling",
        "--num_threads",
        "--num_inter_threads",
        "--intra_op_threads",
        "--inter_op_threads",
        "--batch_size",
        "--blocktime",
        "--epochs",
        "--learningrate",
        "--learning_rate",
        "--is_sync",
        "--ip",
        "--const_learningrate",
        "--decay_steps",
        "--lr_fraction",
        "LOG_SUMMARY_STEPS",
        "KMP_BLOCKTIME",
        "KMP_AFFINITY",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "MKL_DYNAMIC",
        "TF_CPP_MIN_LOG_LEVEL",
        "http_proxy, https_proxy",
        "numactl -p",
        "PS_HOSTS, WORKER_HOSTS",
        "ports",
        "CHECKPOINT_DIRECTORY",
        "checkpoint interval",
        "auto-resume",
        "SAVED_MODEL_DIRECTORY",
        "dropout",
        "summary scalars",
        "summary histograms",
        "summary images",
        "percent_complete",
        "TensorBoard port",
        "inference batch",
        "OUT_PATH",
        "sample: data_dir",
        "sample: section",
        "sample: sample_dir",
        "sample: scan names",
        "sample: train_test_split",
        "sample: image size",
        "later: smooth",
        "later: weight_dice_loss",
        "later: seed",
        "later: split",
        "later: flip and turn",
        "later: crop shift",
        "later: tile",
        "later: filters",
    ),
}
"""By system, in the order of their documentation and code."""

COMMANDS = {"predict": "trainer.predict", "review": "trainer.review", "export": "trainer.export"}


def tables() -> dict[str, list[list[str]]]:
    """The rows of each table: published name, default, ours, why."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            found.setdefault(title, []).append(cells)
    return found


ROWS = [(title, row) for title, rows in tables().items() for row in rows]


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from sections(argument)


def has_key(model: type[BaseModel], path: list[str]) -> bool:
    field = model.model_fields.get(path[0])
    if field is None:
        return False
    if len(path) == 1:
        return True
    return any(has_key(one, path[1:]) for one in sections(field.annotation))


@cache
def options(*command: str) -> frozenset[str]:
    """The long options that a command's help lists; none where there is no such command."""
    ended = subprocess.run(
        [sys.executable, *command, "--help"],
        cwd=ROOT,
        env={**environment(), "COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return frozenset(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", ended.stdout))


def exists(ours: str) -> bool:
    """Whether a name of the column `ours` is there."""
    name = ours.partition("=")[0]
    words = name.split()
    if name.startswith("--"):
        return name in options("-m", "trainer")
    if words[0] == "rml_optimization.py":
        return words[1] in options("rml_optimization.py")
    if words[0] == "prepare":
        known = options("-m", "trainer.prepare", words[1])
        return len(words) == 2 or words[2] in known
    if words[0] in COMMANDS:
        known = options("-m", COMMANDS[words[0]])
        return len(words) == 1 or words[1] in known
    if words[0].startswith("layers."):
        return name.removeprefix("layers.") in Network.model_fields
    return has_key(Config, name.split("."))


def test_every_system_has_a_row_for_every_name() -> None:
    for title, names in PUBLISHED.items():
        assert [row[0].strip("`") for row in tables()[title]] == list(names)
    assert set(tables()) == set(PUBLISHED)


@pytest.mark.parametrize(("title", "row"), ROWS, ids=[f"{t}: {r[0]}" for t, r in ROWS])
def test_a_row_has_a_name_of_ours_or_a_reason(title: str, row: list[str]) -> None:
    assert len(row) == 4, row
    _, _, ours, why = row
    names = CODE.findall(ours)
    assert names or len(why) > 5, f"{title}, {row[0]}: neither ours nor why"
    assert not CODE.sub("", ours).strip(), "a name of ours stands in code font, alone"
    for name in names:
        assert exists(name), f"{title}, {row[0]}: there is no {name}"


def test_no_published_name_stands_twice() -> None:
    for title, rows in tables().items():
        names = [row[0] for row in rows]
        assert len(names) == len(set(names)), title


def test_names_that_do_not_exist_would_be_found() -> None:
    wrong = ("optimizer.rate", "layers.color", "--sets", "prepare msd --size", "review --casing")
    for name in (*wrong, "rml_optimization.py --sed", "data.transforms.random_turn"):
        assert not exists(name)
    for name in ("optimizer.lr_scheduler.gamma", "data.patches.around=component", "review --case"):
        assert exists(name)
