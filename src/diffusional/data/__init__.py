"""Data: the embedded digits and the user's own, as a `Dataset` of one space and three splits.

`load` accepts:

    "digits"                          scikit-learn's digits, 17 levels, a fixed split
    "text"                            the prose of Python's own help, 27 characters, a fixed split
    *.txt, *.md                       a text, as blocks of tokens (data/tokens.py)
    *.npy                             one array (N, …), split at random, read from the file as needed
    *.npz                             one array, or train / validation (val) / test (also x_train, …)
    *-ubyte, *.idx [.gz]              one IDX array, split at random
    *.csv, *.tsv [.gz], *.parquet     a table of real numbers, columns chosen by name
    a folder                          of images, of tables, or MNIST's files train-images-idx3-ubyte[.gz], …
    "hf:owner/name[:config]"          a data set of the Hugging Face Hub (or hf:/folder), perhaps streamed

`from_torch` accepts any map-style Dataset of PyTorch.

`load` splits data and declares their space, for training. `read` returns all items of a file in its order, in the space of a model that
was trained on other data, for scoring.
"""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from diffusional.data import arrays, digits, idx, images, tokens
from diffusional.data import prompts as prompts
from diffusional.data.checks import to_dataset
from diffusional.data.classes import LABEL, Labels, check_length
from diffusional.data.collection import Collection, check_names, collected
from diffusional.data.dataset import Dataset
from diffusional.data.derived import is_derived, with_derived
from diffusional.data.formats import ACCEPTED, format_of, given_name
from diffusional.data.given import Wanted
from diffusional.data.hub import load_hub, read_hub
from diffusional.data.joint import split_condition, with_derived_first
from diffusional.data.pictures import Fit, Options
from diffusional.data.pytorch import from_torch
from diffusional.data.splits import Fractions, Part, split_at_random
from diffusional.data.texts import CAPTION, text_source, with_texts, written
from diffusional.errors import DiffusionalError
from diffusional.space import Categorical, Space
from diffusional.text import Form

__all__ = ["Collection", "Dataset", "from_torch", "load", "read"]

_HUB = "hf:"
# Prefix of the name of data that were given in Python and have no file.
PYTHON = "python:"
_ARRAY = "an array (.npy, .npz, IDX)"
# Names of the kinds of data in errors.
_CALLED = {
    "digits": "digits",
    "numpy": _ARRAY,
    "idx": _ARRAY,
    "mnist": "MNIST's files",
    "images": "images",
    "table": "a table",
    "hub": "the Hub",
    "text": "text and arrays of tokens",
}
# The kinds of data that an option applies to, and its default.
_OPTIONS: dict[str, tuple[tuple[str, ...], Any]] = {
    "size": (("images", "hub"), None),
    "fit": (("images", "hub"), "crop"),
    "grey": (("images", "hub"), None),
    "columns": (("table",), None),
    "decimal": (("table",), None),
    "column": (("hub",), None),
    "streaming": (("hub",), False),
    "holdout": (("hub",), 1000),
    "alphabet": (("text",), None),
    "length": (("text",), None),
}


def load(
    name_or_path: str | Path,
    levels: int | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    *,
    size: int | None = None,
    fit: Fit = "crop",
    grey: bool | None = None,
    columns: tuple[str, ...] | None = None,
    decimal: Literal[".", ","] | None = None,
    column: str | None = None,
    streaming: bool = False,
    holdout: int = 1000,
    condition: str | None = None,
    text_encoder: str | None = None,
    text_form: Form = "pooled",
    alphabet: str | None = None,
    length: int | None = None,
) -> Dataset:
    """Load the data sets "digits" or "text", or the data of a file, a folder (`./digits` for a folder of that name) or the Hub.

    `levels` is the number of levels K of integer data, 0 … K−1, and must be declared. Booleans have 2 levels, and images those of
    their format; real-valued data have none and are standardised by their train split. Data in one piece are split into the
    fractions `split` of train, validation and test by a permutation drawn from `seed`. For an .npz with train and test but no
    validation, validation is the last `split[1]` of train; for folders and the Hub, missing splits are random items of train. Data
    with all three splits, such as digits, are left as they are. Arrays N×H×W become N×1×H×W, and N×H×W×C become N×C×H×W.

    With `condition`, the class labels of the items are their condition (`Dataset.condition` and `Dataset.classes`). It is "label" for
    labels that belong to the data (of digits and MNIST, under a key such as y in an .npz, the folders of images, the only ClassLabel
    column of the Hub), or the name of the column or key of the labels. Of images it may also be "low-resolution:F" or "inpaint"
    (`data.derived`), which is computed from them; "numbers:NAME" and "tokens:NAME" are numbers and tokens of keys or columns
    (`data.given`). With "caption", the condition is the embeddings of texts (`data.texts`) by
    `text_encoder`: a vector for each text or, with text_form="tokens", one for each token. "text:ENCODER" is the same with this encoder.

    `alphabet` and `length` are for text and arrays of tokens (`data.tokens.load_text`).

    `size`, `fit` and `grey` are for images (`data.pictures.Options`), `columns` and `decimal` for tables (`data.tables.load_table`), `column`,
    `streaming` and `holdout` for the Hub (`data.hub.load_hub`).

    Raises DiffusionalError for data that cannot be read or are ambiguous, and for an option that is not for these data.

    >>> data = load("digits")
    >>> data.space
    Discrete(shape=(1, 8, 8), levels=17, low=-1.0, high=1.0)
    >>> data.encode("test").shape
    torch.Size([447, 1, 8, 8])
    >>> load("digits", size=32)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: size=32 was given for digits, but it is for images and the Hub; leave it out
    """
    given: dict[str, Any] = {"size": size, "fit": fit, "grey": grey, "columns": columns, "decimal": decimal}
    given |= {"column": column, "streaming": streaming, "holdout": holdout, "alphabet": alphabet, "length": length}
    first, other = split_condition(condition)
    if first is not None:
        assert condition is not None
        texts_of: dict[str, Any] = {"text_encoder": text_encoder, "text_form": text_form}
        dataset = load(name_or_path, levels, split, seed, **given, **texts_of, condition=other)
        return with_derived_first(dataset, condition)
    text = text_source(condition, text_encoder)
    if text is not None:
        texts, encoder = text
        dataset = _with_captions(name_or_path, levels, split, seed, given, condition, texts)
        arguments = dict(dataset.arguments or {}) | {"condition": condition}
        arguments |= {} if text_encoder is None else {"text_encoder": text_encoder}
        arguments |= {} if text_form == "pooled" else {"text_form": text_form}
        return with_texts(dataset, encoder, text_form, arguments)
    if text_form != "pooled":
        raise DiffusionalError(
            f"text_form={text_form!r} was given for condition={condition!r}, which is not texts; give condition='caption', or leave the form "
            "out"
        )
    if is_derived(condition):
        assert condition is not None
        return with_derived(load(name_or_path, levels, split, seed, **given), condition)
    return _loaded(name_or_path, levels, split, seed, given, condition)


def _loaded(
    name_or_path: str | Path,
    levels: int | None,
    split: Fractions,
    seed: int,
    given: dict[str, Any],
    condition: str | None,
) -> Dataset:
    """Return data with their labels, numbers or tokens as condition, or with their texts, which are not embedded yet."""
    name = str(name_or_path)
    if name_or_path == "digits":
        _refuse_others(given, "digits")
        _check_digits(levels)
        return digits.load_digits(condition)
    if name_or_path == tokens.EMBEDDED or given["alphabet"] is not None:
        _refuse_others(given, "text")
        return _text(name_or_path, condition, given, levels, split, seed)
    path, kind = _kind(name_or_path)
    _refuse_others(given, kind)
    options = Options(given["size"], given["fit"], given["grey"])
    if kind == "text":
        return _text(name_or_path, condition, given, levels, split, seed)
    if kind == "hub":
        stream = (given["column"], given["streaming"], given["holdout"])
        dataset = load_hub(name, levels, split, seed, options, *stream, condition)
    elif kind == "images":
        dataset = images.load_images(path.resolve(), levels, split, seed, options, condition)
    elif kind == "table":
        from diffusional.data.tables import load_table  # importing pyarrow takes a while, and most uses do not need it

        dataset = load_table(path.absolute(), levels, split, seed, given["columns"], given["decimal"], condition)
    else:
        dataset = to_dataset(path.resolve().name, _array_parts(path, kind, split, seed, condition), levels)
    if dataset.source is None:
        return dataset
    arguments = {"name_or_path": name if kind == "hub" else str(path.absolute()), "levels": levels}
    arguments |= {"split": tuple(split), "seed": seed} | given
    arguments |= {} if condition is None else {"condition": condition}
    return dataclasses.replace(dataset, source=dataclasses.replace(dataset.source, arguments=arguments))


def _with_captions(
    name_or_path: str | Path,
    levels: int | None,
    split: Fractions,
    seed: int,
    given: dict[str, Any],
    condition: str | None,
    column: str | None,
) -> Dataset:
    """Return data with their captions, which are not encoded yet."""
    kind = "digits" if name_or_path == "digits" else _kind(name_or_path)[1]
    if kind in ("digits", "mnist", "idx"):
        if column is not None:
            raise DiffusionalError(
                f"condition='caption:{column}' was given for {_CALLED[kind]}, which has no columns or keys: its captions are written from the "
                "labels and the images; give condition='caption'"
            )
        return written(_loaded(name_or_path, levels, split, seed, given, LABEL))
    return _loaded(name_or_path, levels, split, seed, given, CAPTION if column is None else f"{CAPTION}:{column}")


def read(
    name_or_path: str | Path,
    space: Space,
    *,
    columns: tuple[str, ...] | None = None,
    names: tuple[str, ...] = (),
    split: str | None = None,
    size: int | None = None,
    fit: Fit = "crop",
    grey: bool | None = None,
    column: str | None = None,
    decimal: Literal[".", ","] | None = None,
    condition: str | None = None,
    classes: tuple[str, ...] = (),
) -> Collection:
    """Read all items of a file or folder, in its order, in the space of a model that was trained on other data.

    Nothing is split at random, and nothing is computed from these items: `encode` uses the standardisation of `space`. A file may therefore
    have a single item, or a constant column.

    Args:
        name_or_path: as for `load`.
        space: `model.space`, which the items must fit: their shape, whether they are discrete, and their levels.
        columns: columns of a table to read, by name. Defaults to all.
        names: names of the columns that the model was trained on (`labels` of its Dataset). Columns are matched by name: a table in
            another order is reordered, and one with missing or further columns is refused. If the model or the file
            has no names, columns are matched by position, with a note in `Collection.notes`.
        split: "train", "validation" or "test", to read only the items that the file itself assigns to it. Defaults to all.
        size, fit, grey, column, decimal: as for `load`.
        condition: where the class labels of the items are, as for `load`, for a model with `classes`; or where the texts are, which are
            returned as `Collection.captions`, or numbers or tokens.
        classes: names of the classes that the model was trained on (`model.classes`). Labels are matched by name.

    Raises DiffusionalError as `load` does, for items that are not of the space, and for labels of other classes.

    >>> import tempfile
    >>> from diffusional import Continuous
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "new.csv"
    ...     _ = path.write_text("weight,age\\n70,20\\n")
    ...     items = read(path, Continuous((2,), (30.0, 60.0), (10.0, 5.0)), names=("age", "weight"))
    >>> items.encode().tolist(), items.origin_of(0)
    ([[-1.0, 2.0]], 'new.csv, row 0')
    """
    given = {"size": size, "fit": fit, "grey": grey, "columns": columns, "column": column}
    given |= {"decimal": decimal}
    wanted = None if condition is None else Wanted.of(condition)
    if (wanted is not None and wanted.kind == "labels") != bool(classes):
        raise DiffusionalError(
            f"condition={condition!r} and {len(classes)} classes were given; expected both, for a model with classes, or neither"
        )
    written_here = wanted is not None and wanted.kind == "texts"
    if name_or_path == "digits":
        _refuse_others(given, "digits")
        parts = digits.parts(LABEL if written_here else condition)
        return collected("digits", parts, digits.LEVELS, space, names, split, classes, wanted)
    if isinstance(space, Categorical):
        _refuse_others(given, "text")
        return tokens.read_text(name_or_path, space, split)
    path, kind = _kind(name_or_path)
    _refuse_others(given, kind)
    if kind == "text":
        raise DiffusionalError(f"expected items of {space} for this model, got a text, {name_or_path}")
    options, stored = Options(size, fit, grey), None
    if kind == "hub":
        parts, stored = read_hub(str(name_or_path), options, column, condition)
        found = collected(str(name_or_path), parts, stored, space, names, split, classes)
        # Keep only the notes on splits that were not read.
        return replace(found, notes=(*found.notes, *next(iter(parts.values())).notes))
    if kind == "images":
        parts, stored = images.read_images(path.resolve(), None, None, 0, options, condition)
    elif kind == "table":
        from diffusional.data.tables import column_names, read_table

        if names:
            check_names(columns or column_names(path.absolute(), condition), names, str(path))
        parts = read_table(path.absolute(), None, 0, names or columns, decimal, condition)
        return collected(given_name(path), parts, None, space, names, split, classes)
    else:
        parts = _array_parts(path, kind, None, 0, LABEL if written_here and kind != "numpy" else condition)
    return collected(path.resolve().name, parts, stored, space, names, split, classes, wanted)


def _text(
    name_or_path: str | Path,
    condition: str | None,
    given: dict[str, Any],
    levels: int | None,
    split: Fractions,
    seed: int,
) -> Dataset:
    if condition is not None:
        raise DiffusionalError(f"condition={condition!r} was given for text, which has no labels; leave it out")
    return tokens.load_text(name_or_path, given["alphabet"], given["length"], levels, split, seed)


def _kind(name_or_path: str | Path) -> tuple[Path, str]:
    """Return the path and the kind of its data. Raises DiffusionalError for data that cannot be loaded by name."""
    name = str(name_or_path)
    if name.startswith(PYTHON):
        raise DiffusionalError(
            f"the data {name.removeprefix(PYTHON)!r} were given in Python as a Dataset and cannot be loaded by name; give the file "
            "that holds them (evaluate: --data FILE), or pass the Dataset in Python (df.train(config, run, data, resume=True))"
        )
    if not name:
        raise DiffusionalError(f'the name of the data is empty, expected {ACCEPTED} ("." for the working folder)')
    path = Path(name_or_path).expanduser()
    return path, "hub" if name.startswith(_HUB) else format_of(path)


def _array_parts(
    path: Path, kind: str, fractions: Fractions | None, seed: int, condition: str | None
) -> dict[str, Part]:
    if kind == "numpy":
        return arrays.choose_splits(arrays.read_numpy(path), str(path), fractions, seed, condition)
    if condition not in (None, LABEL):
        raise DiffusionalError(
            f"condition={condition!r} was given for {path}, expected {LABEL!r}: IDX files have no keys"
        )
    if kind == "mnist":
        labels = None if condition is None else idx.read_mnist_labels(path)
        return arrays.mnist_splits(idx.read_mnist_folder(path), str(path), fractions, labels)
    values = idx.read_idx(path)
    parts = split_at_random(values, str(path), fractions, seed)
    if condition is None:
        return parts
    where = f"the labels beside {path}"
    targets = check_length(Labels.of(idx.labels_beside(path), where), len(values), where)
    return {split: dataclasses.replace(part, targets=targets) for split, part in parts.items()}


def _check_digits(levels: int | None) -> None:
    if levels not in (None, digits.LEVELS):
        raise DiffusionalError(
            f"levels must be {digits.LEVELS} for digits, got {levels}; leave levels out, or name other data (--data)"
        )


def _refuse_others(given: dict[str, Any], kind: str) -> None:
    """Raise DiffusionalError for a given option that is for other kinds of data."""
    for option, (kinds, default) in _OPTIONS.items():
        if given.get(option, default) != default and kind not in kinds:
            others = " and ".join(_CALLED[kind] for kind in kinds)
            raise DiffusionalError(
                f"{option}={given[option]!r} was given for {_CALLED[kind]}, but it is for {others}; leave it out"
            )
