"""Captions: what is measured on images, the words for it, and captions of digits and MNIST's files as a condition."""

from pathlib import Path

import numpy as np
import pytest
import torch

import diffusional as df
from diffusional.data.captions import measure, write
from diffusional.data.dataset import SPLITS
from diffusional.data.texts import text_source
from diffusional.errors import DiffusionalError


def line(slope: float, width: float, side: int = 28, right: float = 0.0, below: float = 0.0) -> np.ndarray:
    """A line of 0.6 of the height, drawn by the share of each pixel that it covers, 255 levels."""
    fine = 8
    at = (np.arange(side * fine) + 0.5) / fine - side / 2
    y, x = np.meshgrid(at - below, at - right, indexing="ij")
    inside = (np.abs(x + slope * y) * np.cos(np.arctan(slope)) < width / 2) & (np.abs(y) < 0.3 * side)
    return np.rint(255 * inside.reshape(side, fine, side, fine).mean((1, 3))).astype(np.uint8)


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.3])
def test_the_slant_is_that_of_a_line(slope: float) -> None:
    assert measure(line(slope, 2.5)[None], 256).slant[0] == pytest.approx(slope, abs=0.01)


def test_the_stroke_is_the_width_of_a_line_and_the_position_its_middle() -> None:
    widths = np.array([2.0, 3.0, 4.0])
    found = 28 * measure(np.stack([line(0, width) for width in widths]), 256).stroke
    # The ends of the line are edges as well: 2 w h/(2 h + 2 w).
    np.testing.assert_allclose(found, widths * 16.8 / (16.8 + widths), rtol=0.12)
    moved = measure(line(0, 2, right=4, below=-3)[None], 256)
    assert (28 * moved.right[0], 28 * moved.below[0]) == pytest.approx((4, -3), abs=0.5)


def test_the_size_is_the_distance_from_the_centre_of_mass() -> None:
    dots = np.zeros((1, 10, 12), int)
    dots[0, 2, 3], dots[0, 6, 6] = 3, 1
    # The centre is a quarter of the way from the first dot, which are 5 apart: √(3 (5/4)² + (15/4)²)/2.
    assert measure(dots, 4).size[0] == pytest.approx(np.sqrt(3 * 1.25**2 + 3.75**2) / 2 / 10, rel=1e-12)


def test_large_images_do_not_overflow() -> None:
    image = np.zeros((1, 1024, 1024), np.uint8)
    image[0, 200:800, 100:1000] = 255
    found = measure(image, 256)
    assert found.slant[0] == 0
    assert found.size[0] == pytest.approx(np.sqrt((600**2 - 1) / 12 + (900**2 - 1) / 12) / 1024, rel=1e-12)


def test_words_and_their_thresholds() -> None:
    images = np.stack([line(0.4, 4), line(-0.4, 1.2), line(0, 2.9, right=4, below=-3), 0 * line(0, 2)])
    assert write(images, 256, ["7", "8", "cat", "0"]) == [
        "a thick small seven leaning right",
        "a thin small eight leaning left",
        "a small cat at the top right",
        "a zero",
    ]
    assert write(images[3:], 256, ["8"]) == ["an eight"]
    with pytest.raises(DiffusionalError, match="4 images, got 1"):
        write(images, 256, ["7"])
    with pytest.raises(DiffusionalError, match="float64"):
        write(images / 255, 256, ["7"] * 4)


def test_captions_of_the_digits_are_a_condition() -> None:
    data, labels = df.data.load("digits", condition="caption"), df.data.load("digits", condition="label")
    assert (data.classes, data.condition_form and data.condition_form.shape) == ((), (128,))
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for split in SPLITS:
        captions, numbers = data.captions_of(split), labels.condition_of(split).tolist()
        assert all(words[number] in caption.split() for caption, number in zip(captions, numbers, strict=True))
    # Captions say more than the label.
    assert len(set(data.captions_of("train"))) > 200
    assert data.text is not None
    assert data.condition_of("test").equal(data.text.condition(data.captions_of("test")))
    assert data.fingerprint("test") == labels.fingerprint("test")
    again = df.data.load(**data.arguments)  # type: ignore[arg-type]
    assert again.condition_hash("train") == data.condition_hash("train") != data.condition_hash("test")


def test_captions_go_with_their_items() -> None:
    data = df.data.load("digits", condition="caption")
    some = data.subset("test", torch.tensor([5, 2]))
    assert some.captions_of("test") == (data.captions_of("test")[5], data.captions_of("test")[2])
    assert some.condition_of("test").equal(data.condition_of("test", torch.tensor([5, 2])))
    assert some.condition_hash("train") == data.condition_hash("train")
    assert some.condition_hash("test") != data.condition_hash("test")
    plain = data.without_condition()
    assert (plain.text, plain.captions_of("test"), plain.condition) == (None, (), None)
    # The texts do not describe a condition that replaces theirs.
    other = {split: torch.zeros(len(getattr(data, split)), 2) for split in SPLITS}
    replaced = df.data.Dataset(data.name, data.space, data.train, data.validation, data.test, condition=other)
    assert replaced.text is None


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for stem, n in (("train", 20), ("t10k", 8)):
        images = np.stack([line(slope, 3) for slope in generator.uniform(-0.5, 0.5, n)])
        labels = np.arange(n, dtype=np.uint8) % 3
        for name, values in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, values.ndim]) + b"".join(k.to_bytes(4, "big") for k in values.shape)
            (folder / name).write_bytes(header + values.tobytes())
    return folder


def test_captions_of_mnist_s_files(mnist: Path) -> None:
    data = df.data.load(mnist, 256, condition="caption", text_form="tokens")
    assert data.captions_of("test")[2].split()[-3:] in (["two", "leaning", "left"], ["two", "leaning", "right"])
    longest = max(len(c.split()) for split in SPLITS for c in data.captions_of(split))
    assert str(data.condition_form) == f"tokens of shape ({longest}, 128)"
    mask = data.condition_of("test")["mask"]
    assert mask.sum(1).tolist() == [len(caption.split()) for caption in data.captions_of("test")]
    single = df.data.load(mnist / "train-images-idx3-ubyte", 256, condition="caption")
    assert sum(len(single.captions_of(split)) for split in SPLITS) == 20
    found = df.data.read(mnist, data.space, condition="caption")
    assert found.captions[:20] == df.data.read(mnist, data.space, split="train", condition="caption").captions
    assert found.captions[20:] == data.captions_of("test")
    with pytest.raises(DiffusionalError, match=r"caption:title.*no columns"):
        df.data.load(mnist, 256, condition="caption:title")


def test_options_of_texts_that_do_not_fit() -> None:
    assert text_source("caption", "minilm") == (None, "minilm")
    assert text_source("text:minilm", "minilm") == (None, "minilm")
    with pytest.raises(DiffusionalError, match=r"text:minilm.*t5"):
        text_source("text:minilm", "t5")
    with pytest.raises(DiffusionalError, match=r"text_encoder='minilm'.*label"):
        df.data.load("digits", condition="label", text_encoder="minilm")
    with pytest.raises(DiffusionalError, match=r"text_form='tokens'.*None"):
        df.data.load("digits", text_form="tokens")
