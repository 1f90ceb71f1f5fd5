"""The checks of annotated types that all tests run under: they find what is wrong in the first calls of a function in every test."""

from dataclasses import dataclass

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

import diffusional as df
import typed


def checked(fn):
    return typed.jaxtyped(fn, typechecker=beartype)


def test_functions_of_the_library_are_checked(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("jaxtyping_packages"):
        pytest.skip("types are not checked, as where faults are planted")
    with pytest.raises(TypeCheckError):
        df.gaussian.phi("a")
    with pytest.raises(TypeCheckError):
        df.Gaussian(mean="a", log_variance="a")


def test_only_the_first_calls_of_a_test_are_checked() -> None:
    calls = []

    @checked
    def first(x: Float[Tensor, "b d"], y: Float[Tensor, " b"]) -> int:
        calls.append(len(x))
        return len(x) + len(y)

    x, y = torch.zeros(2, 3), torch.zeros(2)
    for _ in range(typed.CALLS):
        assert first(x, y) == 4
    assert first(x, torch.zeros(5)) == 7  # no longer checked
    typed.begin()
    with pytest.raises(TypeCheckError):
        first(x, torch.zeros(5))
    assert len(calls) == typed.CALLS + 1


def test_methods_properties_and_dataclasses_are_checked() -> None:
    @checked
    @dataclass
    class Pair:
        a: int
        b: int

        @property
        @checked
        def sum(self) -> int:
            return self.a + self.b

        @checked
        @classmethod
        def twice(cls, a: int) -> "Pair":
            return cls(a, a)

        @checked
        @staticmethod
        def wrong() -> str:
            return 1  # pyright: ignore

    assert Pair.twice(2) == Pair(2, 2)
    assert Pair(1, 2).sum == 3
    for call in (lambda: Pair("a", 2), lambda: Pair.twice("a"), Pair.wrong):
        with pytest.raises(TypeCheckError):
            call()
