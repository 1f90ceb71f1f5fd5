"""Data: the embedded digits and users' own, as a `Dataset` of one space and three splits.

What `load` takes:

    "digits"                          scikit-learn's digits, 17 levels, a fixed split
    *.npy                             one array (N, …), split at random, read from the file as needed
    *.npz                             one array, or train / validation (val) / test (also x_train, …)
    *-ubyte, *.idx [.gz]              one IDX array, split at random
    *.csv, *.tsv [.gz], *.parquet     a table of real numbers, columns chosen by name
    a folder                          of images, of tables, or MNIST's files train-images-idx3-ubyte[.gz], …
    "hf:owner/name[:config]"          a data set of the Hugging Face Hub (or hf:/folder), perhaps streamed

and `from_torch` takes any map-style Dataset of PyTorch.
"""

from pathlib import Path
from typing import Any

from diffusional.data import arrays, digits, idx, images
from diffusional.data.checks import to_dataset
from diffusional.data.dataset import Dataset
from diffusional.data.hub import load_hub
from diffusional.data.kinds import kind_of
from diffusional.data.pictures import Fit, Options
from diffusional.data.pytorch import from_torch
from diffusional.data.splits import split_at_random
from diffusional.errors import DiffusionalError

__all__ = ["Dataset", "from_torch", "load"]

_HUB = "hf:"
_ARRAY = "an array (.npy, .npz, IDX)"
# What the kinds of data are called in errors.
_CALLED = {
    "digits": "digits",
    "numpy": _ARRAY,
    "idx": _ARRAY,
    "mnist": "MNIST's files",
    "images": "images",
    "table": "a table",
    "hub": "the Hub",
}
# Which kinds of data an option is for, and its default.
_OPTIONS: dict[str, tuple[tuple[str, ...], Any]] = {
    "size": (("images", "hub"), None),
    "fit": (("images", "hub"), "crop"),
    "grey": (("images", "hub"), None),
    "columns": (("table",), None),
    "column": (("hub",), None),
    "streaming": (("hub",), False),
    "holdout": (("hub",), 1000),
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
    column: str | None = None,
    streaming: bool = False,
    holdout: int = 1000,
) -> Dataset:
    """The data set "digits", or that of a file, a folder (`./digits` for a folder of that name) or the Hub.

    `levels` is the number of levels K of integer data, 0 … K−1, and must be declared; booleans have 2, images
    what their format says; real-valued data have none and are standardised by their train split. Data of one
    piece are split by a permutation drawn from `seed` into the fractions `split` of train, validation and test;
    an .npz that has train and test but no validation gives the last `split[1]` of train, folders and the Hub
    give what they lack as random items of train; data that come with all three, as digits do, are left as they
    are. Arrays N×H×W become N×1×H×W, and N×H×W×C become N×C×H×W.

    `size`, `fit` and `grey` are for images (`data.pictures.Options`), `columns` for tables, `column`,
    `streaming` and `holdout` for the Hub (`data.hub.load_hub`); an option that is not for the data that came is
    refused. Raises DiffusionalError for anything that cannot be read, or would have to be guessed.

    >>> data = load("digits")
    >>> data.space
    Discrete(shape=(1, 8, 8), levels=17, low=-1.0, high=1.0)
    >>> data.encode("test").shape
    torch.Size([447, 1, 8, 8])
    >>> load("digits", size=32)
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: size=32 came for digits, but it is for images and the Hub; leave it out
    """
    given = {"size": size, "fit": fit, "grey": grey, "columns": columns, "column": column}
    given |= {"streaming": streaming, "holdout": holdout}
    name = str(name_or_path)
    if name_or_path == "digits":
        _refuse_others(given, "digits")
        if levels not in (None, digits.LEVELS):
            raise DiffusionalError(
                f"levels={levels} came for digits, which have {digits.LEVELS}; leave levels out, or name other data (--data)"
            )
        return digits.load_digits()
    path = Path(name_or_path).expanduser()
    kind = "hub" if name.startswith(_HUB) else kind_of(path)
    _refuse_others(given, kind)
    options = Options(size, fit, grey)
    if kind == "hub":
        return load_hub(name, levels, split, seed, options, column, streaming, holdout)
    if kind == "images":
        return images.load_images(path.resolve(), levels, split, seed, options)
    if kind == "table":
        from diffusional.data.tables import load_table  # pyarrow takes a while, and most uses need none

        return load_table(path.resolve(), levels, split, seed, columns)
    if kind == "mnist":
        parts = arrays.mnist_splits(idx.read_mnist_folder(path), str(path), split)
    elif kind == "numpy":
        parts = arrays.choose_splits(arrays.read_numpy(path), str(path), split, seed)
    else:
        parts = split_at_random(idx.read_idx(path), str(path), split, seed)
    return to_dataset(path.resolve().name, parts, levels)


def _refuse_others(given: dict[str, Any], kind: str) -> None:
    """Raise DiffusionalError for an option that came and is for other kinds of data."""
    for option, (kinds, default) in _OPTIONS.items():
        if given[option] != default and kind not in kinds:
            others = " and ".join(_CALLED[kind] for kind in kinds)
            raise DiffusionalError(
                f"{option}={given[option]!r} came for {_CALLED[kind]}, but it is for {others}; leave it out"
            )
