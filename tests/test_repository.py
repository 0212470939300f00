"""The repository itself: what it ships works, what it says is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from trainer.config import load_config
from trainer.networks.description import parse_network, read_network

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
DRIVER = "python rml_optimization.py"
SUBCOMMANDS = ("plan", "list", "show", "use", "compare", "check", "predict")
HOST = (
    "rml_optimization, rml_optuna, study.command, study.report, launchers.choice, launchers.fake, "
)
COMMANDS = ("check", "history", "show", "compare", "use", "plan", "predict")
HOST += ", ".join(f"study.commands.{name}" for name in COMMANDS)


def python(code: str) -> str:
    """What a fresh interpreter in the repository prints."""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_host_half_never_imports_torch() -> None:
    assert python(f"import sys, {HOST}; print('torch' in sys.modules)") == "False"


def test_help_imports_neither_optuna_nor_numpy() -> None:
    code = "import sys, rml_optimization; print({'optuna', 'numpy', 'docker'} & set(sys.modules))"
    assert python(code) == "set()"


def test_trainer_imports_neither_optuna_nor_docker() -> None:
    code = "import sys, trainer.train; print({'optuna', 'docker', 'typer'} & set(sys.modules))"
    assert python(code) == "set()"


@pytest.mark.parametrize(
    "path",
    sorted(set(ROOT.glob("configs/*.json")) - set(ROOT.glob("configs/*_space.json"))),
    ids=lambda p: p.name,
)
def test_shipped_configuration(path: Path) -> None:
    config = load_config(path)
    network = read_network(ROOT / config.layers) if isinstance(config.layers, str) else None
    assert network or parse_network(config.layers, path.name)
    assert path.name in (ROOT / "configs/README.md").read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("layers/*.json")), ids=lambda p: p.name)
def test_shipped_network(path: Path) -> None:
    assert read_network(path).in_channels in (1, 3)


def test_reference_page_is_made_from_the_code() -> None:
    made = python("import runpy; runpy.run_path('docs/make_reference.py', run_name='__main__')")
    assert made == (ROOT / "docs/configuration.md").read_text().strip()


def commands() -> list[str]:
    """The lines of the shell blocks of the README."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


def test_readme_opens_with_its_two_commands() -> None:
    assert [line.split()[:2] for line in commands()[:2]] == [["make", "demo"], ["make", "test"]]


def test_readme_names_what_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"\bmake ([a-z-]+)", README):
        assert target in targets
    rows = re.findall(r"^\| `(--.*?)` \|", README, re.MULTILINE)
    told = re.findall(r"`(python [^`\n]*?--?[^`\n]*)`", README)
    programs = 0
    for line in [*commands(), *told, *(f"{DRIVER} {row}" for row in rows)]:
        if arguments := own_program(line):
            programs += 1
            for option in re.findall(r"(?<!\S)--[a-z_-]+", line):
                assert re.search(rf"{option}\b", help_of(arguments)), f"{line}: {option}"
    assert programs > 30


def own_program(line: str) -> tuple[str, ...]:
    """What comes before --help to ask for the options of a line's program; () for others'."""
    words = line.replace("rml-optimization ", f"{DRIVER} ").split()
    start = next((i for i, word in enumerate(words) if word == "python"), len(words))
    words = words[start + 1 :]
    if words[:1] == ["rml_optimization.py"]:
        return tuple(words[: 2 if words[1:] and words[1] in SUBCOMMANDS else 1])
    if words[:1] == ["-m"] and words[1].startswith("trainer"):
        return tuple(words[: 3 if words[1] == "trainer.prepare" else 2])
    return ()


@cache
def help_of(arguments: tuple[str, ...]) -> str:
    """What a program prints for --help."""
    command = [sys.executable, *arguments, "--help"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, f"{arguments}: {ended.stderr}"
    # These two are added to what a command line has, where it is installed.
    return f"{ended.stdout} --help --install-completion"


def test_help_tells_every_option_and_every_default() -> None:
    shown = python(
        "import rml_optimization, sys; sys.argv = ['x', '--help']; rml_optimization.main()"
    )
    text = " ".join(shown.split())
    for option in ("-nt", "-ne", "-docker", "-singularity", "-o", "-l", "-lr-min", "-lr-max"):
        assert re.search(rf"(?<!\S){option}, --", text), option
    assert text.count("[default:") >= 24


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_of_documents(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", document.read_text()):
        page = document.parent / target if target else document
        assert target.startswith("http") or page.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in {title.lower().replace(" ", "-") for title in titles}, anchor


def test_lock_holds_every_requirement() -> None:
    def names(file: str) -> set[str]:
        lines = (ROOT / file).read_text().splitlines()
        found = [re.match(r"[A-Za-z0-9_.-]+", line) for line in lines if line[:1] not in "#-"]
        return {match[0].lower().replace("_", "-") for match in found if match}

    locked = names("requirements.lock")
    assert names("requirements.txt") | names("trainer/requirements.txt") <= locked
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all("==" in line and "+" not in line for line in lines if line[:1] != "#")


def test_published_command_line_parses() -> None:
    """All options of the published driver, long and short, up to the first check of a value."""
    options = "--num-epochs 1 --num-trials 0 --docker-image x --singularity-image None --gpu "
    options += "--num_procs 1 --optimizers adam,sgd --loss bce,dice --layers ./layers.json "
    options += "--lr-range-min 0.001 --lr-range-max 0.01 --lr-scheduler --lr-scheduler-gamma 0.99 "
    options += "--transfer-learning x.h5"
    short = "-ne 1 -nt 0 -docker x -singularity None --no-gpu --num_procs 1 -o adam,sgd "
    short += "-l bce,dice --layers ./layers.json -lr-min 0.001 -lr-max 0.01 --no-lr-scheduler "
    short += "-lr-gamma 0.99 -tl x.h5"
    for text in (options, short):
        ended = subprocess.run(
            [sys.executable, "rml_optimization.py", *text.split()],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 2
        assert ended.stderr.startswith("Error: --num-trials: 0 is too few"), ended.stderr


def test_nothing_is_left_to_fill_in() -> None:
    for document in [*DOCUMENTS, *ROOT.glob("*/README.md")]:
        assert "MEASURED" not in document.read_text(), document


def test_citation() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert told["cff-version"] == "1.2.0" and told["type"] == "software"
    assert told["message"] and told["title"] and told["authors"] and told["keywords"]
    assert all(set(author) <= {"name", "given-names", "family-names"} for author in told["authors"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (str(told["version"]), told["license"]) == (project["version"], project["license"])


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--dry-run", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["install", "wheels", "image"])
def test_packages_for_older_drivers(target: str) -> None:
    """Only with CUDA= do packages come from the index of torch, beside the usual one."""
    index = "--extra-index-url https://download.pytorch.org/whl/cu"
    assert "pytorch.org" not in dry_run(target, "VENV=none").stdout
    assert f"{index}126" in dry_run(target, "VENV=none", "CUDA=126").stdout
    offline = dry_run("install", "VENV=none", "CUDA=126", "WHEELS=carry/wheels").stdout
    assert "--no-index --find-links carry/wheels" in offline and "pytorch.org" not in offline
    told = re.search(r"torch (\d+\.\d+) of", README)
    assert told and f"torch=={told[1]}." in (ROOT / "requirements.lock").read_text()


def test_a_folder_without_packages_is_refused_before_pip(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    command = ["make", "install", f"VENV={tmp_path}", f"WHEELS={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "pip install" not in ended.stdout
    assert f"{tmp_path} has no packages: make carry makes them" in ended.stderr


def test_wheels_of_another_torch_make_no_image_for_older_drivers(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    for name in ("Makefile", "wheels/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes() if name == "Makefile" else b"")
    docker = tmp_path / "bin/docker"  # it says what it was asked for
    docker.parent.mkdir()
    docker.write_text("#!/bin/sh\necho asked: $*\n")
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{docker.parent}{os.pathsep}{os.environ['PATH']}"}

    def image(*more: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "image", "PYTHON=true", *more]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    refused = image("CUDA=126")
    assert refused.returncode == 2 and "asked:" not in refused.stdout
    assert "wheels/ has no torch of CUDA 126" in refused.stderr
    assert "PIP_ARGS=--no-index ." in image().stdout
    wheel = next(tmp_path.glob("wheels/*.whl"))
    wheel.rename(wheel.with_name(wheel.name.replace("2.13.0-", "2.13.0+cu126-")))
    assert "PIP_ARGS=--no-index ." in image("CUDA=126").stdout
    wheel.with_name(wheel.name.replace("2.13.0-", "2.13.0+cu126-")).unlink()
    assert "PIP_ARGS=--extra-index-url https" in image("CUDA=126").stdout
