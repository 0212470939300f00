"""`check`: thirty kinds of faults planted into one copied data set, all found in one run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from study.commands.check import Problem, find_problems, meaning_of, run_check
from study.dataset import read_dataset, scan
from tests import studies
from trainer.data.labels import MaskClass
from trainer.errors import InputError
from trainer.prepare.demo import make_demo

BUSI = studies.ROOT.parent / "shared/data/busi"
Bytes = np.ndarray


def grey(path: Path) -> Bytes:
    return np.asarray(Image.open(path).convert("L"))


def save(array: Bytes, path: Path, **more: object) -> None:
    Image.fromarray(array).save(path, **more)


def shrunk(image: Path, mask: Path, size: tuple[int, int]) -> None:
    for path in (image, mask):
        Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)


def two_pages(image: Path) -> None:
    page = Image.open(image)
    page.save(image.with_suffix(".tif"), save_all=True, append_images=[page.copy()])
    image.unlink()


def turned(image: Path) -> None:
    told = Image.Exif()
    told[0x0112] = 3
    Image.open(image).convert("L").save(image.with_suffix(".jpg"), exif=told)
    image.unlink()


def lossy(mask: Path) -> None:
    Image.open(mask).convert("L").save(mask.with_suffix(".jpg"), quality=60)
    mask.unlink()


def disguised(image: Path) -> None:
    Image.open(image).convert("L").save(image.with_suffix(".tmp"), "JPEG")
    os.replace(image.with_suffix(".tmp"), image)


def extra_class(mask: Path) -> None:
    array = grey(mask).copy()
    array[:20, :20] = 128
    save(array, mask)


def speck(mask: Path) -> None:
    array = np.zeros_like(grey(mask))
    array[5:7, 5:7] = 255
    save(array, mask)


def two_colours(mask: Path) -> None:
    array = np.zeros((*grey(mask).shape, 3), np.uint8)
    array[20:60, 20:60], array[:20, :40] = (255, 0, 0), (0, 255, 0)
    save(array, mask)


def tinted(image: Path) -> None:
    array = np.stack([grey(image)] * 3, axis=2)
    array[..., 0] //= 2
    save(array, image)


def see_through(image: Path) -> None:
    array = grey(image)
    save(np.dstack([array] * 3 + [np.full_like(array, 200)]), image)


def copied(image: Path, mask: Path, name: str, moved: int = 0) -> None:
    shutil.copy(image, image.with_name(f"{name}.png"))
    save(np.roll(grey(mask), moved, axis=1), mask.with_name(f"{name}.png"))


def into_test(image: Path, mask: Path, brighter: int, name: str) -> None:
    test = image.parents[2] / "test"
    array = np.clip(grey(image).astype(int) + brighter, 0, 255).astype(np.uint8)
    if brighter:
        save(array, test / "inputs" / name)
    else:
        shutil.copy(image, test / "inputs" / name)
    shutil.copy(mask, test / "targets" / name)


def dangling(image: Path) -> None:
    image.unlink()
    image.symlink_to("/nowhere/at/all.png")


PLANTS: dict[str, Callable[[Path, Path], object]] = {
    "image without a mask": lambda i, m: m.unlink(),
    "mask without an image": lambda i, m: i.unlink(),
    "file that cannot be read": lambda i, m: i.write_bytes(i.read_bytes()[:500]),
    "mask of another size than its image": lambda i, m: save(grey(m)[:50, :60], m),
    "more than 8 bits a channel": lambda i, m: save(grey(i).astype(np.uint16) * 200, i),
    "DICOM file": lambda i, m: i.write_bytes(bytes(128) + b"DICM" + bytes(400)),
    "file that is no image": lambda i, m: i.with_name("notes.txt").write_text("seen"),
    "two files of one name": lambda i, m: Image.open(i).save(i.with_suffix(".bmp")),
    "mask of more than two values": lambda i, m: extra_class(m),
    "mask coded in another way": lambda i, m: save((grey(m) > 0).astype(np.uint8), m),
    "mask that is no mask": lambda i, m: save(grey(i), m),
    "mask that is foreground everywhere": lambda i, m: save(np.full_like(grey(m), 255), m),
    "mask that is mostly foreground": lambda i, m: save(255 - grey(m), m),
    "foreground of a few pixels": lambda i, m: speck(m),
    "mask without foreground": lambda i, m: save(np.zeros_like(grey(m)), m),
    "mask of several colours": lambda i, m: two_colours(m),
    "mask saved with loss": lambda i, m: lossy(m),
    "image that shows nothing": lambda i, m: save(np.full_like(grey(i), 90), i),
    "image of two values": lambda i, m: save(np.where(grey(i) > 60, 255, 0).astype(np.uint8), i),
    "colour among grey images": lambda i, m: tinted(i),
    "transparency, which is left out": lambda i, m: see_through(i),
    "image there twice": lambda i, m: copied(i, m, "again"),
    "image there twice with two masks": lambda i, m: copied(i, m, "other", moved=30),
    "test image that is in training": lambda i, m: into_test(i, m, 0, "leak.png"),
    "near-twins in training and test": lambda i, m: into_test(i, m, 6, "near.png"),
    "one name in training and test": lambda i, m: into_test(i, m, 0, i.name),
    "very small image": lambda i, m: shrunk(i, m, (24, 20)),
    "very long image": lambda i, m: shrunk(i, m, (900, 100)),
    "suffix of another format": lambda i, m: disguised(i),
    "link that leads nowhere": lambda i, m: dangling(i),
    "several pages in one file": lambda i, m: two_pages(i),
    "image stored turned": lambda i, m: turned(i),
    "group in training and test": lambda i, m: into_test(i, m, 9, f"{i.stem}_b.png"),
}


def breast_set(folder: Path) -> Path:
    """Lesion images alone of the breast set."""
    for part, most in (("train", len(PLANTS) + 20), ("test", 12)):
        names = [p.name for p in sorted((BUSI / part / "inputs").glob("*.png"))[:most]]
        for kind in ("inputs", "targets"):
            (folder / part / kind).mkdir(parents=True)
            for name in names:
                shutil.copy(BUSI / part / kind / name, folder / part / kind / name)
    return folder


def made_up(folder: Path) -> Path:
    make_demo(folder, 2 * len(PLANTS) + 20, 12, 0)
    for mask in sorted((folder / "train/targets").iterdir()):
        if not grey(mask).any():  # only what is planted is to be found
            mask.unlink()
            (folder / "train/inputs" / mask.name).unlink()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("make", [made_up, breast_set])
def test_every_planted_fault_is_found_in_one_run(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if make is breast_set and not BUSI.is_dir():
        pytest.skip("no breast ultrasound images here")
    data = make(tmp_path / "data")
    images = sorted((data / "train/inputs").iterdir())
    planted = {}
    for image, (kind, plant) in zip(images, PLANTS.items(), strict=False):
        plant(image, data / "train/targets" / image.name)
        planted[kind] = image.stem
    assert len(planted) == len(PLANTS) >= 20
    console = Console(width=200)
    code = run_check(data, [], r"^([a-z]+_\d+)", tmp_path / "check.png", True, console)
    told = capsys.readouterr().out
    assert code == 2
    blocks = told.split("\n")
    heads = [i for i, line in enumerate(blocks) if line.startswith(("note: ", "STOPS A STUDY: "))]
    found: dict[str, str] = {}
    for start, end in zip(heads, [*heads[1:], len(blocks)], strict=True):
        kind = blocks[start].split(": ", 1)[1].rsplit(" (", 1)[0]
        found[kind] = "\n".join(blocks[start:end])
    assert "other fault" not in found
    for kind, stem in planted.items():
        assert kind in found, f"{kind} was not found\n{told}"
        names = {"file that is no image": "notes.txt", "test image that is in training": "leak"}
        assert names.get(kind, stem) in found[kind], found[kind]
    picture = Image.open(tmp_path / "check.png")
    assert picture.size[0] > 1000 and np.asarray(picture.convert("L")).std() > 10


def study_refuses(data: Path, classes: list[MaskClass] | None = None) -> str:
    try:
        read_dataset(data, classes or [], lambda done, total: None)
    except InputError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set with a lesion in every training image."""
    folder = tmp_path_factory.mktemp("lesions") / "data"
    make_demo(folder, 24, 4, 0)
    for mask in (folder / "train/targets").iterdir():
        if not grey(mask).any():
            mask.unlink()
            (folder / "train/inputs" / mask.name).unlink()
    return folder


STOPS = {
    *("image without a mask", "mask without an image", "file that cannot be read"),
    *("mask of another size than its image", "more than 8 bits a channel", "DICOM file"),
    *("file that is no image", "two files of one name", "mask of more than two values"),
    *("mask coded in another way", "mask that is no mask", "mask of several colours"),
    *("link that leads nowhere", "several pages in one file"),
}


@pytest.mark.parametrize("kind", PLANTS)
def test_what_stops_in_a_check_stops_a_study(kind: str, lesions: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(lesions, data)
    image = sorted((data / "train/inputs").iterdir())[0]
    PLANTS[kind](image, data / "train/targets" / image.name)
    told = [problem for problem in problems(data) if problem.stops]
    refusal = study_refuses(data)
    assert bool(told) == bool(refusal) == (kind in STOPS), (told, refusal)
    if kind in STOPS:
        assert kind == "mask of several colours" or kind in {problem.kind for problem in told}


def test_a_small_lesion_in_another_coding_stops_both(lesions: Path, tmp_path: Path) -> None:
    """So few pixels of value 1 that they look like a fringe of the whole set."""
    data = tmp_path / "data"
    shutil.copytree(lesions, data)
    mask = sorted((data / "train/targets").iterdir())[0]
    speck(mask)
    save((grey(mask) > 0).astype(np.uint8), mask)
    (told,) = [problem for problem in problems(data) if problem.stops]
    assert told.kind == "mask coded in another way" and told.where.endswith(mask.name)
    assert "it holds 0, 1, most hold 0 and 255" in told.text
    assert told.text in study_refuses(data)


def blurred(mask: Path) -> None:
    image = Image.open(mask).convert("L")
    image.resize((image.width // 3, image.height // 3)).resize(image.size).save(mask)


def few_greys(mask: Path) -> None:
    """Edges in four steps, as from masks that were drawn larger."""
    array = grey(mask).astype(int)
    moved = [np.roll(array, (i, j), (0, 1)) for i in (0, 1) for j in (0, 1)]
    save((sum(moved) // 4).astype(np.uint8), mask)


ACCEPTED: dict[str, Callable[[list[Path]], object]] = {
    "all but one saved with loss": lambda m: [lossy(one) for one in m[1:]],
    "blurred edges": lambda m: [blurred(one) for one in m[3:]],
    "one with few greys among blurred": lambda m: [few_greys(m[0]), *map(blurred, m[4:])],
    "0 and 254": lambda m: save(np.where(grey(m[0]) > 0, 254, 0).astype(np.uint8), m[0]),
    "0 and 1, one empty": lambda m: [
        save((grey(one) > 0).astype(np.uint8) * bool(number), one) for number, one in enumerate(m)
    ],
    "grey 128": lambda m: [save(grey(one) // 2, one) for one in m],
    "all foreground": lambda m: save(np.full_like(grey(m[0]), 255), m[0]),
    "red": lambda m: [save(np.stack([grey(o), *[0 * grey(o)] * 2], 2), o) for o in m],
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_masks_that_differ_harmlessly_are_no_fault(
    kind: str, lesions: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(lesions, data)
    for part in ("train", "test"):
        ACCEPTED[kind](sorted((data / part / "targets").iterdir()))
    assert [problem for problem in problems(data) if problem.stops] == []
    assert study_refuses(data) == ""


def test_a_class_that_no_mask_has_stops_both(lesions: Path) -> None:
    named = [MaskClass(name=name, values=[v]) for name, v in (("no", 0), ("a", 255), ("b", 9))]
    (told,) = [problem for problem in problems(lesions, named) if problem.stops]
    assert (told.kind, told.where) == ("class that no training mask has", "b")
    assert "no training mask has b" in study_refuses(lesions, named)


def problems(data: Path, classes: list[MaskClass] | None = None) -> list[Problem]:
    found = scan(data, classes or [], lambda done, total: None)
    return find_problems(data, found, meaning_of(found, classes or []), None)


def test_good_data_has_no_problem(tmp_path: Path) -> None:
    data = studies.make_data(tmp_path / "data")
    mentioned = {problem.kind for problem in problems(data)}
    assert mentioned <= {
        "mask without foreground",
        "very small image",
        "one name in training and test",
    }
    ended = studies.typed_here(tmp_path, "check", "--data", "data")
    assert ended[0] == 0, ended
    assert "a study can run on this data" in ended[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["check.png", "data"]


def test_named_classes(tmp_path: Path) -> None:
    data = studies.make_data(tmp_path / "data", value=128)
    named = [MaskClass(name="background", values=[0]), MaskClass(name="a", values=[128])]
    assert not any(problem.stops for problem in problems(data, named))
    extra_class(data / "train/targets/image_000.png")
    mask = data / "train/targets/image_001.png"
    save(np.where(grey(mask) > 0, 77, 0).astype(np.uint8), mask)
    (told,) = [problem for problem in problems(data, named) if problem.stops]
    assert told.kind == "mask value that no class names"
    assert "77" in told.text and told.where == "train/targets/image_001.png"


def test_a_picture_of_the_user_stays(tmp_path: Path) -> None:
    data = studies.make_data(tmp_path / "data")
    save(np.zeros((4, 4), np.uint8), tmp_path / "check.png")
    with pytest.raises(InputError, match="is no picture of this program"):
        run_check(data, [], None, tmp_path / "check.png", False, Console())


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.png").write_bytes(b"no")
    code, out, err = studies.typed_here(tmp_path, "check", "--data", "data")
    assert code == 2 and "file that cannot be read" in out and "Traceback" not in err
