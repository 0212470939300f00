"""--config and --space: what is not searched, and any keys that are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.space_file import read_space
from tests import studies
from tests.test_study import data, improving, listed, study, tmp_path, trials  # noqa: F401
from trainer.config.override import assign, parsed, value_at
from trainer.errors import InputError

Study = Callable[..., tuple[int, str]]


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def config_of(here: Path, trial: int = 0) -> dict[str, Any]:
    text = (here / f"runs/s/trial-{trial:04d}/config.json").read_text()
    content: dict[str, Any] = json.loads(text)["neural_network"]
    return content


def base(**keys: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "num_epochs": 3,
        "data": {
            "batch_size": 5,
            "transforms": [{"resize": [24, 16]}, {"random_rotate": 45}],
            "input_path": "elsewhere/",
        },
        "optimizer": {"type": "sgd", "momentum": 0.8, "learning_rate": 0.004},
        "loss": {"function": "jaccard", "eps": 0.5},
        "checkpoints": {"load": "none.pt"},
    }
    return {"neural_network": content | keys}


def test_the_base_gives_what_is_not_searched(study: Study, tmp_path: Path) -> None:  # noqa: F811
    file = write(tmp_path / "base.json", base())
    code, out = study(improving, "--num-trials", "2", "--config", file)
    assert code == 0, out
    config = config_of(tmp_path)
    assert config["num_epochs"] == 3 and config["data"]["batch_size"] == 5
    assert config["data"]["transforms"] == base()["neural_network"]["data"]["transforms"]
    assert config["optimizer"] == {"type": "sgd", "momentum": 0.8, "learning_rate": 0.004}
    assert config["loss"] == {"function": "jaccard", "eps": 0.5}
    assert "elsewhere" not in config["data"]["input_path"] and "checkpoints" not in config
    assert f"Base configuration {file}" in " ".join(out.replace("|", " ").split())
    assert config_of(tmp_path, 1)["loss"]["eps"] == 0.5


def test_what_is_typed_wins_over_the_base(study: Study, tmp_path: Path) -> None:  # noqa: F811
    file = write(tmp_path / "base.json", base())
    more = ("--config", file, "--num-epochs", "2", "--batch-size", "3", "-o", "adam", "-l", "bce")
    assert study(improving, "--num-trials", "1", *more)[0] == 0
    config = config_of(tmp_path)
    assert config["num_epochs"] == 2 and config["data"]["batch_size"] == 3
    assert config["optimizer"]["type"] == "adam" and config["loss"]["function"] == "bce"


def test_a_choice_may_be_a_list_or_an_object(study: Study, tmp_path: Path) -> None:  # noqa: F811
    sizes = [[{"resize": [24, 16]}], [{"resize": [16, 16]}, {"random_rotate": 5}]]
    space = {"grid": True, "parameters": {"data.transforms": sizes, "optimizer.type": ["adam"]}}
    file = write(tmp_path / "base.json", base())
    given = ("--config", file, "--space", write(tmp_path / "space.json", space))
    code, out = study(improving, *given)
    assert code == 0, out
    assert [config_of(tmp_path, n)["data"]["transforms"] for n in (0, 1)] == sizes
    assert [one["parameters"]["data.transforms"] for one in listed(tmp_path)] == [
        json.dumps(one) for one in sizes
    ]


def test_a_choice_may_be_a_whole_section(study: Study, tmp_path: Path) -> None:  # noqa: F811
    choices = [{"type": "sgd", "learning_rate": 0.01}, {"type": "adam", "learning_rate": 0.001}]
    space = {"grid": True, "parameters": {"optimizer": choices}}
    file = write(tmp_path / "base.json", base())
    code, out = study(improving, "--config", file, "--space", write(tmp_path / "s.json", space))
    assert code == 0, out
    assert [config_of(tmp_path, n)["optimizer"] for n in (0, 1)] == choices


def test_the_best_rate_of_a_space_may_be_at_its_edge(study: Study, tmp_path: Path) -> None:  # noqa: F811
    base_file = write(tmp_path / "base.json", base())
    for name, rates, told in (
        ("a", [0.001, 0.01], "yes, the "),
        ("b", [0.001], "its rate is not searched"),
    ):
        space = {"grid": True, "parameters": {"optimizer.learning_rate": rates}}
        file = write(tmp_path / f"{name}.json", space)
        given = ("--config", base_file, "--space", file, "--study-name", name)
        code, out = study(improving, *given)
        assert code == 0, out
        line = next(one for one in out.splitlines() if "Best rate at an edge" in one)
        assert told in line, line


def test_a_base_that_the_trainer_would_refuse_is_refused_at_once(
    study: Study,  # noqa: F811
    tmp_path: Path,  # noqa: F811
) -> None:
    wrong = base()
    wrong["neural_network"]["data"]["batchsize"] = 3
    code, out = study(improving, "--num-trials", "1", "--config", write(tmp_path / "b.json", wrong))
    assert code == 2 and "--config" in out and "did you mean 'batch_size'" in out
    assert not (tmp_path / "runs").exists()


GRID = {
    "grid": True,
    "parameters": {
        "optimizer.learning_rate": [0.001, 0.01],
        "layers.depth": [2, 3],
        "optimizer.amsgrad": [True, False],
    },
}


def test_a_grid_runs_each_point_once_and_tells_the_best(study: Study, tmp_path: Path) -> None:  # noqa: F811
    keys = {"optimizer": {"type": "adam"}, "loss": {"function": "bce"}}
    options = ("--config", write(tmp_path / "base.json", base(**keys)))
    options += ("--space", write(tmp_path / "space.json", GRID))
    code, out = study(improving, *options)
    assert code == 0, out
    points = [tuple(trial.params.values()) for trial in trials(tmp_path)]
    assert len(points) == 8 == len(set(points))
    assert points[0] == (0.001, 2, True) and points[1] == (0.001, 2, False)
    depths = set()
    for number in range(8):
        config = config_of(tmp_path, number)
        params = trials(tmp_path)[number].params
        layers = json.loads((tmp_path / f"runs/s/trial-{number:04d}/layers.json").read_text())
        assert config["optimizer"]["amsgrad"] == params["optimizer.amsgrad"]
        assert layers["depth"] == params["layers.depth"]
        depths.add(layers["depth"])
    assert depths == {2, 3}
    best = max(listed(tmp_path), key=lambda one: one["value"] or 0)
    assert best["lr"] == 0.01 and best["parameters"]["optimizer.learning_rate"] == 0.01
    model = json.loads((tmp_path / "best_model/best_model.json").read_text())
    assert model["network"]["depth"] == best["parameters"]["layers.depth"]


def test_an_interrupted_grid_goes_on_with_the_points_that_are_left(
    study: Study,  # noqa: F811
    tmp_path: Path,  # noqa: F811
) -> None:
    space = write(tmp_path / "space.json", GRID)
    keys = {"optimizer": {"type": "adam"}, "loss": {"function": "bce"}}
    options = ("--config", write(tmp_path / "base.json", base(**keys)), "--space", space)
    assert study(improving, *options, "--num-trials", "3")[0] == 0
    code, out = study(improving, "--resume", "--num-trials", "8")
    assert code == 0, out
    points = [tuple(trial.params.values()) for trial in trials(tmp_path)]
    assert len(points) == 8 == len(set(points))
    changed = {**GRID, "parameters": {**GRID["parameters"], "layers.depth": [2, 4]}}  # type: ignore[dict-item]
    write(tmp_path / "space.json", changed)
    code, out = study(improving, "--resume", "--num-trials", "8")
    assert code == 2 and "space" in out


def test_ranges_are_searched_and_trial_0_is_the_base(study: Study, tmp_path: Path) -> None:  # noqa: F811
    space = {
        "parameters": {
            "optimizer.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
            "data.batch_size": {"low": 2, "high": 6, "step": 2},
            "loss.function": ["dice", "jaccard"],
            "data.transforms[1].random_rotate": {"low": 0.5, "high": 60.0},
        }
    }
    options = ("--config", write(tmp_path / "base.json", base()))
    options += ("--space", write(tmp_path / "space.json", space), "--num-trials", "5")
    code, out = study(improving, *options)
    assert code == 0, out
    first = trials(tmp_path)[0].params
    assert first["optimizer.learning_rate"] == 0.004 and first["loss.function"] == "jaccard"
    assert first["data.batch_size"] == 2  # 5 lies between the steps, so it begins at the low end
    for number, trial in enumerate(trials(tmp_path)):
        config = config_of(tmp_path, number)
        assert config["data"]["batch_size"] == trial.params["data.batch_size"] in (2, 4, 6)
        turn = config["data"]["transforms"][1]["random_rotate"]
        assert turn == trial.params["data.transforms[1].random_rotate"]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"parameter": {}}, "did you mean 'parameters'"),
        ({"parameters": {}}, "parameters"),
        ({"parameters": {"loss.function": []}}, "loss.function"),
        ({"parameters": {"loss.function": {"low": 2, "high": 1}}}, "low is 2, high 1"),
        ({"parameters": {"a.b": {"low": 0, "high": 1, "log": True}}}, "log needs a low above 0"),
        ({"grid": True, "parameters": {"a.b": {"low": 0, "high": 1}}}, "a grid has no ranges"),
    ],
)
def test_a_wrong_space_is_told(tmp_path: Path, space: Any, told: str) -> None:  # noqa: F811
    with pytest.raises(InputError, match=told):
        read_space(Path(write(tmp_path / "space.json", space)))


@pytest.mark.parametrize(
    ("key", "values", "told"),
    [
        ("optimizer.learningrate", [0.1], "did you mean 'learning_rate'"),
        ("optimizer.type", ["adam", "adm"], "did you mean 'adam'"),
        ("layers.deepness", [3], "unknown key 'deepness'"),
        ("layers.depth", [2, 40], "depth"),
    ],
)
def test_a_space_of_what_is_no_key_is_refused_before_a_trial(
    study: Study,  # noqa: F811
    tmp_path: Path,  # noqa: F811
    key: str,
    values: list[Any],
    told: str,
) -> None:
    space = write(tmp_path / "space.json", {"parameters": {key: values}})
    options = ("--config", write(tmp_path / "base.json", base()), "--space", space)
    code, out = study(improving, "--num-trials", "2", *options)
    assert code == 2 and f"--space, {key}" in out and told in out, out
    assert not (tmp_path / "runs").exists()


def test_more_trials_than_a_grid_has_points_are_refused(study: Study, tmp_path: Path) -> None:  # noqa: F811
    options = ("--config", write(tmp_path / "base.json", base()))
    options += ("--space", write(tmp_path / "space.json", GRID), "--num-trials", "9")
    code, out = study(improving, *options)
    assert code == 2 and "9 trials of a grid of 8" in out


def test_keys_are_set_by_their_place() -> None:
    content: dict[str, Any] = {"a": {"b": [{"c": 1}, {"c": 2}]}, "empty": None}
    assign(content, "a.b[1].c", 5)
    assign(content, "empty.made.here", True)
    assert content == {"a": {"b": [{"c": 1}, {"c": 5}]}, "empty": {"made": {"here": True}}}
    assert value_at(content, "a.b[1].c") == 5 and value_at(content, "a.b[7].c") is None
    for key in ("a.b[2].c", "a.b[0].c.d", "a..b", "a.b[x]"):
        with pytest.raises(InputError):
            assign(content, key, 1)
    assert parsed("a.b=[1, 2]") == ("a.b", [1, 2]) and parsed("a=text") == ("a", "text")
    with pytest.raises(InputError, match="KEY=VALUE"):
        parsed("text")


def test_images_keep_their_own_studies(study: Study, tmp_path: Path) -> None:  # noqa: F811
    """Without a base nothing changes: the published space, its order and its configuration."""
    assert study(improving, "--num-trials", "1", "--num-epochs", "2")[0] == 0
    assert list(trials(tmp_path)[0].params) == ["optimizer", "learning_rate", "loss"]
    assert listed(tmp_path)[0]["parameters"] is None
    assert studies.SMALL


def test_best_is_by_the_study_s_metric_in_the_trainer_too(study: Study, tmp_path: Path) -> None:  # noqa: F811
    file = write(tmp_path / "base.json", base(evaluation={"metric": "iou"}))
    assert study(improving, "--num-trials", "1", "--config", file)[0] == 0
    assert config_of(tmp_path)["evaluation"]["metric"] == "iou"
    assert listed(tmp_path)[0]["metric"] == "iou"
    more = ("--metric", "accuracy", "--study-name", "t")
    assert study(improving, "--num-trials", "1", "--config", file, *more)[0] == 0
    config = json.loads((tmp_path / "runs/t/trial-0000/config.json").read_text())
    assert config["neural_network"]["evaluation"]["metric"] == "accuracy"
