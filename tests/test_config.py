"""The configuration language: what parses, the defaults, and the words of every refusal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.config import Config, Section, Transform, load_config, parse_config
from trainer.errors import InputError

PUBLISHED = Path(__file__).resolve().parents[2] / "shared/data/configs"
"""The configurations that the published system ships, where this machine has them."""

TRIAL: dict[str, Any] = {
    "outfile": "out.txt",
    "num_epochs": 50,
    "layers": "./layers.json",
    "checkpoints": {"save": "temp_model/", "interval": 1, "load": "./model.h5"},
    "data": {
        "type": "images",
        "input_path": "./data/train/inputs/",
        "target_path": "./data/train/targets/",
        "test_input_path": "./data/test/inputs/",
        "test_target_path": "./data/test/targets/",
        "batch_size": 32,
        "test_batch_size": 64,
        "preload": True,
        "target_grayscale": True,
        "target_is_mask": True,
        "transforms": [{"resize": [256, 256]}],
    },
    "optimizer": {
        "type": "adam",
        "learning_rate": 0.0009969,
        "lr_scheduler": {"type": "Exponential", "gamma": 0.95, "verbose": True},
    },
    "loss": {"function": "bce", "source": "sigmoid"},
}
"""What the published driver writes for a trial."""


def trial(**sections: Any) -> dict[str, Any]:
    """TRIAL with sections changed: a dict adds keys to one, anything else replaces it."""
    content = json.loads(json.dumps(TRIAL))
    for key, value in sections.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            content[key].update(value)
        else:
            content[key] = value
    return {"neural_network": content}


def refusal(content: Any) -> str:
    with pytest.raises(InputError) as caught:
        parse_config(content, "c.json")
    return str(caught.value)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published configurations are not here")
@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.json")), ids=lambda path: path.stem)
def test_published_configurations(path: Path) -> None:
    content = json.loads(path.read_text())["neural_network"]
    config = load_config(path)
    assert config.layers == content["layers"]
    assert config.trains == ("input_path" in content["data"])
    assert config.model_dump(exclude_unset=True)["data"].keys() == content["data"].keys()


def test_a_trial_of_the_published_driver() -> None:
    config = parse_config(trial())
    assert (config.num_epochs, config.data.batch_size, config.data.test_batch_size) == (50, 32, 64)
    assert config.optimizer and config.optimizer.learning_rate == 0.0009969
    assert config.optimizer.lr_scheduler and config.optimizer.lr_scheduler.type == "exponential"
    assert config.data.transforms[0].name == "resize"
    assert config.data.transforms[0].value == [256, 256]


def test_defaults() -> None:
    content = {
        "layers": "l.json",
        "data": {"type": "images", "input_path": "a", "target_path": "b"},
        "optimizer": {"type": "AdamW", "lr_scheduler": {"type": "Exponential"}},
        "loss": {"function": "Dice"},
    }
    config = parse_config({"neural_network": content})
    assert config.num_epochs == 1 and config.outfile is None
    assert (config.data.batch_size, config.data.test_batch_size) == (64, 64)
    assert config.checkpoints.interval == 1 and config.checkpoints.save is None
    assert config.optimizer and config.loss
    assert config.optimizer.learning_rate == 0.01
    assert config.optimizer.weight_decay == 0
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.999)
    assert (config.optimizer.eps, config.optimizer.alpha) == (1e-8, 0.99)
    assert config.optimizer.lr_scheduler and config.optimizer.lr_scheduler.verbose
    assert config.loss.eps == 1e-7


@pytest.mark.parametrize("name", ["sgd", "SGD", "Adam", "ADAMW", "RMSprop", "rmsProp", "Adagrad"])
def test_optimizer_in_any_case(name: str) -> None:
    config = parse_config(trial(optimizer={"type": name}))
    assert config.optimizer and config.optimizer.type == name.lower()


@pytest.mark.parametrize("name", ["bce", "BCE", "Dice", "DICE"])
def test_loss_in_any_case(name: str) -> None:
    config = parse_config(trial(loss={"function": name}))
    assert config.loss and config.loss.function == name.lower()


@pytest.mark.parametrize(
    ("sections", "where", "hint"),
    [
        ({"num_epoch": 3}, "c.json, num_epoch", "num_epochs"),
        ({"data": {"batchsize": 3}}, "c.json, data.batchsize", "batch_size"),
        ({"checkpoints": {"lod": "x"}}, "c.json, checkpoints.lod", "load"),
        ({"optimizer": {"learning_rat": 1.0}}, "c.json, optimizer.learning_rat", "learning_rate"),
        ({"optimizer": {"lr_scheduler": {"gama": 0.9}}}, "optimizer.lr_scheduler.gama", "gamma"),
        ({"loss": {"functoin": "bce"}}, "c.json, loss.functoin", "function"),
        ({"data": {"transforms": [{"resise": [8, 8]}]}}, "data.transforms[0].resise", "resize"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest(sections: Any, where: str, hint: str) -> None:
    text = refusal(trial(**sections))
    assert where in text
    assert f"did you mean '{hint}'?" in text


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"optimizer": {"type": "adma"}}, "unknown name 'adma'; did you mean 'adam'?"),
        ({"loss": {"function": "dise"}}, "unknown name 'dise'; did you mean 'dice'?"),
        ({"loss": {"function": "yolov3"}}, "'yolov3' is not in the scope"),
        ({"loss": {"function": "Poisson3D_pde"}}, "'Poisson3D_pde' is not in the scope"),
        ({"optimizer": {"lr_scheduler": {"type": "Stp"}}}, "'Stp'; did you mean 'step'"),
        ({"optimizer": {"lr_scheduler": {"type": "MultiStep"}}}, "MultiStep needs milestones"),
        ({"optimizer": {"type": "lamb", "amsgrad": True}}, "lamb has no amsgrad"),
        ({"data": {"type": "pde"}}, "'pde' is not in the scope"),
        ({"data": {"type": "numpy"}}, "transforms: numpy takes none"),
        ({"data": {"type": "labels"}}, "'labels' is a kind of targets"),
        ({"data": {"target_type": "hdf5"}}, "inputs are images and targets hdf5"),
        ({"data": {"transforms": [{"center_crop": None}]}}, "'center_crop' has no value"),
        ({"data": {"transforms": [{"convert_color": "BGR2RBG"}]}}, "did you mean 'BGR2RGB'?"),
        ({"data": {"transforms": [{"random_patches": {"number": 1}}]}}, "random_patches.size"),
        ({"loss": {"weight": [0.0, 0.0]}}, "no class counts"),
        ({"data": {"transforms": [{"normalize": {"std": 0.0}}]}}, "std is 0; accepted: above 0"),
        ({"data": {"transforms": [{}]}}, "a transform is an object with one key"),
        ({"data": {"transforms": [{"resize": [8]}]}}, "at least 2 items"),
        ({"data": {"transforms": [{"resize": [8, 0]}]}}, "greater than 0, found 0"),
        ({"data": {"transforms": [{"normalize": {"men": 1}}]}}, "'mean' or 'std', found 'men'"),
        ({"data": {"batch_size": "32"}}, "c.json, data.batch_size: Input should be a valid"),
        ({"data": {"batch_size": 0}}, "greater than or equal to 1, found 0"),
        ({"data": {"preload": "yes"}}, "data.preload: Input should be a valid boolean"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate: Input should be greater"),
        ({"optimizer": {"learning_rate": float("inf")}}, "learning_rate: Input should be"),
        ({"optimizer": {"type": 5}}, "5 is not a name"),
        ({"optimizer": {}, "loss": {"source": "relu"}}, "loss.source: Input should be 'sigmoid'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told(sections: Any, expected: str) -> None:
    assert expected in refusal(trial(**sections))


def test_every_fault_is_told_at_once() -> None:
    text = refusal(trial(num_epochs=0, loss={"function": "x"}, data={"colour": 1}))
    assert "3 faults" in text
    for where in ("c.json, num_epochs", "c.json, loss.function", "c.json, data.colour"):
        assert where in text


def test_known_keys_that_are_not_used_pass() -> None:
    unused = {
        "slicers": [{"sizes": [1, 2]}],
        "training_tag": "a",
        "testing_tag": "b",
        "bc_type": "x",
    }
    config = parse_config(
        trial(
            debug=True,
            debug_interval=3,
            data=unused,
            loss={"weight": None, "diffusion_coeff": 1.0},
            optimizer={"type": "sgd", "beta1": 0.5, "max_iterations": 9},
        )
    )
    assert config.data.slicers[0].sizes == [1, 2]


@pytest.mark.parametrize(
    ("slicer", "expected"),
    [
        ({}, "data.slicers[0].sizes: this key is missing"),
        ({"sizes": [4, 4], "strides": [4]}, "strides has 1 numbers, sizes has 2"),
        ({"sizes": [4, 4], "padding": [1, 1], "padded_sizes": [6, 6]}, "accepted: one of them"),
        ({"sizes": [4, 4], "padded_sizes": [3, 6]}, "padded_sizes are smaller than sizes"),
        ({"sizes": [4, 4, 4], "transpose": True}, "a flat block"),
        ({"sizes": [4, 0]}, "greater than 0, found 0"),
    ],
)
def test_a_slicer_that_cannot_be(slicer: dict[str, Any], expected: str) -> None:
    data = {"type": "hdf5", "transforms": [], "slicers": [slicer]}
    assert expected in refusal(trial(data=data))


@pytest.mark.parametrize("missing", ["layers", "optimizer", "loss"])
def test_training_needs_its_sections(missing: str) -> None:
    content = trial()
    del content["neural_network"][missing]
    assert f"training needs {missing}" in refusal(content)


def test_training_needs_targets() -> None:
    content = trial()
    del content["neural_network"]["data"]["target_path"]
    assert "training needs data.target_path" in refusal(content)


def test_a_run_needs_something_to_do() -> None:
    content = trial()
    for key in ("input_path", "test_input_path"):
        del content["neural_network"]["data"][key]
    assert "neither input_path nor test_input_path" in refusal(content)


def test_evaluation_needs_a_checkpoint_and_nothing_else() -> None:
    sections: dict[str, Any] = {"data": {"type": "images", "test_input_path": "a"}}
    assert "no checkpoint is loaded" in refusal({"neural_network": sections})
    sections["checkpoints"] = {"load": "best.pt"}
    config = parse_config({"neural_network": sections})
    assert not config.trains and config.layers is None


@pytest.mark.parametrize("content", [[], {}, {"neural_network": []}, "x", None])
def test_one_object_neural_network(content: Any) -> None:
    assert "no object 'neural_network'" in refusal(content)


def test_half_a_character_is_refused() -> None:
    assert r"c.json: holds '\ud800', which is no character" in refusal(
        trial(loss={"function": "\ud800"})
    )


def test_nothing_stands_beside_neural_network() -> None:
    assert "unknown key 'optimizer'" in refusal({**trial(), "optimizer": {}})


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"neural_network": {"num_epochs": 1, "num_epochs": 2}}')
    with pytest.raises(InputError, match="the key 'num_epochs' stands twice"):
        load_config(path)


def test_what_is_not_json_is_told_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{\n  "neural_network": {\n    "num_epochs": 1\n    "seed": 2\n  }\n}')
    with pytest.raises(InputError, match="line 4, column 5") as caught:
        load_config(path)
    assert "missing comma" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{"])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"c\.json"):
        load_config(path)


def test_a_byte_order_mark_passes(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(trial()).encode())
    assert load_config(path).num_epochs == 50


@pytest.mark.parametrize("name", ["none.json", "."])
def test_no_such_configuration(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / name)
    assert str(tmp_path) in str(caught.value)


def test_every_key_has_its_meaning_beside_it() -> None:
    def sections(of: type[Section]) -> list[type[Section]]:
        return [of, *(deeper for below in of.__subclasses__() for deeper in sections(below))]

    keys = [
        (section.__name__, name, field.description)
        for section in sections(Section)
        for name, field in section.model_fields.items()
    ]
    assert len(keys) > 70
    assert [key[:2] for key in keys if not key[2]] == []
    assert {Config.__name__, Transform.__name__} < {key[0] for key in keys}


def test_the_host_half_does_not_import_torch(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    modules = (
        "trainer.config trainer.events trainer.errors trainer.metrics trainer.stopping "
        "trainer.console trainer.cases trainer.data.split trainer.data.masks trainer.data.folders "
        "trainer.data.images trainer.networks.description trainer.networks.weights trainer.__main__"
    )
    code = f"import sys, {', '.join(modules.split())}; print('torch' in sys.modules)"
    done = python("-c", code)
    assert done.stdout == "False\n", done.stderr
