"""The embedded digits: scikit-learn's, in its order, none lost."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from diffusional.data import load
from diffusional.errors import DiffusionalError


def test_digits_are_scikit_learn_s_in_order() -> None:
    data = load("digits")
    together = torch.cat([data.train, data.validation, data.test])
    np.testing.assert_array_equal(together[:, 0].numpy(), load_digits(return_X_y=True)[0].reshape(-1, 8, 8))
    assert (len(data.train), len(data.validation), len(data.test)) == (1000, 350, 447)
    assert data.name == "digits"
    assert data.space.to_dict()["levels"] == 17
    assert data.space.shape == (1, 8, 8)
    assert not data.train.dtype.is_floating_point


def test_digits_encode_to_the_range() -> None:
    x = load("digits", levels=17).encode("train")
    assert x.shape == (1000, 1, 8, 8)
    assert (x.min(), x.max()) == (-1.0, 1.0)


def test_other_levels_are_refused() -> None:
    with pytest.raises(DiffusionalError, match="levels must be 17 for digits, got 16"):
        load("digits", levels=16)
