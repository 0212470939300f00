"""Networks of the user's own: a class in a Python file beside the network file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SIDE, Ended
from tests.studies import ROOT, SMALL, driver, make_data
from trainer.errors import InputError
from trainer.model import load_model
from trainer.networks.build import build, parameter_counts
from trainer.networks.description import module_file, parse_network, read_network

EXAMPLE = ROOT / "examples/my_net.json"
HEAD = "import torch\nfrom torch import nn\n"
ONE = HEAD + (
    "class Net(nn.Module):\n"
    "    def __init__(self, in_channels, classes, width=1):\n"
    "        super().__init__()\n"
    "        self.convolution = nn.Conv2d(in_channels, classes, 2 * width - 1, padding=width - 1)\n"
    "    def forward(self, x):\n"
    "        return self.convolution(x)\n"
)


def written(folder: Path, code: str, **keys: Any) -> Path:
    (folder / "net.py").write_text(code)
    layers = folder / "net.json"
    layers.write_text(json.dumps({"module": "net.py:Net", **keys}))
    return layers


def built(layers: Path) -> Any:
    return build(read_network(layers), folder=layers.parent, trust_code=True)


def refusal(folder: Path, code: str, **keys: Any) -> str:
    with pytest.raises(InputError) as caught:
        built(written(folder, code, **keys)).check((8, 6))
    return str(caught.value)


def test_the_example() -> None:
    module = built(EXAMPLE)
    module.check((64, 32))
    assert parameter_counts(module)[0] == (3 * 9 + 1 + 2) * 16 + (144 + 1 + 2) * 32 + 48 * 9 + 1
    assert (module.description.label, module.description.divisor) == ("my_net.py:Net", 2)
    again = parse_network(module.description.model_dump(), "a checkpoint")
    assert again == module.description


def test_channels_classes_and_arguments_are_handed_over(tmp_path: Path) -> None:
    layers = written(tmp_path, ONE, in_channels=1, classes=3, arguments={"width": 2})
    module = built(layers)
    assert module.body.convolution.weight.shape == (3, 1, 3, 3)
    assert module.description.activation == "softmax"
    given = written(tmp_path, ONE, classes=3, arguments={"classes": 4})
    with pytest.raises(InputError) as caught:
        built(given).check((8, 6))
    assert "its output is (1, 4, 6, 8) for an input (1, 3, 6, 8)" in str(caught.value)
    assert "the shape (1, 3, 6, 8)" in str(caught.value)


def test_a_class_that_takes_no_names_is_called_with_its_arguments_alone(tmp_path: Path) -> None:
    code = HEAD + "class Net(nn.Identity):\n    def __init__(self):\n        super().__init__()\n"
    built(written(tmp_path, code, in_channels=1)).check((8, 6))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ONE.replace("return self.conv", "return self.vonc"), ("net.py, line 8: ", "no attribute")),
        (ONE.replace("width - 1)", "widht)"), ("net.py, line 6: NameError: ", "'widht'")),
        (ONE.replace("return self", "return (self"), ("net.py, line 8: ", "never closed")),
        ("import no_such_package\n" + ONE, ("net.py, line 1: ModuleNotFoundError",)),
        (ONE.replace("class Net", "class Nett"), ("has no class 'Net'; did you mean 'Nett'?",)),
        (
            ONE.replace("nn.Module", "object").replace("super().__init__()", "pass"),
            ("not a torch",),
        ),
        (
            ONE.replace("return self.convolution(x)", "return self.convolution(x)[..., ::2, ::2]"),
            ("its output is (1, 1, 3, 4) for an input (1, 3, 6, 8)", "the shape (1, 1, 6, 8)"),
        ),
        (ONE.replace("return self.convolution(x)", "return {'out': x}"), ("its output is dict",)),
    ],
)
def test_faults_of_the_code_are_told_with_their_line(
    tmp_path: Path, code: str, expected: tuple[str, ...]
) -> None:
    told = refusal(tmp_path, code)
    assert all(part in told for part in expected), told


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    assert "unexpected keyword argument 'widht'" in refusal(tmp_path, ONE, arguments={"widht": 2})


def test_nothing_runs_without_consent(tmp_path: Path) -> None:
    layers = written(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n{ONE}")
    with pytest.raises(InputError, match=r"the network is code, in .*net.py, and nobody has said"):
        build(read_network(layers), folder=tmp_path)
    assert not (tmp_path / "ran").exists()
    built(layers)
    assert (tmp_path / "ran").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    layers = written(tmp_path, ONE)
    (tmp_path / "net.py").unlink()
    with pytest.raises(InputError, match=r"there is no file '.*net.py'"):
        module_file(json.loads(layers.read_text()), layers)
    with pytest.raises(InputError, match=r"there is no file '.*net.py'"):
        built(layers)


def test_describe_does_not_run_it(tmp_path: Path, python: Callable[..., Any]) -> None:
    layers = written(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n{ONE}")
    ended = python("-m", "trainer", "--describe", str(layers))
    assert json.loads(ended.stdout) == {
        "name": "net.py:Net",
        "parameters": None,
        "trainable_parameters": None,
        "input_shape": [3, None, None],
        "output_shape": [1, None, None],
        "operations": None,
        "divisor": 1,
        "weights": None,
    }
    assert not (tmp_path / "ran").exists()


def test_a_run_keeps_the_code_beside_its_checkpoints(
    tmp_path: Path, train: Callable[..., Ended], configuration: Callable[..., Any]
) -> None:
    layers = str(written(tmp_path, ONE))
    ended = train(configuration(layers=layers, num_epochs=2))
    assert ended.code == 0, ended.err
    checkpoints = ended.folder / "checkpoints"
    assert (checkpoints / "net.py").read_text() == ONE
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(checkpoints, elsewhere)
    load = {"load": str(elsewhere / "best.pt")}
    no_training = {"input_path": None, "target_path": None}
    use = configuration(checkpoints=load, layers=None, data=no_training)
    refused = train(use, "refused")
    assert refused.code == 2 and "--trust-code" in refused.err
    again = train(use, "again", "--trust-code")
    assert again.code == 0, again.err
    assert again.result["evaluation"]["accuracy"] == max(e["accuracy"] for e in ended.epochs)
    (elsewhere / "net.py").unlink()
    without = train(use, "without", "--trust-code")
    assert without.code == 2 and "there is no file" in without.err


def test_an_error_in_the_midst_of_training_is_the_codes(
    tmp_path: Path, train: Callable[..., Ended], configuration: Callable[..., Any]
) -> None:
    code = ONE.replace(
        "return self", "if self.training: raise KeyError('mine')\n        return self"
    )
    ended = train(configuration(layers=str(written(tmp_path, code)), num_epochs=1))
    assert ended.code == 2
    assert "net.py, line 8: KeyError: 'mine'" in ended.err and "Traceback" not in ended.err


def test_other_channels_than_images_have_are_refused(
    tmp_path: Path, train: Callable[..., Ended], configuration: Callable[..., Any]
) -> None:
    ended = train(configuration(layers=str(written(tmp_path, ONE, in_channels=2))))
    assert ended.code == 2 and "the network takes 2 channels, images have 1 or 3" in ended.err


def study(here: Path, *options: str) -> Any:
    fast = ("--threads", "1", "--loss", "bce", "--lr-range-max", "0.1")
    return driver(here, "--data", "data", *SMALL, *fast, *options)


def test_code_in_a_folder_beside_and_code_that_was_changed(
    tmp_path: Path, train: Callable[..., Ended], configuration: Callable[..., Any]
) -> None:
    layers = written(tmp_path, ONE)
    (tmp_path / "nets").mkdir()
    shutil.move(tmp_path / "net.py", tmp_path / "nets/net.py")
    content = json.loads(layers.read_text())
    layers.write_text(json.dumps({**content, "module": "nets/net.py:Net"}))
    ended = train(configuration(layers=str(layers), num_epochs=1))
    assert ended.code == 0, ended.err
    best = ended.folder / "checkpoints/best.pt"
    assert load_model(best, "cpu", trust_code=True).network.description.module == "net.py:Net"
    (best.parent / "net.py").write_text(ONE + "\n# changed\n")
    with pytest.raises(InputError, match=r"was trained with another net\.py"):
        load_model(best, "cpu", trust_code=True)


@pytest.mark.slow
def test_a_study_of_the_example(tmp_path: Path) -> None:
    """The README's line; then the model stands alone, and a changed file is another network."""
    make_data(tmp_path / "data")
    for name in ("my_net.json", "my_net.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    name = ("--study-name", "s")
    ended = study(tmp_path, "--layers", "my_net.json", "--num-trials", "2", *name)
    assert ended.returncode == 0, ended.stderr
    assert "your own code; its size is known when a trial runs" in " ".join(
        ended.stdout.replace("|", " ").split()
    )
    run_folder = tmp_path / "runs/s/trial-0000"
    assert (run_folder / "my_net.py").read_bytes() == (tmp_path / "my_net.py").read_bytes()
    assert (tmp_path / "best_model/my_net.py").exists()
    origin = json.loads((tmp_path / "best_model/best_model.json").read_text())
    assert origin["value"] > 0.6 and origin["test"]["accuracy"] > 0.6
    (tmp_path / "my_net.py").write_text((tmp_path / "my_net.py").read_text() + "\n# changed\n")
    changed = study(tmp_path, "--num-trials", "3", *name, "--resume")
    assert changed.returncode == 2
    assert "the network in --layers is not the same any more" in " ".join(changed.stderr.split())


@pytest.mark.slow
def test_a_fault_in_the_code_ends_a_study_at_its_first_trial(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    written(tmp_path, ONE.replace("return self.conv", "return self.vonc"))
    ended = study(tmp_path, "--layers", "net.json", "--num-trials", "2")
    assert ended.returncode == 2
    told = " ".join(ended.stderr.split())
    assert "net.py, line 8: AttributeError" in told and "Traceback" not in told
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_a_study_of_the_monai_example(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    longer = ("--num-trials", "1", "--num-epochs", "8")
    ended = study(tmp_path, "--layers", "./layers/segresnet.json", *longer)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "list_acc.json").read_text())[0]["max_acc"] > 0.5


def test_the_first_of_several_outputs_is_taken(tmp_path: Path) -> None:
    code = ONE.replace("return self.convolution(x)", "return [self.convolution(x), x]")
    module = built(written(tmp_path, code))
    x = torch.rand(1, 3, SIDE, SIDE)
    assert torch.equal(module(x), module.body(x)[0])
