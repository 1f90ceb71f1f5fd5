"""The form of a condition: what a network must be built for, and what a run records of it.

labels    integers (N,), numbers of classes with names
numbers   real numbers (N, n), which networks standardise by the train split
image     (N, C, H, W), which networks read as further channels of the input, scaled to its size
tokens    vectors (N, L, W), such as the embeddings of the words of a text, with an optional mask (N, L) of those that are present:
          a dict of "tokens" and "mask"
joint     two of these: an image or numbers under the name "low" or "latent", the variable of the stage before in a system, and another
          condition, under the name "condition", or "tokens" and "mask"
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, check_labels
from diffusional.errors import DiffusionalError

KINDS = ("labels", "numbers", "image", "tokens", "joint")
# Names of the variable of the stage before.
FIRST = ("low", "latent")


@dataclass(frozen=True)
class ConditionForm:
    """The form of a condition.

    Attributes:
        kind: "labels", "numbers", "image", "tokens" or "joint".
        shape: of one row: () for labels, (n,) numbers, (C, H, W) of images, (L, W) of tokens.
        classes: number of classes, for labels.
        masked: whether tokens have a mask.
        mean, scale: of each of the numbers, in the train split; networks see (c − mean)/scale.
        parts: of "joint", the names and forms of the two.

    >>> ConditionForm.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    ConditionForm(kind='numbers', shape=(2,), classes=0, masked=False, mean=(1.0, 1.0), scale=(1.0, 1.0), parts=())
    """

    kind: Literal["labels", "numbers", "image", "tokens", "joint"]
    shape: tuple[int, ...] = ()
    classes: int = 0
    masked: bool = False
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    parts: tuple[tuple[str, "ConditionForm"], ...] = ()

    @classmethod
    def of(cls, condition: Condition, classes: int = 0) -> "ConditionForm":
        """Return the form of the condition of train items, standardising numbers by it.

        Args:
            classes: the number of classes of labels. Defaults to one more than the largest label for labels beside another condition.

        Raises DiffusionalError for a condition that is none of these forms.

        >>> both = {"low": torch.zeros(2, 1, 4, 4), "condition": torch.tensor([0, 3])}
        >>> [dict(ConditionForm.of(both, n).parts)["condition"].classes for n in (0, 10)]
        [4, 10]
        """
        if classes and isinstance(condition, Tensor):
            return cls("labels", classes=classes)
        first = next((name for name in FIRST if isinstance(condition, Mapping) and name in condition), None)
        if first is not None and isinstance(condition, Mapping):
            variable, own = split_first(condition, first)
            if own is None:
                return cls.of(variable)
            labelled = isinstance(own, Tensor) and not own.is_floating_point() and own.ndim == 1
            other = cls("labels", classes=classes or int(own.max()) + 1) if labelled else cls.of(own)
            return cls("joint", parts=((first, cls.of(variable)), ("condition", other)))
        parts = {"tokens": condition} if isinstance(condition, Tensor) else dict(condition)
        value = parts.get("tokens")
        masked = "mask" in parts
        if (
            value is None
            or set(parts) - {"tokens", "mask"}
            or not value.is_floating_point()
            or value.ndim not in (2, 3, 4)
        ):
            raise DiffusionalError(
                "expected a condition of class labels (with classes), real numbers (N, n), images (N, C, H, W), or tokens (N, L, W), "
                f'perhaps as {{"tokens": …, "mask": (N, L)}}, got {_described(condition)}; for others, train a model of your own with '
                "model.loss(x, condition=c)"
            )
        if masked and value.ndim != 3:
            raise DiffusionalError(f"expected tokens of shape (N, L, W) with a mask, got {tuple(value.shape)}")
        if masked and (parts["mask"].dtype != torch.bool or parts["mask"].shape != value.shape[:2]):
            raise DiffusionalError(
                f"expected a mask of type bool and shape {tuple(value.shape[:2])}, one value per token, got {_described(parts['mask'])}"
            )
        shape = tuple(value.shape[1:])
        if value.ndim == 4:
            return cls("image", shape)
        if value.ndim == 3:
            return cls("tokens", shape, masked=masked)
        exact = value.double()
        spread = exact.std(0, correction=0)
        # A constant is only shifted.
        scale = torch.where(spread > 0, spread, 1.0)
        return cls("numbers", shape, mean=tuple(exact.mean(0).tolist()), scale=tuple(scale.tolist()))

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether rows of this shape have the form's. Tokens with a mask may have any length, since networks ignore padding.

        >>> form = ConditionForm("tokens", (7, 3), masked=True)
        >>> form.fits((9, 3)), form.fits((7, 4))
        (True, False)
        """
        if self.masked:
            return len(shape) == 2 and shape[0] > 0 and shape[1] == self.shape[1]
        return tuple(shape) == self.shape

    def check(self, condition: Any, items: int) -> None:
        """Check that `condition` has this form, with one row for each of `items`.

        >>> ConditionForm("numbers", (2,)).check(torch.zeros(3, 4), 3)
        Traceback (most recent call last):
        diffusional.errors.DiffusionalError: expected a condition of real numbers (3, 2), got float32 of shape (3, 4)
        """
        check_condition(condition, items)
        if self.kind == "joint":
            (name, form), (_, other) = self.parts
            if not isinstance(condition, Mapping) or name not in condition:
                raise DiffusionalError(f"expected a condition of {self}, got {_described(condition)}")
            variable, own = split_first(condition, name)
            form.check(variable, items)
            other.check(own, items)
            return
        if self.kind == "labels":
            check_labels(condition, self.classes)
            return
        expected = {"numbers": "real numbers", "image": "images", "tokens": "tokens"}[self.kind]
        parts = {"tokens": condition} if isinstance(condition, Tensor) else dict(condition or {})
        names = {"tokens", "mask"} if self.masked else {"tokens"}
        value = parts.get("tokens")
        if set(parts) != names or value is None or not value.is_floating_point() or not self.fits(value.shape[1:]):
            dims = ", ".join(map(str, (items, *self.shape)))
            form = ', as {"tokens": …, "mask": …}' if self.masked else ""
            raise DiffusionalError(f"expected a condition of {expected} ({dims}){form}, got {_described(condition)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the form as JSON values, without entries that have their defaults."""
        if self.kind == "joint":
            return {"kind": self.kind, "parts": {name: form.to_dict() for name, form in self.parts}}
        plain = asdict(ConditionForm(self.kind))
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k == "kind" or v != plain[k]
        }

    @classmethod
    def from_dict(cls, record: Any) -> "ConditionForm":
        """Read what `to_dict` returned. Raises DiffusionalError for anything else.

        >>> form = ConditionForm("image", (1, 4, 4))
        >>> ConditionForm.from_dict(form.to_dict()) == form
        True
        """
        wrong = DiffusionalError(f"expected the form of a condition, got {record!r}; was it edited by hand?")
        if isinstance(record, dict) and record.get("kind") == "joint":
            parts = record.get("parts")
            if not isinstance(parts, dict) or len(parts) != 2 or next(iter(parts)) not in FIRST:
                raise wrong
            return cls("joint", parts=tuple((name, cls.from_dict(form)) for name, form in parts.items()))
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
            form = cls(**values)
            axes = {"labels": 0, "numbers": 1, "image": 3, "tokens": 2}[form.kind]
            numbers = [*form.mean, *form.scale]
            sound = (
                len(form.shape) == axes
                and all(isinstance(n, int) and n > 0 for n in form.shape)
                and all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers)
                and all(one > 0 for one in form.scale)
                and (form.kind != "numbers" or len(form.mean) == len(form.scale) == form.shape[0])
            )
        except (TypeError, AttributeError, KeyError) as error:
            raise wrong from error
        if not sound:
            raise wrong
        return form

    def __str__(self) -> str:
        if self.kind == "labels":
            return f"labels of {self.classes} classes"
        if self.kind == "joint":
            (name, form), (_, other) = self.parts
            return f"{name!r}: {form}, and {other}"
        what = {"numbers": "numbers", "image": "image", "tokens": "tokens"}[self.kind]
        return f"{what} of shape ({', '.join(map(str, self.shape))}{',' * (len(self.shape) == 1)})"


def split_first(condition: Mapping[str, Tensor], first: str) -> tuple[Tensor, Any]:
    """Return the entry `first` of a condition, and the others: a tensor if it is called "condition", None if there are none.

    >>> split_first({"low": torch.zeros(1), "condition": torch.ones(1)}, "low")
    (tensor([0.]), tensor([1.]))
    """
    others = {name: value for name, value in condition.items() if name != first}
    return condition[first], others.get("condition", others or None)


def _described(condition: Any) -> str:
    if isinstance(condition, Tensor):
        return f"{str(condition.dtype).removeprefix('torch.')} of shape {tuple(condition.shape)}"
    if isinstance(condition, Mapping):
        return "a dict of " + ", ".join(f"{name}: {_described(value)}" for name, value in condition.items())
    return "none" if condition is None else f"a {type(condition).__name__}"
