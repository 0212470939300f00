"""The README is typed from top to bottom: every sh and python block, in one copy of the repository.

A comment `<!-- test: MARKER -->` before a block says what it needs: docker, network, gpu; or
`skip WHY`. Blocks build on those before them, so one of them alone fails. All others run as on a
machine without Docker.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.studies import ROOT, make_class_folders, our_image

README = (ROOT / "README.md").read_text()
IMAGE = os.environ.get("IMAGE", "rml-trainer")
TINY = "--num-epochs 1 --image-size 32"
DEMO = f"--num-trials 1 {TINY} --batch-size 8"
MARKERS = {"docker", "network", "gpu", "skip"}

SUBSTITUTIONS = {
    # what stands in the README: what is typed here
    "make demo ": f"make demo DEMO_STUDY='{DEMO}' ",
    "make test ": "make --dry-run test ",  # this is one of its tests
    "--num-trials 20 --study-name first": f"--num-trials 2 {TINY} --study-name first",
    "--data volumes --num-trials 20": "--data volumes --num-trials 1 --num-epochs 1",
    "phantoms msd scans": "phantoms msd scans --cases 8 --size 24",
    "--num-trials 20": f"--num-trials 1 {TINY}",
    "optuna-dashboard sqlite": (
        "timeout 8 optuna-dashboard --port 18097 sqlite:///rml_study.db > dashboard.txt 2>&1 "
        "|| test $? = 124; grep 'Listening on http://127.0.0.1:18097' dashboard.txt #"
    ),
    "--config=configs/busi_small.json": "--config=configs/busi_small.json --threads 1",
    # Not with the packages of a machine that other tests run on.
    "rm -rf .venv && make install CUDA=126": "make --dry-run install CUDA=126 VENV=other",
    "make image CUDA=126": "make --dry-run image CUDA=126",
    "pip install .": "pip install --no-build-isolation .",
    "--launcher docker": "--launcher docker --docker-image rml-trainer",
}
IN_FILES = {"configs/busi_small.json": ('"num_epochs": 55', '"num_epochs": 2')}
"""What is made smaller in a file, because no option does it."""

LEAVES = {
    # a command: what there must be after it
    "make demo": ["demo/predictions/output_1.png", "demo/best_model/best_model_file.pt"],
    "check --data demo/data": ["check.png"],
    "--out check-classes.png": ["check-classes.png"],
    "--study-name first": ["runs/first/split.json", "list_acc.json", "rml_study.db"],
    "trainer.prepare busi": ["data/train/inputs", "data/train/targets", "data/test/inputs"],
    "trainer.review --data": ["case.png"],
    "config_test.json\n": ["predictions/output_1.h5"],
    "trainer.review predictions": ["predictions/output_1.png"],
    "rml_optimization.py predict": [
        "new/masks/benign_045.png",
        "new/overlays/benign_045.png",
        "new/predictions.h5",
        "new/predict.json",
    ],
    "compare first second": ["compare-first-second.png"],
    "use first": ["best_model/best_model_file.pt", "best_model/best_model.json"],
    "--config=configs/busi_small.json": ["out_busi_small_test.txt", "model_busi_small"],
    "rml-optimization check --data data": ["demo/check.png"],
    "msd scans volumes": ["volumes/train.h5", "volumes/config.json", "volumes/fingerprint.json"],
    "--study-name volumes": ["runs/volumes/split.json", "best_model/best_model_file.pt"],
    "--out labels": ["labels/predict.json", "labels/masks", "labels/predictions.h5"],
    "--case 0 --gif": ["volumes/validation_case_0.gif"],
    "make carry": ["carry/wheels", f"carry/{IMAGE}.tar", "carry/weights"],
}
GONE = {
    # a command: what there must not be after it
    "rm -rf runs": ["runs", "rml_study.db", "list_acc.json", "predictions", "new", "exported"],
    "find best_model": ["best_model/best_model_file.pt", "best_model/best_model.json"],
    "make clean": [".venv", "demo"],
}
OFFLINE = "make install WHEELS="
"""A block with it is typed on a machine without network, by test_without_internet."""


@dataclass(frozen=True)
class Block:
    """A block of the README; `marker` says what it needs."""

    line: int
    language: str
    marker: str
    code: str


def read_blocks(text: str) -> list[Block]:
    """The blocks in order; those without a language only show something."""
    pattern = r"^(?:<!-- test: (.*?) -->\n)?```(\w*)\n(.*?)^```$"
    found = re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    return [
        Block(text[: match.start()].count("\n") + 1, match[2], match[1] or "", match[3])
        for match in found
    ]


ALL_BLOCKS = read_blocks(README)
BLOCKS = [block for block in ALL_BLOCKS if block.language]


def typed(code: str) -> str:
    """The block's code, made smaller as SUBSTITUTIONS say; the first one that fits counts."""
    longest_first = sorted(SUBSTITUTIONS, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first))
    code = re.sub(pattern, lambda match: SUBSTITUTIONS[match[0]], code)
    return re.sub(r"\brml-trainer\b", IMAGE, code)


def test_every_block_is_typed_or_says_why_not() -> None:
    assert {block.language for block in BLOCKS} == {"sh", "python"}
    assert {block.marker.split(" ")[0] for block in BLOCKS} - {""} <= MARKERS
    assert len(re.findall(r"<!-- test:", README)) == sum(bool(block.marker) for block in BLOCKS)
    for block in BLOCKS:
        assert not block.marker.startswith("skip") or len(block.marker) > 10, "it says no reason"
    commands = ("python ", "make ", "docker ", "pip ", "rml-optimization ")
    shown = "".join(block.code for block in ALL_BLOCKS if not block.language).splitlines()
    assert shown and not [line for line in shown if line.startswith(commands)]


def test_what_is_replaced_and_expected_stands_in_the_readme() -> None:
    code = "".join(block.code for block in BLOCKS)
    for text in (*SUBSTITUTIONS, *LEAVES, *GONE, OFFLINE):
        assert text in code, f"{text!r} stands in no block"
    for name, (there, _) in IN_FILES.items():
        assert there in (ROOT / name).read_text()


# ---- the copy in which it is typed ----


def copy_repository(target: Path) -> Path:
    """The files of the repository as they are now, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout: which files belong to it is not known")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def make_environment(here: Path) -> None:
    """.venv as `make install-dev` makes it, with the packages of this interpreter."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(here / ".venv")]
    subprocess.run(command, check=True, capture_output=True)
    packages = next(here.glob(".venv/lib/*/site-packages"))
    (packages / "these.pth").write_text(sysconfig.get_path("purelib") + "\n")
    dashboard = "import sys; from optuna_dashboard._cli import main; sys.exit(main())"
    program = here / ".venv/bin/optuna-dashboard"
    program.write_text(f"#!{here}/.venv/bin/python\n{dashboard}\n")
    program.chmod(0o755)
    for stamp in ("installed", "installed-dev"):  # newer than the locks: make has nothing to do
        (here / ".venv" / stamp).touch()


def store_weights(folder: Path) -> None:
    """Encoder weights as `trainer.prepare weights` stores them, of random numbers."""
    from safetensors.torch import save_file

    from trainer.networks.build import build
    from trainer.networks.description import parse_network
    from trainer.networks.weights import sha256

    torch.manual_seed(0)
    network: Any = build(parse_network(ENCODED, "the test"))
    tensors = {k: v.contiguous() for k, v in network.body.encoder.state_dict().items()}
    folder.mkdir(parents=True)
    file = folder / f"{ENCODED['encoder']}-imagenet.safetensors"
    save_file(tensors, file)
    file.with_suffix(".json").write_text(json.dumps({"sha256": sha256(file)}))


ENCODED = {"network": "smp.Unet", "encoder": "mobilenet_v2", "in_channels": 3, "classes": 1}


def clean_environment(here: Path, home: Path, docker: bool) -> dict[str, str]:
    """Of a user who has set nothing."""
    kept = ("LANG", "TERM", "TMPDIR", "DOCKER_HOST")
    ours = ("PIP_", "SSL_", "REQUESTS_", "CUDA_")
    environment = {k: v for k, v in os.environ.items() if k in kept or k.startswith(ours)}
    environment |= {
        "PATH": f"{here}/.venv/bin:{os.environ['PATH']}",
        "HOME": str(home),
        "SHELL": "/bin/bash",
        "COLUMNS": "140",
        "MPLBACKEND": "agg",  # no screen
        "IMAGE": IMAGE,
    }
    return environment if docker else {**environment, "DOCKER_HOST": f"unix://{home}/none"}


def make_checkout(folder: Path) -> Path:
    """A fresh checkout after `make install`, and the data that a reader of the README has."""
    copy_repository(folder)
    for name, (there, smaller) in IN_FILES.items():
        (folder / name).write_text((folder / name).read_text().replace(there, smaller))
    make_environment(folder)
    make_class_folders(folder / "Dataset_BUSI_with_GT")
    if (ROOT / "wheels").is_dir():  # so that the image is built from them here, too
        shutil.copytree(ROOT / "wheels", folder / "wheels", copy_function=os.link)
    store_weights(folder.with_name("home") / ".cache/rml-optimization/weights")
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout that the blocks share."""
    return make_checkout(tmp_path_factory.mktemp("readme") / "checkout")


def run_block(block: Block, here: Path, docker: bool) -> None:
    """Types a block; what it leaves is there."""
    if block.language == "python":
        command = [str(here / ".venv/bin/python"), "-c", block.code]
    else:
        command = ["bash", "-euo", "pipefail", "-c", typed(block.code)]
    environment = clean_environment(here, here.with_name("home"), docker)
    ended = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, timeout=600
    )
    told = f"{typed(block.code)}\n{ended.stdout[-5000:]}\n{ended.stderr[-5000:]}"
    assert ended.returncode == 0, told
    assert "Traceback" not in ended.stdout + ended.stderr, told
    for command_text, names in LEAVES.items():
        if command_text in block.code:
            assert not [name for name in names if not (here / name).exists()], told
    for command_text, names in GONE.items():
        if command_text in block.code:
            assert not [name for name in names if (here / name).exists()], told


def marks(block: Block) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow, *([pytest.mark.docker] if "docker" in block.marker else [])]


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"line-{block.line}", marks=marks(block))
        for block in BLOCKS
        if "network" not in block.marker
    ],
)
def test_block(block: Block, here: Path) -> None:
    needs, _, why = block.marker.partition(" ")
    if needs == "skip":
        pytest.skip(why)
    if needs == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU is here")
    if needs == "docker":
        our_image()
    run_block(block, here, docker=needs == "docker")


# ---- without internet ----


def without_network(command: str, here: Path, home: Path) -> str:
    """Types a command where there is no network; what it printed."""
    environment = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "IMAGE": IMAGE, "LANG": "C.UTF-8"}
    shell = ["unshare", "-rn", "bash", "-euo", "pipefail", "-c", command]
    ended = subprocess.run(
        shell, cwd=here, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-5000:]}\n{ended.stderr[-5000:]}"
    return ended.stdout


@pytest.mark.slow
@pytest.mark.docker
def test_without_internet(tmp_path: Path) -> None:
    """`make carry`, and what it made on another checkout: no packages, no network."""
    if not os.environ.get("RML_NETWORK"):
        pytest.skip("make carry downloads all packages: RML_NETWORK=1 allows it")
    our_image()
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0:
        pytest.skip("no permission to take the network away")
    make, install = [block for block in BLOCKS if block.marker == "network"]
    here = make_checkout(tmp_path / "one/checkout")
    run_block(make, here, docker=True)
    there, home = copy_repository(tmp_path / "other/checkout"), tmp_path / "other/home"
    home.mkdir()
    shutil.move(here / "carry", there / "carry")
    network = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    with pytest.raises(AssertionError, match="Network is unreachable"):
        without_network(f'python3 -c "{network}"', there, home)
    without_network(typed(install.code), there, home)
    (there / "layers.json").write_text(json.dumps({**ENCODED, "activation": "sigmoid"}))
    python = ".venv/bin/python"
    size = "--images 12 --test-images 4"
    without_network(f"{python} -m trainer.prepare demo demo/data {size}", there, home)
    study = f"{python} rml_optimization.py --data demo/data --layers layers.json {DEMO} --threads 1"
    for place in ("process", f"docker --docker-image {IMAGE}"):
        told = without_network(f"{study} --weights imagenet --launcher {place}", there, home)
        assert "mobilenet_v2-imagenet" in told and f"{place.split()[0]}: " in told
    assert len(list(there.glob("runs/*/trial-0000/result.json"))) == 2
