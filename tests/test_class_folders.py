"""Class folders as a data set is published, written in the standard layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import studies
from trainer.data.folders import find_layout, pair
from trainer.data.images import read_mask
from trainer.errors import InputError
from trainer.prepare.__main__ import main
from trainer.prepare.class_folders import drawn, new_names, prepare

PUBLISHED = studies.ROOT.parent / "shared/data"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """benign (0) … (13) and normal (14) … (17) with masks beside them."""
    return studies.make_class_folders(tmp_path / "published")


def test_it_is_the_standard_layout(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = source.parent / "data"
    assert main(["busi", str(source), str(target)]) == 0
    told = capsys.readouterr().out
    assert "Wrote 14 training and 4 test images" in told
    assert "benign: 11 training, 3 test" in told and "normal: 3 training, 1 test" in told
    assert "The masks of 1 images were several files" in told
    layout = find_layout(target)
    assert layout.test_inputs and layout.test_targets
    pairs, faults = pair(layout.inputs, layout.targets)
    tested, more = pair(layout.test_inputs, layout.test_targets)
    assert not faults + more and (len(pairs), len(tested)) == (14, 4)
    for one in pairs + tested:
        assert [path.name for path in one.masks] == [one.name]
        mask = Image.open(one.masks[0])
        assert mask.mode == "L" and set(np.unique(mask)) <= {0, 255}
    record = json.loads((target / "prepared.json").read_text())
    assert (record["seed"], record["test_share"]) == (0, 0.2) and len(record["images"]) == 18
    for item in record["images"]:
        before, after = source / item["source"], target / item["part"] / "inputs" / item["name"]
        assert before.read_bytes() == after.read_bytes(), "copied without loss"
        united = np.max([read_mask(source / mask) for mask in item["masks"]], axis=0)
        np.testing.assert_array_equal(
            read_mask(target / item["part"] / "targets" / item["name"]), united
        )
    first = next(item for item in record["images"] if item["name"] == "benign_000.png")
    assert first["source"] == "benign/benign (0).png" and len(first["masks"]) == 2


def parts(folder: Path) -> dict[str, str]:
    images = json.loads((folder / "prepared.json").read_text())["images"]
    return {item["name"]: item["part"] for item in images}


def test_the_seed_draws_the_split(source: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(source, source.parent / name, 0.3, seed)
    a, b, c = (parts(source.parent / name) for name in "abc")
    assert a == b != c
    assert [list(p.values()).count("test") for p in (a, c)] == [5, 5]


def test_near_identical_images_stay_in_one_part(source: Path) -> None:
    """Whatever the seed; also across classes."""
    image = np.asarray(Image.open(source / "benign/benign (3).png"))
    Image.fromarray(np.clip(image + 2.0, 0, 255).astype(np.uint8)).save(
        source / "normal/normal (99).png"
    )
    Image.fromarray(np.zeros_like(image)).save(source / "normal/normal (99)_mask.png")
    seen = set()
    for seed in range(12):
        made = prepare(source, source.parent / f"data{seed}", 0.3, seed)
        assert made.together == [["benign_003.png", "normal_099.png"]]
        of = parts(source.parent / f"data{seed}")
        assert of["benign_003.png"] == of["normal_099.png"]
        seen.add(of["benign_003.png"])
    assert seen == {"train", "test"}


def test_a_group_too_large_for_its_share_trains() -> None:
    groups = [[0, 1, 2, 3, 4, 5, 6, 7], [8], [9]]
    assert drawn(groups, ["a"] * 10, 0.2, 0) == {8, 9}


def test_names_of_other_trees(tmp_path: Path) -> None:
    def names(*files: str) -> list[str]:
        for name in files:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            for file in (path, path.with_name(f"{path.stem}_mask.png")):
                Image.new("L", (8, 8)).save(file)
        return new_names(pair(tmp_path, tmp_path)[0], tmp_path)

    assert names("polyps/IMG_7.png", "polyps/IMG_12.JPG") == [
        f"polyps_{n}" for n in ("012.jpg", "007.png")
    ]
    assert names("clean/x1y.png", "clean/x1z.png")[:2] == ["clean_001.png", "clean_002.png"]
    assert names("clean/one.png")[:3] == ["clean_001.png", "clean_002.png", "clean_003.png"]
    assert "big_old_004.png" in names("big/old/4.png")


def test_all_faults_together(source: Path) -> None:
    (source / "benign/benign (5)_mask.png").unlink()
    (source / "benign/benign (6).png").write_bytes(b"no image")
    Image.new("L", (5, 5)).save(source / "normal/normal (15)_mask.png")
    with pytest.raises(InputError) as caught:
        prepare(source, source.parent / "data")
    told = str(caught.value)
    assert "3 faults" in told
    for part in ("benign (5).png: has no mask", "cannot be read as an image", "is 5x5 pixels, its"):
        assert part in told
    assert not (source.parent / "data").exists()


def test_what_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = source.parent / "there"
    there.mkdir()
    (there / "mine.txt").write_text("precious")
    standard = studies.make_data(source.parent / "standard")
    new = str(source.parent / "new")
    for arguments, expected in (
        ([str(source), str(there)], "the folder is not empty"),
        ([str(standard), new], "nothing is to be prepared"),
        ([str(source), str(source / "data")], "lies in"),
        ([str(source), new, "--test-share", "1"], "between 0 and 1"),
        ([str(source), new, "--test-share", "0.01"], "leaves no image for a part"),
        ([str(source), new, "--seed", "-1"], "0 or more"),
        ([str(source / "nowhere"), new], "there is no such data folder"),
    ):
        assert main(["busi", *arguments]) == 2
        assert expected in capsys.readouterr().err
    assert [path.name for path in there.iterdir()] == ["mine.txt"]
    assert not Path(new).exists()


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published images are not here")
def test_the_published_breast_images(tmp_path: Path) -> None:
    """Names and masks are those of the copy in the standard layout that others made."""
    made = prepare(PUBLISHED / "busi_as_published", tmp_path / "data")
    assert made.parts == (13, 2) and made.united == 9
    compared = 0
    for mask in tmp_path.glob("data/*/targets/*.png"):
        for other in (PUBLISHED / "busi").glob(f"*/targets/{mask.name}"):
            np.testing.assert_array_equal(read_mask(mask), read_mask(other))
            compared += 1
    assert compared >= 10
