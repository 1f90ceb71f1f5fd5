"""Two conditions at once, as the later stages of a system have them: "quantised:2 + caption", "encoder:RUN + label".

The first is the variable of the stage before, under the name "low" (computed from images) or "latent" (of an encoder); the second is that
of the system, under the name "condition", or under its own names if it is several tensors, such as tokens and their mask.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from diffusional.conditions import Condition
from diffusional.data.dataset import Dataset, Source, Stream, Texts
from diffusional.data.derived import derived_of, is_derived, of_raw
from diffusional.data.derived_stream import named, with_computed
from diffusional.errors import DiffusionalError

_AND = " + "


def split_condition(condition: str | None) -> tuple[str | None, str | None]:
    """Return the first of two conditions and the second; (None, condition) for a single one.

    Raises DiffusionalError unless the first of two is computed from images or by an encoder.

    >>> split_condition("quantised:2 + caption"), split_condition("label")
    (('quantised:2', 'caption'), (None, 'label'))
    """
    first, both, own = (condition or "").partition(_AND)
    if not both:
        before, plus, after = first.partition("+")
        if plus and is_derived(before.strip()):
            raise DiffusionalError(
                f"condition={condition!r}: expected two conditions with spaces around the +, {before.strip() + _AND + after.strip()!r}"
            )
        return None, condition
    if not own or is_derived(own) or not (is_derived(first) or first.startswith("encoder:")):
        raise DiffusionalError(
            f"condition={condition!r}: expected low-resolution:F, quantised:F, inpaint or encoder:RUN before the +, and another condition, such "
            "as label or caption, after it"
        )
    return first, own


def joined_conditions(first: str | None, own: str) -> str:
    """Return two conditions as one text; `own` if there is no first.

    >>> joined_conditions("inpaint", "caption"), joined_conditions(None, "label")
    ('inpaint + caption', 'label')
    """
    return own if first is None else f"{first}{_AND}{own}"


def with_derived_first(dataset: Dataset, condition: str) -> Dataset:
    """Return a data set with both conditions of `condition`, of which the first is computed from its items, and the second is its own.

    Raises DiffusionalError as `derive` does.
    """
    first, _ = split_condition(condition)
    assert first is not None
    return with_first(dataset, "low", derived_of(dataset, first), condition, of_raw(dataset.space, first))


def with_first(
    dataset: Dataset, key: str, found: Mapping[str, Tensor], condition: str, function: Callable[[Tensor], Tensor]
) -> Dataset:
    """Return a data set whose condition has a further entry: the variable `found` of each split, before its own condition.

    Labels remain numbers; the data set has no names of classes.

    Args:
        function: raw items → their variable, for a train split that is a stream.
    """
    own = dataset.condition
    assert own is not None
    both: dict[str, Condition] = {split: {key: found[split], **named(own[split])} for split in own}
    texts = dataset.texts if dataset.text is not None else None
    if texts is not None:
        texts = Texts(texts.captions, texts.record, both)
    source = dataset.source
    if source is not None:
        arguments = None if source.arguments is None else dict(source.arguments) | {"condition": condition}
        source = Source(source.splits, arguments, both)
    train = dataset.train
    if isinstance(train, Stream):
        train = with_computed(train, function, key, len(dataset.classes))
    return replace(dataset, train=train, condition=both, classes=(), texts=texts, source=source)
