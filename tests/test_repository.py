"""The repository itself: what it ships works, what it says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import load_config
from trainer.networks.description import read_network

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
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


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.json")), ids=lambda p: p.name)
def test_shipped_configuration(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config.layers, str) and (ROOT / config.layers).is_file()
    assert path.name in (ROOT / "configs/README.md").read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("layers/*.json")), ids=lambda p: p.name)
def test_shipped_network(path: Path) -> None:
    assert read_network(path).in_channels == 3


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
    shown = subprocess.run(
        [sys.executable, "rml_optimization.py", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    for line in commands() + re.findall(r"^\| `(--.*?)` \|", README, re.MULTILINE):
        if line.startswith(("python rml_optimization.py", "--")):
            for option in re.findall(r"(?<!\S)--[a-z_-]+", line):
                assert option in shown, option


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
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("http") or (document.parent / target).exists(), target


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
