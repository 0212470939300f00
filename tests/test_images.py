"""Folders, images, masks and the cache: pairing, formats, and the meaning of mask values."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from trainer.config import Data
from trainer.data import cache
from trainer.data.cache import ImageSet
from trainer.data.folders import Pair, find_layout, list_images, pair
from trainer.data.images import Step, open_image, read_image, read_mask, read_pixels
from trainer.data.masks import Masks, MaskValues, binary, read_masks
from trainer.errors import InputError, joined
from trainer.evaluate import OwnSizeMasks

SIZE = 64
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]
TRUTH = (ROWS - 30) ** 2 + (COLUMNS - 25) ** 2 < 14**2
"""A disc."""


def grey(low: int, high: int) -> Image.Image:
    return Image.fromarray(np.where(TRUTH, high, low).astype(np.uint8))


def colour(mode: str, foreground: tuple[int, ...], background: tuple[int, ...]) -> Image.Image:
    array = np.where(TRUTH[..., None], foreground, background).astype(np.uint8)
    return Image.fromarray(array, mode)


def palette(foreground: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(TRUTH.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, *foreground])
    return image


MASKS: dict[str, Callable[[], tuple[Image.Image, str]]] = {
    "0 and 255": lambda: (grey(0, 255), "png"),
    "0 and 1": lambda: (grey(0, 1), "png"),
    "10 and 200": lambda: (grey(10, 200), "tif"),
    "one bit": lambda: (Image.fromarray(TRUTH), "png"),
    "palette": lambda: (palette((128, 0, 0)), "png"),
    "palette, dark": lambda: (palette((1, 1, 1)), "bmp"),
    "grey with alpha": lambda: (colour("LA", (255, 255), (0, 255)), "png"),
    "white": lambda: (colour("RGB", (255, 255, 255), (0, 0, 0)), "png"),
    "red": lambda: (colour("RGB", (200, 0, 0), (0, 0, 0)), "png"),
    "alpha": lambda: (colour("RGBA", (0, 255, 0, 255), (0, 0, 0, 255)), "png"),
    "JPEG": lambda: (grey(0, 255), "jpg"),
    "JPEG in colour": lambda: (colour("RGB", (255, 255, 255), (0, 0, 0)), "jpeg"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind_mean_the_same(tmp_path: Path, kind: str) -> None:
    image, suffix = MASKS[kind]()
    path = tmp_path / f"mask.{suffix}"
    image.save(path, **({"quality": 90} if suffix.startswith("j") else {}))
    mask = read_mask(path)
    values = MaskValues()
    values.add(mask)
    threshold = values.meaning("masks").threshold
    np.testing.assert_array_equal(binary(mask, threshold), np.where(TRUTH, 255, 0))


def test_the_meaning_of_jpeg_fringes_is_found(tmp_path: Path) -> None:
    grey(0, 255).save(tmp_path / "m.jpg", quality=75)
    mask = read_mask(tmp_path / "m.jpg")
    assert len(np.unique(mask)) > 32
    values = MaskValues()
    values.add(mask)
    assert values.meaning("m").threshold == (int(mask.min()) + int(mask.max())) / 2


def test_the_meaning_is_decided_over_the_whole_set() -> None:
    values = MaskValues()
    values.add(np.zeros((4, 4), np.uint8))
    values.add(np.eye(4, dtype=np.uint8))
    meaning = values.meaning("masks")
    assert (meaning.threshold, meaning.values) == (0.5, [0, 1])


def test_three_values_are_listed_with_their_shares() -> None:
    values = MaskValues()
    values.add(np.array([[0, 0, 0, 0], [0, 128, 128, 255]], np.uint8))
    with pytest.raises(InputError) as caught:
        values.meaning("targets")
    assert "0 (62.50%), 128 (25.00%), 255 (12.50%)" in str(caught.value)
    assert caught.value.where == "targets"


def test_a_class_of_its_own_stands_out_of_fringes() -> None:
    rng = np.random.default_rng(0)
    fringes = np.concatenate([np.arange(256), np.zeros(20000), np.full(9000, 255)])
    values = MaskValues()
    values.add(rng.permutation(fringes).astype(np.uint8)[None])
    assert values.meaning("masks").threshold == 127.5
    values.add(np.full((1, 2000), 120, np.uint8))
    with pytest.raises(InputError, match="the masks have 3 values"):
        values.meaning("masks")


def test_two_colours_are_two_classes() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[0], image[1] = (255, 0, 0), (0, 255, 0)
    values = MaskValues()
    values.add(image.max(axis=2), image)
    with pytest.raises(InputError, match="2 colours"):
        values.meaning("masks")


@pytest.mark.parametrize(
    ("value", "found"),
    [(0, "all masks are empty"), (255, "all pixels of all masks are equally bright")],
)
def test_masks_without_two_values(value: int, found: str) -> None:
    values = MaskValues()
    values.add(np.full((4, 4), value, np.uint8))
    with pytest.raises(InputError, match=found):
        values.meaning("masks")


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def paired(tmp_path: Path, inputs: list[str], targets: list[str]) -> tuple[dict[str, str], str]:
    """Image to mask names, and the faults as text."""
    pairs, faults = pair(touch(tmp_path / "i", *inputs), touch(tmp_path / "t", *targets))
    names = {p.image.name: " ".join(m.name for m in p.masks) for p in pairs}
    return names, "\n".join(map(str, faults))


def test_pairs_by_stem_and_by_mask_suffix(tmp_path: Path) -> None:
    names, faults = paired(
        tmp_path,
        ["a_1.png", "a_10.jpg", "a_2.png", "b.TIF"],
        ["a_10_mask.tif", "a_1_mask.tif", "a_2.png", "b.png"],
    )
    expected = {"a_1.png": "a_1_mask.tif", "a_10.jpg": "a_10_mask.tif", "a_2.png": "a_2.png"}
    assert names == {**expected, "b.TIF": "b.png"}
    assert faults == ""


def test_class_folders_with_masks_beside_are_united(tmp_path: Path) -> None:
    for folder in ("benign", "normal"):
        touch(tmp_path / folder, "x (1).png", "x (1)_mask.png", "y.png", "y_mask.png")
    touch(tmp_path / "benign", "x (1)_mask_1.png", "x (1)_mask_12.png", "z_mask.png", "w.png")
    layout = find_layout(tmp_path)
    assert layout.masks_beside and layout.test_inputs is None
    pairs, faults = pair(layout.inputs, layout.targets)
    assert [p.name for p in pairs] == [
        f"{a}/{b}.png" for a in ("benign", "normal") for b in ("x (1)", "y")
    ]
    assert [len(p.masks) for p in pairs] == [3, 1, 1, 1]
    told = "\n".join(map(str, faults))
    assert "z_mask.png: is a mask without an image" in told and "w.png: has no mask" in told
    assert len(faults) == 2


def test_several_masks_of_an_image_are_united(tmp_path: Path) -> None:
    files = []
    for number, columns in enumerate((slice(0, 2), slice(1, 4))):
        mask = np.zeros((3, 6), np.uint8)
        mask[:, columns] = 255
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(mask).convert("1" if number else "RGBA").save(files[-1])
    united = read_masks(files, HALF)
    assert united[0].tolist() == [255, 255, 255, 255, 0, 0]
    assert read_masks(files, None)[0].tolist() == united[0].tolist()
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(files[1])
    with pytest.raises(InputError, match=r"1\.png: is 5x3 pixels, 0\.png is 6x3"):
        read_masks(files, HALF)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (["train/inputs", "train/targets"], (True, False, False)),
        (["train/inputs", "train/targets", "test/inputs"], (True, True, False)),
        (["train/inputs", "train/targets", "test/inputs", "test/targets"], (True, True, True)),
        (["images", "masks"], (True, False, False)),
    ],
)
def test_layouts(tmp_path: Path, made: list[str], expected: tuple[bool, bool, bool]) -> None:
    for name in made:
        (tmp_path / name).mkdir(parents=True)
    layout = find_layout(tmp_path)
    found = (layout.targets, layout.test_inputs, layout.test_targets)
    assert tuple(folder is not None for folder in found) == expected


def test_a_tree_with_train_and_test(tmp_path: Path) -> None:
    touch(tmp_path / "train/benign", "a.png", "a_mask.png")
    touch(tmp_path / "test/benign", "b.png")
    layout = find_layout(tmp_path)
    assert layout.test_inputs == tmp_path / "test" and layout.test_targets is None
    touch(tmp_path / "test/benign", "b_mask.png")
    assert find_layout(tmp_path).test_targets == tmp_path / "test"


def test_sorted_order_never_pairs(tmp_path: Path) -> None:
    names, faults = paired(tmp_path, ["a.png", "b.png"], ["c.png", "d.png"])
    assert names == {}
    for name in ("a.png: has no mask", "b.png: has no mask", "c.png: is a mask without an image"):
        assert name in faults


def test_faults_of_folders(tmp_path: Path) -> None:
    inputs = ["a.png", "a.jpg", "b.dcm", "c.txt", ".hidden", "Thumbs.db", "d.png"]
    names, faults = paired(tmp_path, inputs, ["a.png", "d.png", "d_mask.png", "e_mask_2.png"])
    assert names == {"a.jpg": "a.png", "d.png": "d.png d_mask.png"}
    assert "a.png: has the same stem as a.jpg" in faults
    assert "b.dcm: this is a DICOM file" in faults and "dcmj2pnm" in faults
    assert "c.txt: this is not an image" in faults
    assert "e_mask_2.png: is a mask without an image" in faults
    assert "hidden" not in faults and "Thumbs" not in faults


def test_an_empty_and_a_missing_folder(tmp_path: Path) -> None:
    assert "the folder is empty" in str(list_images(touch(tmp_path / "empty"))[1][0])
    assert "there is no such folder" in str(list_images(tmp_path / "none")[1][0])


def test_many_faults_are_one_message() -> None:
    faults = [InputError(f"f{n}", "broken") for n in range(13)]
    text = str(joined(faults, "data"))
    assert "13 faults" in text and "f9: broken" in text and "f10" not in text
    assert "and 3 more" in text


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(path)


def sixteen_bit_colours(path: Path) -> None:
    """A PNG of 8x8 RGB pixels of 16 bit, which PIL can read but not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    rows = zlib.compress((b"\0" + bytes([117, 48]) * 24) * 8)
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(start + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def three_pages(path: Path) -> None:
    grey(0, 255).save(path, "TIFF", save_all=True, append_images=[grey(0, 9), grey(0, 8)])


def uncompressed_and_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    grey(0, 255).save(path, "TIFF", exif=exif)


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def dicom(path: Path) -> None:
    path.write_bytes(bytes(128) + b"DICM" + bytes(64))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (sixteen_bit, ["more than 8 bits", "-depth 8"]),
        (sixteen_bit_colours, ["more than 8 bits", "RGB;16B", "-depth 8"]),
        (three_pages, ["has 3 pages", "one image a file"]),
        (uncompressed_and_turned, ["to be turned", "-auto-orient"]),
        (truncated, ["cannot be read as an image", "replace or remove it"]),
        (dicom, ["DICOM", "dcmj2pnm"]),
        (lambda path: path.write_text("not an image"), ["cannot be read as an image"]),
        (lambda path: path.write_bytes(b""), ["cannot be read as an image"]),
        (lambda path: None, ["there is no such file"]),
    ],
    ids=[
        "16 bit",
        "16 bit RGB",
        "pages",
        "turned",
        "truncated",
        "DICOM",
        "text",
        "empty",
        "missing",
    ],
)
def test_a_bad_image_is_named(
    tmp_path: Path, make: Callable[[Path], None], words: list[str]
) -> None:
    path = tmp_path / "case_7.png"
    make(path)
    for read in (lambda: read_image(path, 3), lambda: read_mask(path)):
        with pytest.raises(InputError) as caught:
            read()
        for word in [str(path), *words]:
            assert word in str(caught.value)


def test_images_have_the_channels_of_the_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (6, 9, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "c.png")
    Image.fromarray(array[..., 0]).save(tmp_path / "g.png")
    np.testing.assert_array_equal(read_image(tmp_path / "c.png", 3), array.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image(tmp_path / "g.png", 1), array[None, ..., 0])
    np.testing.assert_array_equal(
        read_image(tmp_path / "g.png", 3), np.repeat(array[None, ..., 0], 3, axis=0)
    )
    luma = array @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read_image(tmp_path / "c.png", 1)[0], luma, atol=1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_images_are_upright(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"i.{suffix}"
    upright = np.zeros((8, 16), np.uint8)
    upright[:, :8] = 255
    turned = Image.fromarray(np.rot90(upright).copy())  # a camera that was held sideways
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(path, exif=exif, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
    for read in (read_image(path, 1)[0], read_mask(path)):
        assert read.shape == upright.shape
        assert np.abs(read.astype(int) - upright).max() < 30


def test_a_bitmap_of_five_bits_a_channel_is_read(tmp_path: Path) -> None:
    path = tmp_path / "i.bmp"
    pixels = np.full((4, 4), 0x7C00, "<u2").tobytes()  # red
    header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 0, len(pixels), 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + header + pixels)
    assert read_image(path, 3)[:, 0, 0].tolist() == [255, 0, 0]


def test_resize_is_width_then_height(tmp_path: Path) -> None:
    steps = np.repeat(np.arange(0, 240, 10, np.uint8)[None], 12, axis=0)
    Image.fromarray(steps).save(tmp_path / "i.png")
    assert read_image(tmp_path / "i.png", 1, (12, 4)).shape == (1, 4, 12)
    row = read_image(tmp_path / "i.png", 1, (12, 4))[0, 0].astype(float)
    np.testing.assert_allclose(row[1:-1], steps[0].reshape(12, 2).mean(axis=1)[1:-1], atol=1)


def test_masks_are_resized_by_the_nearest_pixel(tmp_path: Path) -> None:
    grey(3, 9).save(tmp_path / "m.png")
    small = read_mask(tmp_path / "m.png", (16, 16))
    np.testing.assert_array_equal(small, np.where(TRUTH[2::4, 2::4], 9, 3))


HALF = Masks(threshold=0.5)


def save_pairs(
    folder: Path, arrays: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
) -> list[Pair]:
    pairs = []
    for number, (image, mask) in enumerate(arrays):
        files = folder / f"{number}.png", folder / f"{number}_mask.png"
        for file, array in zip(files, (image, mask), strict=True):
            Image.fromarray(array).save(file)
        pairs.append(Pair(files[0], files[1:], files[0].name))
    return pairs


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Four images of different sizes, with masks of 0 and 1."""
    rng = np.random.default_rng(5)
    sizes = [(8, 8), (10, 12), (9, 16), (8, 8)]
    return save_pairs(
        tmp_path,
        [(rng.integers(0, 256, s, np.uint8), rng.integers(0, 2, s, np.uint8)) for s in sizes],
    )


def test_cached_images_equal_read_ones(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    indices = torch.tensor([2, 0, 3])
    images = ImageSet(pairs, 3, (8, 6), HALF)
    read = images.batch(indices)
    images.preload(threads=2)
    assert images.cached
    kept = images.batch(indices)
    assert kept[0].shape == (3, 3, 6, 8) and kept[0].dtype == torch.uint8
    assert kept[1] is not None and read[1] is not None and kept[1].shape == (3, 1, 6, 8)
    assert torch.equal(read[0], kept[0]) and torch.equal(read[1], kept[1])

    monkeypatch.setattr(cache, "free_memory_bytes", lambda: 1000)
    large = ImageSet(pairs, 3, (8, 6), HALF)
    large.preload(threads=1)
    assert not large.cached
    assert torch.equal(large.batch(indices)[0], kept[0])


def test_masks_in_their_own_size_are_kept_up_to_a_budget(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    images = ImageSet(pairs, 3, (8, 6), HALF)
    own = images.own_size_mask
    monkeypatch.setattr(images, "own_size_mask", lambda index: read.append(index) or own(index))
    monkeypatch.setattr(cache, "free_memory_bytes", lambda: 2 * (64 + 144 + 63))
    masks = OwnSizeMasks(images, torch.device("cpu"))
    for _ in range(2):
        assert [masks[index].numel() for index in range(4)] == [64, 120, 144, 64]
    # 64 and 120 fit into 271 bytes, then 144 does not, and the last 64 does.
    assert read == [0, 1, 2, 3, 2]


def test_without_a_meaning_mask_values_stay(pairs: list[Pair]) -> None:
    plain, meant = ImageSet(pairs, 1, (8, 8)), ImageSet(pairs, 1, (8, 8), HALF)
    raw, known = plain.batch(torch.arange(4))[1], meant.batch(torch.arange(4))[1]
    assert raw is not None and known is not None
    assert raw.unique().tolist() == [0, 1]
    assert torch.equal(known, raw * 255)
    assert plain.own_size_mask(1).shape == (10, 12) and plain.own_size_mask(1).max() == 1
    assert meant.own_size_mask(1).max() == 255


@pytest.mark.parametrize("cached", [True, False])
def test_sizes_that_differ_need_a_resize(pairs: list[Pair], cached: bool) -> None:
    images = ImageSet(pairs, 1, None)
    with pytest.raises(InputError, match=r"1\.png: is 12x10 pixels, 0\.png is 8x8"):
        if cached:
            images.preload(threads=1)
        images.batch(torch.arange(4))


@pytest.mark.parametrize("cached", [True, False])
def test_a_mask_of_another_size_than_its_image(tmp_path: Path, cached: bool) -> None:
    zeros = np.zeros((8, 8), np.uint8)
    images = ImageSet(save_pairs(tmp_path, [(zeros, np.zeros((8, 10), np.uint8))]), 1, None)
    with pytest.raises(InputError, match=r"0_mask\.png: is 10x8 pixels, its image 8x8"):
        if cached:
            images.preload(threads=1)
        images.batch(torch.arange(1))


def test_preloading_stops_when_asked(pairs: list[Pair]) -> None:
    asked: list[int] = []
    ImageSet(pairs, 1, (8, 8)).preload(threads=1, stopped=lambda: asked.append(1) is None)
    assert len(asked) == len(pairs)


def test_free_memory_is_positive_and_below_the_machine() -> None:
    pages = Path("/proc/meminfo").read_text().split()
    assert 0 < cache.free_memory_bytes() < int(pages[1]) * 1024


def test_masks_of_two_kinds_in_one_set_are_told() -> None:
    values = MaskValues()
    for top in (1, 255):
        mask = np.zeros((10, 10), np.uint8)
        mask[2:6, 2:6] = top
        values.add(mask)
    with pytest.raises(InputError, match="3 values"):
        values.meaning("masks")


def test_colours_of_one_brightness_are_told() -> None:
    values = MaskValues()
    red_on_white = np.full((10, 10, 3), 255, np.uint8)
    red_on_white[2:6, 2:6] = (255, 0, 0)
    values.add(red_on_white.max(axis=2), red_on_white)
    with pytest.raises(InputError, match="paint the background black"):
        values.meaning("masks")


def words(*shape: int) -> NDArray[np.uint16]:
    return np.random.default_rng(5).integers(0, 65536, shape).astype(np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_of_sixteen_bit(tmp_path: Path, suffix: str) -> None:
    """As float32 in the units of 8 bit; colours as RGB, whatever OpenCV thinks."""
    grey, colour = words(6, 5), words(6, 5, 3)
    cv2.imwrite(str(tmp_path / f"g.{suffix}"), grey)
    cv2.imwrite(str(tmp_path / f"c.{suffix}"), colour[..., ::-1])
    found = read_pixels(tmp_path / f"g.{suffix}", 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], grey / 65535 * 255, rtol=1e-6)
    three = read_pixels(tmp_path / f"g.{suffix}", 3)
    np.testing.assert_array_equal(three, np.repeat(found, 3, axis=0))
    rgb = read_pixels(tmp_path / f"c.{suffix}", 3)
    np.testing.assert_allclose(rgb, colour.transpose(2, 0, 1) / 65535 * 255, rtol=1e-6)
    luma = colour @ np.array([0.299, 0.587, 0.114]) / 65535 * 255
    np.testing.assert_allclose(read_pixels(tmp_path / f"c.{suffix}", 1)[0], luma, rtol=1e-5)
    with pytest.raises(InputError, match="more than 8 bits"):
        open_image(tmp_path / f"c.{suffix}")


def test_sixteen_bit_is_resized_as_eight_bit_is(tmp_path: Path) -> None:
    eight = np.random.default_rng(5).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "8.png")
    cv2.imwrite(str(tmp_path / "16.png"), eight[..., ::-1].astype(np.uint16) * 257)
    steps: list[Step] = [("resize", (12, 9)), ("center_crop", (7, 4))]
    shallow = read_pixels(tmp_path / "8.png", 3, steps)
    deep = read_pixels(tmp_path / "16.png", 3, steps)
    assert shallow.dtype == np.uint8 and shallow.shape == deep.shape == (3, 4, 7)
    np.testing.assert_allclose(deep, shallow, atol=1)


@pytest.mark.parametrize("grey", [False, True])
def test_without_its_colours_an_image_keeps_its_channels(tmp_path: Path, grey: bool) -> None:
    Image.fromarray(np.full((2, 2, 3), (200, 10, 10), np.uint8)).save(tmp_path / "c.png")
    found = read_pixels(tmp_path / "c.png", 3, grey=grey)[:, 0, 0].tolist()
    assert found == ([67, 67, 67] if grey else [200, 10, 10])


def test_depths_do_not_mix_in_memory(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "b.png"), words(4, 4))
    pairs = [Pair(tmp_path / name, (), name) for name in ("a.png", "b.png")]
    with pytest.raises(InputError, match=r"b\.png: has 16 bits a channel, a\.png has 8"):
        ImageSet(pairs, 1).preload(1)
    deep = ImageSet(pairs[::-1], 1)
    deep.preload(1)
    x, _ = deep.batch(torch.arange(2))
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x[0, 0], words(4, 4) / 65535 * 255, rtol=1e-6)


def test_a_crop_is_the_middle_of_image_and_mask(tmp_path: Path) -> None:
    image = np.arange(63, dtype=np.uint8).reshape(7, 9)
    (pair,) = save_pairs(tmp_path, [(image, image)])
    data = Data.model_validate({"transforms": [{"center_crop": [4, 3]}]})
    images = ImageSet([pair], 1, data=data)
    x, y = images.batch(torch.arange(1))
    assert y is not None and x.shape == (1, 1, 3, 4) and images.shape == (1, 3, 4)
    np.testing.assert_array_equal(x[0, 0], image[2:5, 2:6])
    np.testing.assert_array_equal(y[0, 0], image[2:5, 2:6])
    assert not images.own_size_comparable
    data = Data.model_validate({"transforms": [{"center_crop": [4, 8]}]})
    with pytest.raises(InputError, match=r"0\.png: is 9x7 pixels, center_crop is 4x8"):
        ImageSet([pair], 1, data=data).batch(torch.arange(1))
