"""The embedded default: scikit-learn's 1,797 handwritten digits, 8 × 8 pixels of 17 levels.

The images come in the order of their writers, and the split keeps that order, so the test set has other
writers than the training set: a harder and more honest split than a random one.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
1998 (its test set).
"""

from dataclasses import replace

import numpy as np

from diffusional.data.checks import declared
from diffusional.data.dataset import Dataset
from diffusional.data.splits import Part
from diffusional.space import Discrete

LEVELS = 17


def parts() -> dict[str, Part]:
    """The three splits, as views of one array (1797, 1, 8, 8) uint8."""
    # Deferred, since it takes seconds and most uses of this package need no digits.
    from sklearn.datasets import load_digits as embedded

    images = embedded(return_X_y=True)[0].astype(np.uint8).reshape(-1, 1, 8, 8)
    ends = {"train": (0, 1000), "validation": (1000, 1350), "test": (1350, len(images))}
    return {split: Part(images, slice(*span), "digits") for split, span in ends.items()}


def load_digits() -> Dataset:
    """Digits over Discrete((1, 8, 8), levels=17): 0–999 train, 1000–1349 validation, 1350–1796 test.

    >>> data = load_digits()
    >>> data.train.shape, data.validation.shape, data.test.shape
    (torch.Size([1000, 1, 8, 8]), torch.Size([350, 1, 8, 8]), torch.Size([447, 1, 8, 8]))
    """
    dataset = declared("digits", Discrete((1, 8, 8), levels=LEVELS), parts())
    assert dataset.source is not None
    return replace(dataset, source=replace(dataset.source, arguments={"name_or_path": "digits"}))
