"""Folders of images: every pixel where it was, splits as the folders say, and what would be guessed refused by name."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from battery import PEAK, environment
from diffusional.data import Dataset, checks, load, storage
from diffusional.data import images as image_folders
from diffusional.data.pictures import Options, decode
from diffusional.data.rows import Rows
from diffusional.errors import DiffusionalError
from diffusional.space import Discrete

RNG = np.random.default_rng(0)


def colour(h: int = 6, w: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, (h, w, 3)).astype(np.uint8)


def save(path: Path, values: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def folder_of(folder: Path, n: int = 10, make=colour) -> np.ndarray:
    """Images 00.png … in a folder, and their values (n, H, W[, 3])."""
    values = np.stack([make() for _ in range(n)])
    for i, image in enumerate(values):
        save(folder / f"{i:02}.png", image)
    return values


def in_order(data: Dataset, n: int, seed: int = 0) -> np.ndarray:
    """All items by their place in the folder, by the permutation that the seed draws."""
    together = torch.cat([data.tensor(split) for split in ("train", "validation", "test")]).numpy()
    out = np.empty_like(together)
    out[np.random.default_rng(seed).permutation(n)] = together
    return out


# ------------------------------------------------------------------------------------------------------ values


def test_colour_pixels_are_kept_channels_first(tmp_path: Path) -> None:
    values = folder_of(tmp_path)
    data = load(tmp_path, seed=3)
    assert data.space == Discrete((3, 6, 8), levels=256)
    assert data.name == tmp_path.name
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 1, 1)
    np.testing.assert_array_equal(in_order(data, 10, seed=3), np.moveaxis(values, 3, 1))
    assert data.train.dtype == torch.uint8


def test_greyscale_has_one_channel(tmp_path: Path) -> None:
    values = folder_of(tmp_path, make=lambda: colour()[:, :, 0])
    data = load(tmp_path, levels=256)
    np.testing.assert_array_equal(in_order(data, 10), values[:, None])


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "gif", "jpg", "JPEG"])
def test_every_format(tmp_path: Path, suffix: str) -> None:
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    for i in range(10):
        options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix.lower().startswith("jp") else {}
        save(tmp_path / f"{i}.{suffix}", np.stack([smooth] * 3, 2) if suffix == "webp" else smooth, **options)
    data = load(tmp_path)
    np.testing.assert_allclose(data.tensor("test")[0, 0].int().numpy(), smooth, atol=3)


def test_subfolders_are_splits(tmp_path: Path) -> None:
    parts = {"train/cat": 3, "train/dog": 2, "val/dog": 2, "TEST": 1}
    values = {name: folder_of(tmp_path / name, n) for name, n in parts.items()}
    data = load(tmp_path)
    expected = {
        "train": np.concatenate([values["train/cat"], values["train/dog"]]),
        "validation": values["val/dog"],
        "test": values["TEST"],
    }
    for split, images in expected.items():
        np.testing.assert_array_equal(data.tensor(split).numpy(), np.moveaxis(images, 3, 1))


def test_a_missing_split_is_drawn_from_train_at_random(tmp_path: Path) -> None:
    for label in ("a", "b"):
        shade = 50 if label == "a" else 200
        folder_of(tmp_path / "train" / label, 50, lambda shade=shade: np.full((2, 2), shade, np.uint8))
    test = folder_of(tmp_path / "test", 7)[..., 0]
    for file in (tmp_path / "test").iterdir():
        save(file, np.full((2, 2), 7, np.uint8))
    data = load(tmp_path, split=(0.7, 0.2, 0.1))
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 20, len(test))
    # By class folder, the end of train would be all of one class.
    assert set(data.tensor("validation").flatten().tolist()) == {50, 200}
    assert set(data.tensor("test").flatten().tolist()) == {7}


def test_a_train_folder_alone_is_no_split(tmp_path: Path) -> None:
    folder_of(tmp_path / "train" / "a")
    assert len(load(tmp_path).test) == 1


def test_images_outside_the_splits(tmp_path: Path) -> None:
    for name in ("train", "test", "extra"):
        folder_of(tmp_path / name, 3)
    with pytest.raises(
        DiffusionalError, match=r"folders for splits, test, train, and images outside them, such as extra/00"
    ):
        load(tmp_path)
    (tmp_path / "extra").rename(tmp_path / "val")
    folder_of(tmp_path / "validation", 3)
    with pytest.raises(DiffusionalError, match="two for one split; keep one"):
        load(tmp_path)


def test_what_lies_beside_images_is_passed_over(tmp_path: Path) -> None:
    folder_of(tmp_path)
    for name in ("labels.csv", "README.md", "Thumbs.db", ".DS_Store", ".hidden.png", "LICENSE", "a.txt", "b.json"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._0.png").write_bytes(b"x")
    assert len(load(tmp_path).train) == 8


def test_other_files_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(DiffusionalError, match=r"model.bin is not an image of a known kind"):
        load(tmp_path)


def test_linked_folders_are_descended(tmp_path: Path) -> None:
    values = folder_of(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "here").symlink_to(tmp_path / "elsewhere")
    np.testing.assert_array_equal(in_order(load(tmp_path / "data"), 10), np.moveaxis(values, 3, 1))


def test_folders_and_links_that_were_decided_on_are_notes(tmp_path: Path) -> None:
    folder_of(tmp_path / "in" / "training")
    folder_of(tmp_path / "in" / "testing")
    (tmp_path / "in" / "latest").symlink_to(tmp_path / "in" / "training")
    data = load(tmp_path / "in")
    assert (len(data.train) + len(data.validation), len(data.test)) == (10, 10)
    splits, links = data.notes
    assert splits == "by their names, train is training/ and test is testing/"
    assert "skipped: latest (to training)" in links


def test_a_link_that_leads_nowhere_is_named(small_memory: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "data")
    (tmp_path / "data" / "04.png").unlink()
    (tmp_path / "data" / "04.png").symlink_to("gone.png")
    with pytest.raises(DiffusionalError, match=r"04\.png is a link to gone\.png, which does not exist"):
        load(tmp_path / "data")


# ------------------------------------------------------------------------------------------------- size and fit


def test_the_centre_square_is_scaled(tmp_path: Path) -> None:
    values = np.zeros((4, 12, 3), np.uint8)
    values[:, 4:8] = (10, 20, 30)
    for i in range(10):
        save(tmp_path / f"{i}.png", values)
    data = load(tmp_path, size=2)
    assert data.space.shape == (3, 2, 2)
    assert torch.equal(data.tensor("train")[0, :, 0, 0], torch.tensor([10, 20, 30], dtype=torch.uint8))
    assert data.tensor("train").float().std((0, 2, 3)).max() == 0
    stretched = load(tmp_path, size=12, fit="resize").tensor("train")[0, 0]
    assert stretched.shape == (12, 12)
    assert not stretched[:, :3].any()
    assert (stretched[:, 5:7] >= 10).all()


def test_odd_crops_are_centred_and_not_transposed() -> None:
    wide = np.arange(35, dtype=np.uint8).reshape(5, 7)
    for values, expected in ((wide, wide[:, 1:6]), (wide.T, wide.T[1:6])):
        found = decode(_png(values), "a", Options(size=5)).values
        np.testing.assert_array_equal(found[0], expected)


def test_scaling_down_averages() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    found = decode(_png(stripes), "a", Options(size=8)).values
    assert abs(found.astype(int) - 127).max() < 12  # picking pixels would give 0 or 255


def test_sizes_that_differ_are_named_with_the_way_out(tmp_path: Path) -> None:
    folder_of(tmp_path)
    save(tmp_path / "05.png", colour(5, 9))
    message = r"00.png has 8 × 6 pixels and .*05.png has 9 × 5; choose one side .*--data.size 64"
    with pytest.raises(DiffusionalError, match=message):
        load(tmp_path)
    assert load(tmp_path, size=4).space.shape == (3, 4, 4)


@pytest.mark.parametrize(("options", "message"), [({"size": 0}, "size .* got 0"), ({"size": -3}, "size .* got -3")])
def test_options_that_are_none(tmp_path: Path, options: dict, message: str) -> None:
    folder_of(tmp_path)
    with pytest.raises(DiffusionalError, match=message):
        load(tmp_path, **options)


# ----------------------------------------------------------------------------------------------- modes and bits


def test_a_mixture_of_grey_and_colour_must_be_declared(tmp_path: Path) -> None:
    folder_of(tmp_path)
    grey = colour()[:, :, 0]
    save(tmp_path / "03.png", grey)
    with pytest.raises(DiffusionalError, match=r"03.png is greyscale and .*00.png is in colour; .*--data.grey yes"):
        load(tmp_path)
    np.testing.assert_array_equal(in_order(load(tmp_path, grey=False), 10)[3], np.stack([grey] * 3))
    made_grey = in_order(load(tmp_path, grey=True), 10)
    np.testing.assert_array_equal(made_grey[3, 0], grey)
    luma = np.asarray(Image.open(tmp_path / "00.png")).astype(float) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(made_grey[0, 0], luma, atol=1)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_few_levels(tmp_path: Path, bits: int) -> None:
    values = RNG.integers(0, 2**bits, (10, 5, 7)).astype(np.uint8)
    for i, image in enumerate(values):
        (tmp_path / f"{i:02}.png").write_bytes(_png(image, bits))
    data = load(tmp_path)
    assert data.space == Discrete((1, 5, 7), levels=2**bits)
    np.testing.assert_array_equal(in_order(data, 10)[:, 0], values)
    for options in ({"size": 3}, {"grey": False}):
        with pytest.raises(DiffusionalError, match=rf"has {bits} bits? per pixel"):
            load(tmp_path, **options)
    save(tmp_path / "99.png", values[0])
    with pytest.raises(DiffusionalError, match=rf"00.png has {2**bits} levels and .*99.png has 256, "):
        load(tmp_path)


def test_levels_are_the_format_s(tmp_path: Path) -> None:
    folder_of(tmp_path)
    with pytest.raises(DiffusionalError, match=r"levels=256 for .* got levels=16"):
        load(tmp_path, levels=16)


@pytest.mark.parametrize("kind", ["grey", "colour", "tiff"])
def test_sixteen_bits_are_refused(tmp_path: Path, kind: str) -> None:
    folder_of(tmp_path)
    if kind == "colour":  # Pillow would quietly drop the lower bytes of these
        (tmp_path / "04.png").write_bytes(_png(RNG.integers(0, 2**16, (6, 8, 3)).astype(np.uint16), 16))
        name = "04.png"
    else:
        name = "04.png" if kind == "grey" else "040.tif"
        save(tmp_path / name, RNG.integers(0, 2**16, (6, 8)).astype(np.uint16))
    with pytest.raises(DiffusionalError, match=rf"{name} has more than 8 bits per value"):
        load(tmp_path)


def test_alpha_that_hides_nothing_is_dropped(tmp_path: Path) -> None:
    values = folder_of(tmp_path)
    opaque = np.concatenate([values[2], np.full((6, 8, 1), 255, np.uint8)], 2)
    save(tmp_path / "02.png", opaque)
    np.testing.assert_array_equal(in_order(load(tmp_path), 10), np.moveaxis(values, 3, 1))
    opaque[3, 3, 3] = 254
    save(tmp_path / "02.png", opaque)
    with pytest.raises(DiffusionalError, match=r"02.png is partly transparent"):
        load(tmp_path)


def test_a_palette_is_colour(tmp_path: Path) -> None:
    for i in range(10):
        image = Image.fromarray(np.full((3, 3), 1, np.uint8), mode="P")
        image.putpalette([0, 0, 0, 9, 8, 7])
        image.save(tmp_path / f"{i}.png")
    assert load(tmp_path).tensor("train")[0, :, 0, 0].tolist() == [9, 8, 7]
    image.save(tmp_path / "0.png", transparency=1)
    with pytest.raises(DiffusionalError, match=r"0.png is partly transparent"):
        load(tmp_path)


def test_cmyk_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path)
    Image.new("CMYK", (8, 6)).save(tmp_path / "a.jpg")
    with pytest.raises(DiffusionalError, match=r"a.jpg is of mode CMYK; expected greyscale or RGB"):
        load(tmp_path)


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF 2.3, table 6: what row 0 and column 0 are
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
ELEMENT = "<tiff:Orientation>{}</tiff:Orientation>"
ATTRIBUTE = "<r:Description tiff:Orientation='{}'/>"
OTHER_PREFIX = """<r:Description xmlns:t="http://ns.adobe.com/tiff/1.0/" t:Orientation = "{}"/>"""


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = tags.tobytes()
    return data if data.startswith(b"Exif") else b"Exif\0\0" + data


def raw_profile(name: str, content: bytes) -> PngImagePlugin.PngInfo:
    """As ImageMagick writes them: hexadecimal digits, 72 to a line."""
    digits = content.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    info = PngImagePlugin.PngInfo()
    info.add_text(f"Raw profile type {name}", f"\n{name}\n{len(content):8d}\n{lines}\n", zip=True)
    return info


def xmp_text(packet: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet)
    return info


PLACES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "PNG, EXIF": ("PNG", lambda o: {"exif": exif(o)}),
    "PNG, raw EXIF": ("PNG", lambda o: {"pnginfo": raw_profile("exif", exif(o))}),
    "PNG, raw EXIF without its head": ("PNG", lambda o: {"pnginfo": raw_profile("exif", exif(o)[6:])}),
    "PNG, raw APP1": ("PNG", lambda o: {"pnginfo": raw_profile("APP1", exif(o))}),
    "PNG, raw APP1 of XMP": (
        "PNG",
        lambda o: {"pnginfo": raw_profile("APP1", b"http://ns.adobe.com/xap/1.0/\0" + ELEMENT.format(o).encode())},
    ),
    "PNG, raw XMP": ("PNG", lambda o: {"pnginfo": raw_profile("xmp", ELEMENT.format(o).encode())}),
    "PNG, XMP element": ("PNG", lambda o: {"pnginfo": xmp_text(ELEMENT.format(o))}),
    "PNG, XMP attribute": ("PNG", lambda o: {"pnginfo": xmp_text(ATTRIBUTE.format(o))}),
    "WebP, EXIF": ("WEBP", lambda o: {"exif": exif(o), "lossless": True}),
    "WebP, XMP": ("WEBP", lambda o: {"xmp": ATTRIBUTE.format(o).encode(), "lossless": True}),
    "WebP, XMP of another prefix": ("WEBP", lambda o: {"xmp": OTHER_PREFIX.format(o).encode(), "lossless": True}),
    "WebP, XMP in UTF-16": ("WEBP", lambda o: {"xmp": ATTRIBUTE.format(o).encode("utf-16-le"), "lossless": True}),
    "WebP, EXIF before XMP": (
        "WEBP",
        lambda o: {"exif": exif(o), "xmp": ELEMENT.format(o % 8 + 1).encode(), "lossless": True},
    ),
    "TIFF": ("TIFF", lambda o: {"tiffinfo": {0x0112: o}}),
    "TIFF, LZW": ("TIFF", lambda o: {"tiffinfo": {0x0112: o}, "compression": "tiff_lzw"}),
    "TIFF, tag and XMP": ("TIFF", lambda o: {"tiffinfo": {0x0112: o, 700: ATTRIBUTE.format(o).encode()}}),
    "TIFF, XMP": ("TIFF", lambda o: {"tiffinfo": {700: ATTRIBUTE.format(o).encode()}}),
}


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("place", PLACES)
def test_pictures_are_turned_upright(tmp_path: Path, place: str, colours: int) -> None:
    stored = np.arange(5 * 7 * colours, dtype=np.uint8).reshape(5, 7, colours)
    image = Image.fromarray(stored[..., 0] if colours == 1 else stored)
    suffix, options = PLACES[place]
    for orientation, turned in UPRIGHT.items():
        path = tmp_path / f"a.{suffix}"
        image.save(path, suffix, **options(orientation))
        expected = np.moveaxis(turned(stored), 2, 0)
        # WebP has no greyscale.
        for source in (path, path.read_bytes()):
            np.testing.assert_array_equal(decode(source, "a", Options(grey=colours == 1)).values, expected)


@pytest.mark.parametrize("key", ["exif", "xmp"])
def test_a_jpeg_is_turned_upright(tmp_path: Path, key: str) -> None:
    left_dark = np.zeros((16, 32), np.uint8)
    left_dark[:, 16:] = 255
    metadata = exif(6) if key == "exif" else ELEMENT.format(6).encode()
    save(tmp_path / "a.jpg", left_dark, **{key: metadata})
    found = decode(tmp_path / "a.jpg", "a", Options()).values[0].astype(float)
    assert found.shape == (32, 16)
    assert found[:15].mean() < 5
    assert found[17:].mean() > 250


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path: Path, orientation: int) -> None:
    values = colour()
    save(tmp_path / "a.png", values, exif=exif(orientation))
    np.testing.assert_array_equal(decode(tmp_path / "a.png", "a", Options()).values, np.moveaxis(values, 2, 0))


@pytest.mark.parametrize(
    "metadata",
    [
        {"pnginfo": raw_profile("exif", b"Exif\0\0no such thing")},
        {"exif": b"Exif\0\0no such thing"},
        {"pnginfo": None},
    ],
)
def test_metadata_that_cannot_be_read_are_named(tmp_path: Path, metadata: dict[str, Any]) -> None:
    if metadata == {"pnginfo": None}:
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", "\nexif\n      20\n4578\n")  # fewer digits than it says
        metadata = {"pnginfo": info}
    save(tmp_path / "a.png", colour(), **metadata)
    with pytest.raises(DiffusionalError, match=r"a\.png: the orientation could not be read .*without metadata"):
        decode(tmp_path / "a.png", str(tmp_path / "a.png"), Options())


# ------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    folder_of(tmp_path)
    first, *more = [Image.fromarray(colour()) for _ in range(3)]
    first.save(tmp_path / f"film.{suffix}", save_all=True, append_images=more)
    with pytest.raises(DiffusionalError, match=rf"film.{suffix} has several frames"):
        load(tmp_path)


def test_the_first_frame_of_a_gif(tmp_path: Path) -> None:
    frames = [np.full((4, 4), shade, np.uint8) for shade in (10, 200)]
    for i in range(10):
        first, second = map(Image.fromarray, frames)
        first.save(tmp_path / f"{i}.gif", save_all=True, append_images=[second])
    assert set(load(tmp_path, grey=True).tensor("train").flatten().tolist()) == {10}


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_damaged_images_are_named(tmp_path: Path, content: bytes | None) -> None:
    folder_of(tmp_path, make=lambda: colour(40, 40))
    path = tmp_path / "06.png"
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    with pytest.raises(DiffusionalError, match=r"06.png could not be read as an image"):
        load(tmp_path)


def test_an_empty_folder_lists_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(DiffusionalError, match=r"holds no data of a known kind \(it holds: nothing\); expected"):
        load(tmp_path)
    (tmp_path / "a.docx").write_bytes(b"")
    with pytest.raises(DiffusionalError, match=r"it holds: a.docx"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------------------- storage


@pytest.fixture
def small_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(storage, "available_memory", lambda: 2)
    monkeypatch.setattr(checks, "IN_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffusional"


def test_what_exceeds_memory_is_cached(small_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = folder_of(tmp_path / "data")
    data = load(tmp_path / "data")
    assert isinstance(data.train, Rows)
    assert data.train.mapped
    np.testing.assert_array_equal(in_order(data, 10), np.moveaxis(values, 3, 1))
    (file,) = small_memory.iterdir()
    made = file.stat().st_mtime_ns
    again = load(tmp_path / "data", seed=1)
    assert file.stat().st_mtime_ns == made  # not decoded twice, whatever the split
    np.testing.assert_array_equal(in_order(again, 10, seed=1), np.moveaxis(values, 3, 1))
    cropped, stretched = (load(tmp_path / "data", size=4, fit=fit) for fit in ("crop", "resize"))
    assert not torch.equal(cropped.tensor("train"), stretched.tensor("train"))
    assert len(list(small_memory.iterdir())) == 3
    # So does another way to decode the same files, such as one that turns pictures upright.
    with monkeypatch.context() as patched:
        patched.setattr(image_folders, "_DECODER", 0)
        load(tmp_path / "data")
    assert len(list(small_memory.iterdir())) == 4
    # A file that changed makes another cache.
    save(tmp_path / "data" / "00.png", 255 - values[0])
    os.utime(tmp_path / "data" / "00.png", ns=(1, 1))
    np.testing.assert_array_equal(in_order(load(tmp_path / "data"), 10)[0], np.moveaxis(255 - values[0], 2, 0))


def test_no_half_cache_is_left(small_memory: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "data")
    (tmp_path / "data" / "07.png").write_bytes(b"x")
    with pytest.raises(DiffusionalError, match=r"07.png could not be read"):
        load(tmp_path / "data")
    assert not list(small_memory.iterdir())


def test_a_full_disk_is_told_before_the_work(
    small_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "data")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DiffusionalError, match=r"more than the 0.0 GiB that are free in .*XDG_CACHE_HOME"):
        load(tmp_path / "data")


def test_threads_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "_CHUNK", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    values = folder_of(tmp_path, 50, lambda: colour(3, 3))
    np.testing.assert_array_equal(in_order(load(tmp_path), 50), np.moveaxis(values, 3, 1))


MEASURE = f"""
import sys
{PEAK}
from diffusional.data import load
import PIL.PngImagePlugin
before = peak()
data = load(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.slow
def test_twenty_thousand_small_images(tmp_path: Path) -> None:
    base = colour(64, 64)
    for i in range(20_000):
        y, x = RNG.integers(0, 32, 2)
        save(tmp_path / f"{i % 10}" / f"{i}.png", base[y : y + 32, x : x + 32])
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, env=environment()
    )
    assert ran.returncode == 0, ran.stderr
    grown = int(ran.stdout)
    size = 20_000 * 32 * 32 * 3
    assert grown * 1024 < 2.1 * size + 2**26  # the array and the tensors made of it, and Pillow


def _png(values: np.ndarray, bits: int = 8) -> bytes:
    """A PNG by its specification, of any bit depth, apart from Pillow, which cannot write all of them."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    h, w = values.shape[:2]
    if bits < 8:
        ones = np.unpackbits(values[..., None], axis=2)[:, :, -bits:].reshape(h, w * bits)
        lines = np.packbits(ones, axis=1)
    else:
        lines = values.astype(">u2" if bits == 16 else "u1").reshape(h, -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", w, h, bits, 0 if values.ndim == 2 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
