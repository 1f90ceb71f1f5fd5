"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8 × 8 pixels of 17 levels.

The images are in the order of their writers, and so are the splits: the test set has other writers than the training set, which
makes it harder than a random split.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
1998 (its test set).
"""

from dataclasses import replace

import numpy as np

from diffusional.data.checks import declared
from diffusional.data.classes import LABEL, Labels
from diffusional.data.dataset import Dataset
from diffusional.data.splits import Part
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.space import Discrete

LEVELS = 17


def parts(condition: str | None = None) -> dict[str, Part]:
    """Return the three splits, as views of one array (1797, 1, 8, 8) uint8, with the labels 0 … 9 if `condition` is "label"."""
    if condition not in (None, LABEL):
        raise DiffusionalError(f"condition={condition!r} was given for digits, expected {LABEL!r} or caption")
    # Deferred, since importing scikit-learn takes seconds and most uses of this package do not need the digits.
    with needed_for("digits"):
        from sklearn.datasets import load_digits as embedded

    images, targets = embedded(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = None if condition is None else Labels.of(targets, "digits")
    ends = {"train": (0, 1000), "validation": (1000, 1350), "test": (1350, len(images))}
    return {split: Part(images, slice(*span), "digits", targets=labels) for split, span in ends.items()}


def load_digits(condition: str | None = None) -> Dataset:
    """Load the digits over Discrete((1, 8, 8), levels=17): 0–999 train, 1000–1349 validation, 1350–1796 test.

    With the condition "label", their labels are the condition.

    >>> data = load_digits()
    >>> data.train.shape, data.validation.shape, data.test.shape
    (torch.Size([1000, 1, 8, 8]), torch.Size([350, 1, 8, 8]), torch.Size([447, 1, 8, 8]))
    """
    dataset = declared("digits", Discrete((1, 8, 8), levels=LEVELS), parts(condition))
    assert dataset.source is not None
    arguments = {"name_or_path": "digits"} | ({} if condition is None else {"condition": condition})
    return replace(dataset, source=replace(dataset.source, arguments=arguments))
