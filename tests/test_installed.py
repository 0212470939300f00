"""The program as pip installs it: a command that works from any folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from launchers.image import PROGRAM_FOLDER, build_command, source_hash
from study import paste
from tests import studies

ROOT = studies.ROOT
FOLDER = "rml_optimization_program"


def test_paste_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_command() == "make image"
    monkeypatch.setattr(sys, "path", ["somewhere", str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    assert paste.trainer("trainer").startswith("PYTHONPATH=")
    (tmp_path / "trainer").mkdir()  # somebody else's
    (tmp_path / "trainer/__init__.py").touch()
    monkeypatch.setattr(sys, "path", ["somewhere", str(tmp_path), str(PROGRAM_FOLDER)])
    assert paste.trainer("trainer").startswith("PYTHONPATH=")
    monkeypatch.chdir(ROOT)
    assert not paste.trainer("trainer").startswith("PYTHONPATH=")
    assert paste.driver().endswith(" rml_optimization.py")


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a user with a clean environment types it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    built = run(sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), ".", cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment in which it is installed, with the packages of this one."""
    environment = tmp_path_factory.mktemp("environment")
    made = run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=environment)
    assert made.returncode == 0, made.stderr
    packages = next(environment.glob("lib/*/site-packages"))
    (packages / "these.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "study").mkdir()  # another distribution's
    (packages / "study/__init__.py").write_text("raise ImportError('not ours')\n")
    python = str(environment / "bin/python")
    options = ("install", "--quiet", "--no-deps", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "--python", python)
    installed = run(*pip, *options, str(wheel), cwd=environment)
    assert installed.returncode == 0, installed.stderr
    return environment / "bin"


@pytest.mark.slow
def test_wheel_holds_the_program_and_leaves_nothing_here(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = archive.read("rml_optimization-0.1.0.dist-info/METADATA").decode()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        wanted = r"(study|launchers|trainer)/.*\.py|rml_\w+\.py|(layers|configs)/\w+\.json"
        files = [name for name in tracked.stdout.split() if re.fullmatch(wanted, name)]
        assert {f"{FOLDER}/{name}" for name in files} <= names
    assert {name.partition("/")[0] for name in names} == {FOLDER, f"{FOLDER}.pth"}
    assert f"{FOLDER}/setup.py" not in names
    assert not (ROOT / "build").exists() and not list(ROOT.glob("*.egg-info"))
    required = {
        re.split(r"[<>=]", line)[0].lower()
        for file in ("requirements.txt", "trainer/requirements.txt")
        for line in (ROOT / file).read_text().splitlines()
        if line and line[0] not in "#-"
    }
    told = {name.lower() for name in re.findall(r"^Requires-Dist: ([\w-]+)", about, re.MULTILINE)}
    assert told == required


@pytest.mark.slow
def test_command_works_from_any_folder(bin: Path, tmp_path: Path) -> None:
    command = str(bin / "rml-optimization")
    path = f"{bin}{os.pathsep}{os.environ['PATH']}"
    shown = run(command, "--help", cwd=tmp_path)
    assert shown.returncode == 0 and "--num-trials" in shown.stdout
    listed = run(command, "list", cwd=tmp_path, PATH=path)
    assert listed.stdout == "no study was run here yet: rml-optimization --data FOLDER\n"
    refused = run(command, "--layers", "nothing.json", cwd=tmp_path)
    assert refused.returncode == 2 and "unet_small.json" in refused.stderr
    found = run(command, "--layers", "./layers/unet_small.json", "--data", "nowhere", cwd=tmp_path)
    assert "there is no such data folder" in found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_shell_completion(bin: Path, tmp_path: Path) -> None:
    command = str(bin / "rml-optimization")
    shown = run("bash", "-c", f"{command} --show-completion; true", cwd=tmp_path)
    assert "complete -o default -F _rml_optimization_completion rml-optimization" in shown.stdout
    asked = {"_RML_OPTIMIZATION_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    words = run(command, cwd=tmp_path, COMP_WORDS="rml-optimization ", **asked).stdout.split()
    assert {"plan", "list", "show", "use", "compare"} <= set(words)
    words = run(
        command, cwd=tmp_path, COMP_WORDS="rml-optimization --num-t", **asked
    ).stdout.split()
    assert words == ["--num-trials"]


@pytest.mark.slow
def test_a_study_and_the_commands_that_it_prints(bin: Path, tmp_path: Path) -> None:
    data = studies.make_data(tmp_path / "data")
    given = ("--data", str(data), "--layers", str(studies.layers(tmp_path)), *studies.SMALL)
    path = f"{bin}{os.pathsep}{os.environ['PATH']}"
    command = str(bin / "rml-optimization")
    ended = run(command, *given, "--num-trials", "1", "--threads", "1", cwd=tmp_path, PATH=path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    use = next(line for line in ended.stdout.splitlines() if "config_test.json" in line).strip()
    assert use == "python -m trainer --config=best_model/config_test.json"
    used = run(str(bin / "python"), *use.split()[1:], cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    code = "import trainer.predict, launchers.image as i; print(i.source_hash(), i.build_command())"
    told = run(str(bin / "python"), "-c", code, cwd=tmp_path)
    assert told.stdout.split()[0] == source_hash()
    assert f"docker build --tag rml-trainer --build-arg SOURCE={source_hash()}" in told.stdout
    context = Path(told.stdout.split()[-1])
    for copied in ("Dockerfile", "requirements.lock", "trainer/requirements.txt", ".dockerignore"):
        assert (context / copied).read_bytes() == (ROOT / copied).read_bytes()
