"""Any map-style Dataset of PyTorch as a Dataset of this library: items are read by their index as they are needed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from diffusional.data.checks import Block, channels_first, find_space, kind_of_values
from diffusional.data.classes import Labels, conditions
from diffusional.data.dataset import SPLITS, Dataset, Source, block_rows
from diffusional.data.origin import Origin
from diffusional.data.pictures import Options, from_image
from diffusional.data.rows import integers, reals
from diffusional.data.splits import Fractions, Part, random_rows
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.space import Discrete

with needed_for("images"):
    from PIL import Image


def from_torch(
    train: Any,
    validation: Any = None,
    test: Any = None,
    levels: int | None = None,
    split: Fractions = (0.8, 0.1, 0.1),
    seed: int = 0,
    key: str | None = None,
    name: str = "dataset",
    condition: str | int | None = None,
    classes: Sequence[str] = (),
) -> Dataset:
    """Make a Dataset over objects with `len` and `[i]`: a torch Dataset, a list of tensors, ….

    An item is a tensor, an array or a Pillow image, or the first element of a tuple, or the value of a dict under `key`.
    Images have the levels of their mode, 256 for 8 bits; integers need `levels`, and
    H×W and H×W×C become 1×H×W and C×H×W, as in `load`. Splits that are not given are drawn from train by `seed`, with the fractions `split`.

    With `condition`, the class labels of the items are their condition. It is the index of the label in a tuple, such as 1 in
    torchvision's data sets, or its key in a dict. Labels are texts or whole numbers; with `classes`, or if the data set has an
    attribute `classes`, numbers are indices into these names.

    Every item is read once to check its values. Raises DiffusionalError, naming the item, for items that differ in shape or type,
    and for a data set that returns other values when it is read again (random augmentation).

    >>> data = from_torch([(torch.tensor([i, 1]), "label") for i in range(10)], levels=10)
    >>> data.space.shape, len(data.train), data.tensor("test").tolist()
    ((2,), 8, [[1, 1]])
    """
    objects = {part: given for part, given in zip(SPLITS, (train, validation, test), strict=True) if given is not None}
    for part, given in objects.items():
        if isinstance(given, IterableDataset) or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            raise DiffusionalError(
                f"{name}: {part} is of type {type(given).__name__}, whose items have no index; give a map-style "
                "data set (with len and [i]), or list(…) of it if it is small; data sets of the Hub are streamed by "
                'load("hf:owner/name", streaming=True)'
            )
        if len(given) == 0:
            raise DiffusionalError(f"{name}: {part} has no items; give data")
    rows = random_rows({part: np.arange(len(given)) for part, given in objects.items()}, name, split, seed)
    first = _value(train, 0, f"{name}, train item 0", key)
    again = _value(train, 0, f"{name}, train item 0", key)
    if not np.array_equal(first, again):
        raise DiffusionalError(
            f"{name}: item 0 had other values when it was read again; leave random augmentation out: the "
            "likelihood is that of the data without it"
        )
    kind = kind_of_values(first.dtype, f"{name}, train item 0")
    if isinstance(_bare(train[0], key), Image.Image):
        stored = 2 if first.dtype == np.bool_ else 256
        if levels not in (None, stored):
            raise DiffusionalError(
                f"{name}: expected levels={stored}, the levels of the images, got levels={levels}; leave levels out"
            )
        levels = stored

    def items(part: str, convert: Callable[[np.ndarray], np.ndarray]) -> TorchItems:
        source = f"{name}, {part if part in objects else 'train'}"
        return TorchItems(objects.get(part, train), rows[part], source, key, first, convert)

    labels = None if condition is None else _labels(objects, rows, name, condition, classes)
    blocks = _blocks({part: items(part, reals) for part in SPLITS})
    space = find_space(name, kind, first.shape, levels, blocks, f"{name}, train")
    convert = integers if isinstance(space, Discrete) else reals
    splits = {part: items(part, convert) for part in SPLITS}
    origins = {part: Origin(name, rows[part], len(objects.get(part, train))) for part in SPLITS}
    held, names = (None, ()) if labels is None else conditions(labels)
    source = Source({part: (splits[part], origins[part]) for part in SPLITS}, condition=held)
    return Dataset(
        name, space, splits["train"], splits["validation"], splits["test"], source=source, condition=held, classes=names
    )


def _labels(
    objects: dict[str, Any], rows: dict[str, np.ndarray], name: str, condition: str | int, classes: Sequence[str]
) -> dict[str, Part]:
    """Return parts without items, whose targets are the labels of the objects of each split."""
    found: dict[str, Labels] = {}
    for part, given in objects.items():
        names = classes or getattr(given, "classes", ())
        values = [_label(given[row], condition, f"{name}, {part} item {row}") for row in range(len(given))]
        numbers = not any(isinstance(value, str) for value in values)
        found[part] = Labels.of(values, f"{name}, {part}", list(map(str, names)) if numbers else ())
    return {
        part: Part(np.empty(0), rows[part], f"{name}, {part}", targets=found.get(part, found["train"]))
        for part in SPLITS
    }


def _label(item: Any, condition: str | int, where: str) -> Any:
    try:
        value = item[condition]
    except (KeyError, IndexError, TypeError) as error:
        raise DiffusionalError(
            f"{where} has no label at {condition!r}; give its place in a tuple, such as 1, or its key in a dict"
        ) from error
    return value.item() if isinstance(value, Tensor | np.generic | np.ndarray) and np.size(value) == 1 else value


@dataclass(frozen=True, eq=False)
class TorchItems:
    """Items source[rows[i]], each of the shape and type of `like`, passed through `convert`."""

    source: Any
    rows: np.ndarray
    name: str
    key: str | None
    like: np.ndarray
    convert: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *dims)."""
        return (len(self.rows), *self.like.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The type after `convert`."""
        return torch.from_numpy(self.convert(self.like[:0])).dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        """Return the items of rows int64 (n,), or of a slice: (n, *dims)."""
        chosen = self.rows[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        return torch.from_numpy(self.convert(self.read(chosen)))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the items of some rows of the source, without conversion."""
        out = np.empty((len(rows), *self.like.shape), self.like.dtype)
        for place, row in enumerate(rows.tolist()):
            where = f"{self.name} item {row}"
            value = _value(self.source, row, where, self.key)
            if (value.shape, value.dtype) != (self.like.shape, self.like.dtype):
                raise DiffusionalError(
                    f"{where} has shape {value.shape} and type {value.dtype}, the first item {self.like.shape} and "
                    f"{self.like.dtype}; make all alike"
                )
            out[place] = value
        return out


def _blocks(items: dict[str, TorchItems]) -> Iterator[Block]:
    for split, part in items.items():
        size = block_rows(part.like.shape)
        for first in range(0, len(part), size):
            rows = part.rows[first : first + size]
            yield part.name, split, rows, part.read(rows)


def _bare(item: Any, key: str | None) -> Any:
    """Return the values of an item that may contain labels; None if it is unclear which they are."""
    if isinstance(item, Mapping):
        return item.get(key)
    return item[0] if isinstance(item, tuple | list) and len(item) else item


def _value(source: Any, row: int, where: str, key: str | None) -> np.ndarray:
    item = source[row]
    if isinstance(item, Mapping) and key not in item:
        raise DiffusionalError(
            f"{where} is a dict with {', '.join(map(repr, item))}; name the values: key={next(iter(item), '')!r}"
        )
    value = _bare(item, key)
    if isinstance(value, Image.Image):
        picture = from_image(value, where, Options())
        return picture.values.astype(bool) if picture.levels == 2 else picture.values
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray | np.generic) or np.ndim(value) == 0:
        raise DiffusionalError(
            f"{where} is of type {type(value).__name__}, shape {np.shape(value)}; expected a tensor, an array or an "
            "image, or a tuple that begins with one"
        )
    return channels_first(np.asarray(value)[None], where)[0]
