"""Texts, numbers and tokens beside the items of every kind of file: read with their rows, and refused where they are missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import diffusional as df
from diffusional.data.dataset import SPLITS
from diffusional.errors import DiffusionalError
from diffusional.text import load_encoder

N = 20
X = np.arange(2 * N).reshape(N, 2) % 17
TEXTS = [f"item number{i}" for i in range(N)]
AGES = np.linspace(-1, 3, N).astype(np.float32)
TOKENS = np.stack([np.full((3, 2), i) for i in range(N)]).astype(np.float32)
MASK = np.arange(3)[None] <= np.arange(N)[:, None] % 3


def npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=X, captions=np.array(TEXTS), age=AGES, emb=TOKENS, emb_mask=MASK)
    return folder / "a.npz"


def csv(folder: Path) -> Path:
    lines = ["a,b,caption,age", *(f"{x[0]},{x[1]},{t},{a!r}" for x, t, a in zip(X, TEXTS, AGES.tolist(), strict=True))]
    (folder / "a.csv").write_text("\n".join(lines) + "\n")
    return folder / "a.csv"


def parquet(folder: Path) -> Path:
    lists = [tokens[: mask.sum()].tolist() for tokens, mask in zip(TOKENS, MASK, strict=True)]
    columns = {"a": X[:, 0], "b": X[:, 1], "caption": TEXTS, "age": AGES, "emb": lists}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


def pictures(folder: Path) -> Path:
    root = folder / "images"
    root.mkdir()
    rows = []
    for i in range(N):
        Image.fromarray(np.full((4, 4), X[i, 0], np.uint8)).save(root / f"{i:02}.png")
        emb = TOKENS[i, : MASK[i].sum()].tolist()
        rows.append({"file_name": f"{i:02}.png", "text": TEXTS[i], "age": float(AGES[i]), "emb": emb})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return root


MAKERS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "npz": (npz, {"levels": 17}),
    "csv": (csv, {"levels": 17}),
    "parquet": (parquet, {"levels": 17}),
    "images": (pictures, {}),
}


@pytest.mark.parametrize("make", MAKERS)
def test_conditions_are_those_of_their_items(make: str, tmp_path: Path) -> None:
    maker, options = MAKERS[make]
    path = maker(tmp_path)
    columns = {"columns": ("a", "b")} if make in ("csv", "parquet") else {}
    rows = {split: df.data.load(path, **options, **columns).origin(split) for split in SPLITS}
    where = {split: np.arange(N)[origin.where] for split, origin in rows.items() if origin is not None}

    data = df.data.load(path, **options, **columns, condition="caption")
    for split in SPLITS:
        assert list(data.captions_of(split)) == [TEXTS[row] for row in where[split]]
        assert data.condition_of(split).equal(load_encoder().encode(data.captions_of(split)).pooled)
    assert data.arguments is not None
    assert df.data.load(**data.arguments).condition_hash("train") == data.condition_hash("train")
    found = df.data.read(path, data.space, names=data.labels, **columns, condition="caption")
    assert list(found.captions) == TEXTS

    data = df.data.load(path, **options, **columns, condition="numbers:age")
    assert str(data.condition_form) == "numbers of shape (1,)"
    for split in SPLITS:
        np.testing.assert_allclose(data.condition_of(split)[:, 0].numpy(), AGES[where[split]], rtol=1e-6)
    found = df.data.read(path, data.space, names=data.labels, **columns, condition="numbers:age")
    assert isinstance(found.condition, torch.Tensor)
    np.testing.assert_allclose(found.condition[:, 0].numpy(), AGES, rtol=1e-6)

    if make == "csv":
        with pytest.raises(DiffusionalError, match="Parquet"):
            df.data.load(path, **options, **columns, condition="tokens:age")
        return
    data = df.data.load(path, **options, **columns, condition="tokens:emb")
    for split in SPLITS:
        condition = data.condition_of(split)
        assert condition["mask"].numpy().tolist() == MASK[where[split]].tolist()
        assert condition["tokens"].equal(torch.from_numpy(TOKENS * MASK[:, :, None])[where[split]])


def test_several_columns_of_numbers_and_the_default_columns(tmp_path: Path) -> None:
    path = csv(tmp_path)
    data = df.data.load(path, levels=17, condition="numbers:age,b", columns=("a",))
    assert data.condition_of("train").shape == (16, 2)
    assert sorted(np.concatenate([data.condition_of(split)[:, 1] for split in SPLITS])) == sorted(X[:, 1])
    # A column of the condition is none of the items; the other is, and is not a number.
    with pytest.raises(DiffusionalError, match=r"'caption' is not numeric"):
        df.data.load(path, levels=17, condition="numbers:age")
    assert df.data.load(path, 17, condition="caption:caption", columns=("b",)).captions_of("test")
    with pytest.raises(DiffusionalError, match=r"'title'.*'a', 'b', 'caption', 'age'"):
        df.data.load(path, 17, condition="caption:title")
    with pytest.raises(DiffusionalError, match=r"'caption' is not numeric.*numbers:caption"):
        df.data.load(path, 17, columns=("a",), condition="numbers:caption")
    with pytest.raises(DiffusionalError, match=r"numbers:NAME"):
        df.data.load(path, 17, condition="numbers:")


def test_splits_of_an_archive_have_their_own_conditions(tmp_path: Path) -> None:
    own = {
        "x_train": X[:15],
        "x_test": X[15:],
        "captions_train": np.array(TEXTS[:15]),
        "captions_test": np.array(TEXTS[15:]),
    }
    np.savez(tmp_path / "a.npz", **own)
    data = df.data.load(tmp_path / "a.npz", 17, condition="caption")
    assert list(data.captions_of("test")) == TEXTS[15:]
    # Texts are no data, also of a model without a condition.
    assert df.data.load(tmp_path / "a.npz", 17).condition is None
    np.savez(tmp_path / "b.npz", **{**own, "captions_test": own["captions_test"][1:]})
    with pytest.raises(DiffusionalError, match="4 texts for 5 items"):
        df.data.load(tmp_path / "b.npz", 17, condition="caption")


@pytest.mark.parametrize(
    ("arrays", "condition", "match"),
    [
        ({"y": X[:, 0]}, "caption", r"caption, captions, text, texts.*'x', 'y'"),
        ({"captions": AGES}, "caption", r"expected texts \(N,\), got float32"),
        ({"captions": np.array(["a"] * 18 + ["", " "])}, "caption", r"2 of 20 rows have no text: rows 18, 19"),
        ({"age": np.array(TEXTS)}, "numbers:age", r"expected numbers.*<U"),
        ({"age": np.where(AGES > 2, np.nan, AGES)}, "numbers:age", r"row 15 .*not finite"),
        ({"age": AGES}, "numbers:age,weight", r"'weight'"),
        ({"emb": AGES}, "tokens:emb", r"tokens \(N, L, W\), got float32 of shape \(20,\)"),
        (
            {"emb": TOKENS, "mask": MASK[:, :2]},
            "tokens:emb",
            r"mask of 0 and 1, \(20, 3\), got bool of shape \(20, 2\)",
        ),
        ({"emb": TOKENS[:19]}, "tokens:emb", "19 tokens for 20 items"),
    ],
)
def test_arrays_that_are_no_conditions(
    arrays: dict[str, np.ndarray], condition: str, match: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", x=X, **arrays)
    with pytest.raises(DiffusionalError, match=match):
        df.data.load(tmp_path / "a.npz", levels=17, condition=condition)


def test_lists_that_are_no_tokens(tmp_path: Path) -> None:
    for bad in ([[1.0, 2.0], [3.0]], [[1.0]], [], None):
        lists = [[[1.0, 2.0]]] * 19 + [bad]
        pq.write_table(pa.table({"a": X[:, 0], "emb": lists}), tmp_path / "a.parquet")
        with pytest.raises(DiffusionalError, match="row 19 is not a list of vectors"):
            df.data.load(tmp_path / "a.parquet", 17, condition="tokens:emb")


def test_lines_beside_images(tmp_path: Path) -> None:
    root = pictures(tmp_path)
    lines = (root / "metadata.jsonl").read_text().splitlines()

    def written(name: str, some: list[str], match: str | None = None) -> Any:
        (root / name).write_text("\n".join(some) + "\n")
        if match is None:
            return df.data.load(root, condition="caption")
        with pytest.raises(DiffusionalError, match=match):
            df.data.load(root, condition="caption")
        return None

    # captions.jsonl is read instead.
    (root / "captions.jsonl").write_text("")
    written("captions.jsonl", lines[2:], r"2 of 20 images have no line in .*: '00\.png', '01\.png'")
    written("captions.jsonl", [*lines, '{"file_name": "no.png", "text": "a"}'], r"1 lines .*'no\.png'")
    written("captions.jsonl", [*lines, lines[3]], r"line 21: 03\.png has a line already")
    written("captions.jsonl", [*lines[:3], "{", *lines[4:]], r"captions\.jsonl, line 4 is not JSON")
    written("captions.jsonl", [*lines[:3], '{"text": "a"}'], r'line 4: expected an object with "file_name"')
    written(
        "captions.jsonl", [lines[0].replace("item number0", " "), *lines[1:]], r"1 of 20 images have no text: '00\.png'"
    )
    assert written("captions.jsonl", lines[::-1]).captions_of("train")
    with pytest.raises(DiffusionalError, match=r"'title'.*'text', 'age', 'emb'"):
        df.data.load(root, condition="caption:title")
    for name in ("captions.jsonl", "metadata.jsonl"):
        (root / name).unlink()
    with pytest.raises(DiffusionalError, match=r"captions\.jsonl or metadata\.jsonl"):
        df.data.load(root, condition="caption")


def test_lines_in_the_folder_of_each_split(tmp_path: Path) -> None:
    root = pictures(tmp_path)
    (root / "metadata.jsonl").unlink()
    for split, numbers in (("train", range(15)), ("test", range(15, N))):
        (root / split).mkdir()
        rows = [{"file_name": f"./{i:02}.png", "text": TEXTS[i]} for i in numbers]
        for i in numbers:
            (root / f"{i:02}.png").rename(root / split / f"{i:02}.png")
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = df.data.load(root, condition="caption")
    assert list(data.captions_of("test")) == TEXTS[15:]


def test_columns_of_the_hub(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    tokens = [t[: m.sum()].tolist() for t, m in zip(TOKENS, MASK, strict=True)]
    features = datasets.Features(
        x=datasets.Sequence(datasets.Value("int64"), length=2),
        caption=datasets.Value("string"),
        pair=datasets.Sequence(datasets.Value("float32"), length=2),
        emb=datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
    )
    pair = np.stack([AGES, -AGES], 1).tolist()
    made = datasets.Dataset.from_dict(
        {"x": X.tolist(), "caption": TEXTS, "pair": pair, "emb": tokens}, features=features
    )
    (tmp_path / "hub").mkdir()
    made.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    name = f"hf:{tmp_path / 'hub'}"
    data = df.data.load(name, 17, column="x", condition="caption")
    origin = data.origin("test")
    assert origin is not None
    assert list(data.captions_of("test")) == [TEXTS[row] for row in origin.rows()]
    # The column of the condition is not taken for the items.
    data = df.data.load(name, 17, condition="numbers:pair")
    assert data.condition_of("test").equal(torch.tensor(pair)[origin.rows()])
    assert df.data.load(name, 17, column="x", condition="tokens:emb").condition_of("test")["tokens"].shape == (2, 3, 2)
