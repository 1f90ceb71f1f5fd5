"""Conditions: one row for each item, as a tensor or as several tensors by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusional.conditions import by_name, called, check_condition, moved, repeated, row_digests, rows_of
from diffusional.errors import DiffusionalError


def condition() -> dict[str, Tensor]:
    return {"text": torch.arange(12.0).view(3, 2, 2), "label": torch.tensor([5, 6, 7])}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(4, 1), "4 rows for 3 items"),
        (torch.tensor(1.0), "scalar.* 3 items"),
        ({"text": torch.zeros(3), "label": torch.zeros(2)}, r"\['label'\] has 2 rows for 3 items"),
        ({}, "empty"),
        ([1, 2, 3], "got list"),
        ({"label": [1, 2, 3]}, "'label'.*got list"),
        ({0: torch.zeros(3)}, "string name"),
    ],
)
def test_anything_but_a_row_for_every_item_is_refused(given: Any, message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        check_condition(given, 3)


def test_rows_and_repeats_take_every_tensor_along() -> None:
    some = rows_of(condition(), torch.tensor([2, 0]))
    assert some["label"].tolist() == [7, 5]
    assert some["text"][:, 0, 1].tolist() == [9.0, 1.0]
    assert rows_of(condition(), torch.tensor([False, True, False]))["label"].tolist() == [6]
    assert rows_of(condition()["text"], slice(1, 2)).shape == (1, 2, 2)
    twice = repeated(condition(), 2)
    assert twice["label"].tolist() == [5, 6, 7, 5, 6, 7]
    assert twice["text"].shape == (6, 2, 2)
    assert twice["text"][3].equal(condition()["text"][0])
    assert moved(condition(), torch.device("meta"))["text"].device.type == "meta"
    assert rows_of(None, slice(1)) is repeated(None, 2) is moved(None, torch.device("cpu")) is None
    assert by_name(None) == {}


def test_a_row_s_digest_is_that_of_its_values() -> None:
    first, second, third = row_digests({"a": torch.tensor([1, 2, 1]), "b": torch.ones(3, 2)})
    assert first == third != second
    assert row_digests({"b": torch.ones(3, 2), "a": torch.tensor([1, 2, 1])}) == [first, second, third]
    assert row_digests(torch.tensor([2**60, 2**60 + 1]))[0] != row_digests(torch.tensor([2**60 + 1]))[0]
    assert len(row_digests(torch.tensor([True, False]))) == 2
    one, other = row_digests(torch.tensor([[1 + 1j], [1 - 1j]]))
    assert one != other


def test_a_network_without_a_parameter_for_the_condition_refuses_it() -> None:
    x, c = torch.ones(2, 3), torch.ones(2, 1)
    for network in (nn.Linear(3, 3), lambda x: x):
        assert called(network, x).shape == x.shape
        with pytest.raises(DiffusionalError, match="takes 1 inputs and no condition"):
            called(network, x, condition=c)
    assert called(torch.add, x, condition=c).equal(x + c)  # a built-in function has no signature to look at


def test_an_error_inside_the_network_is_its_own() -> None:
    def broken(x: Tensor, condition: Tensor) -> Tensor:
        raise TypeError("of the network")

    with pytest.raises(TypeError, match="of the network"):
        called(broken, torch.ones(1), condition=torch.ones(1))
