"""Conditions: one row for each item, as a tensor or as several tensors by name."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.conditions import (
    by_name,
    called,
    check_condition,
    ignoring_condition,
    labels,
    moved,
    repeated,
    row_digests,
    rows_of,
)
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


# Models: every call hands every network the condition of its own items.

FORMS = {
    "a column": lambda x: x,
    "three axes": lambda x: x[:, :, None] * torch.ones(1, 2),
    "by name": lambda x: {"half": 0.5 * x, "rest": (0.5 * x)[:, :, None] * torch.ones(1, 1, 2)},
}


def told(condition: Any) -> Tensor:
    """The item (B, 1) that a condition of one of FORMS states."""
    if isinstance(condition, Tensor):
        return condition.reshape(len(condition), -1)[:, :1]
    return condition["half"] + condition["rest"].mean(2)


class Told(nn.Module):
    """What the condition states, whatever the input: a perfect prediction for the condition's own item."""

    def forward(self, z: Tensor, *rest: Any) -> Tensor:
        return told(rest[-1]).expand_as(z)


class Sharp(nn.Module):
    """An encoder that needs the condition: z = x almost exactly."""

    def forward(self, x: Tensor, condition: Any) -> Tensor:
        return torch.cat([x + 0 * told(condition), torch.full_like(x, -8.0)], 1)


LINE = df.Continuous((1,))


def chain(steps: int | None = 5, network: nn.Module | None = None) -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.log_snr_linear(-4.0, 4.0, steps))
    decoder = likelihood.GaussianLikelihood(LINE, 1e-4)
    return df.DiffusionModel(process, df.Denoiser(network or Told(), "data"), decoder)


def vae(steps: int | None = 5, network: nn.Module | None = None) -> df.VAE:
    decoder = likelihood.GaussianLikelihood(LINE, 1e-4)
    return df.VAE(Sharp(), Told(), decoder, 1, prior=chain(steps, network))


X = torch.tensor([[-2.0], [0.5], [3.0]])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [chain, vae])
def test_every_call_passes_each_item_its_own_condition(make: Any, form: str) -> None:
    """A network that repeats the condition costs nothing beyond the noise of z if, and only if, each row meets its own item."""
    model, c = make(), FORMS[form](X)
    wrong = FORMS[form](X.flip(0))

    def costs(condition: Any) -> list[float]:
        g = torch.Generator().manual_seed(0)
        shape = model.noise_shape
        noise = torch.zeros(shape[0], 3, 1) if make is chain else torch.zeros(3, *shape)
        drawn = model.draw(X, None, g, 3)
        # Let every item visit a level.
        drawn["first" if make is chain else "prior_first"] = torch.zeros(3, dtype=torch.bool)
        elsewhere = model.costs(X, drawn, condition).terms["kl"]
        return [
            float(model.elbo(X, g, condition).kl.sum(1).max()),
            float(model.terms(X, noise, condition).kl.sum(1).max()),
            float(elsewhere.max()),
            df.evaluate(model, X, draws=2, condition=condition).terms["kl"].value
            if make is chain
            else df.evaluate(model, X, visits=2, condition=condition).terms["kl"].value,
        ]

    assert max(costs(c)) < 0.01
    assert min(costs(wrong)) > 1
    assert bool(torch.isfinite(model.loss(X, torch.Generator().manual_seed(0), c)))
    drawn = model.sample(3, torch.Generator().manual_seed(0), c)
    torch.testing.assert_close(drawn, X, rtol=0, atol=0.1)
    if make is not chain:
        # The decoder has the condition as well, so the samples do not show whether the prior has it.
        with patch.object(type(model.chain), "sample", side_effect=model.chain.sample) as sample:
            model.sample(3, torch.Generator().manual_seed(0), c)
        passed = (*sample.call_args.args, *sample.call_args.kwargs.values())
        assert any(argument is c for argument in passed)
    if make is chain:
        assert float(model.path_elbo(X, torch.Generator().manual_seed(0), c).nelbo.max()) < 20


@pytest.mark.parametrize("form", FORMS)
def test_a_prior_in_continuous_time_is_given_the_condition_too(form: str) -> None:
    g = torch.Generator().manual_seed(0)
    model = vae(None)
    assert float(model.elbo(X, g, FORMS[form](X)).kl.sum(1).max()) < 0.01
    assert float(model.elbo(X, g, FORMS[form](X.flip(0))).kl.sum(1).max()) > 1
    assert bool(torch.isfinite(model.loss(X, g, FORMS[form](X))))


class Ignores(nn.Module):
    def forward(self, z: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        return 0 * z


class Unconditional(nn.Module):
    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return 0 * z


def test_a_prior_that_takes_no_condition_refuses_it_and_one_that_ignores_it_does_not() -> None:
    g = torch.Generator().manual_seed(0)
    refusing, ignoring = vae(network=Unconditional()), vae(network=Ignores())
    for call in (
        lambda model: model.elbo(X, g, X),
        lambda model: model.terms(X, torch.zeros(3, *model.noise_shape), X),
        lambda model: model.loss(X, g, X),
        lambda model: model.sample(3, g, X),
    ):
        with pytest.raises(DiffusionalError, match="Unconditional takes 2 inputs and no condition"):
            call(refusing)
        call(ignoring)


CALLS: dict[str, Any] = {
    "elbo": lambda model, c: model.elbo(X, condition=c),
    "loss": lambda model, c: model.loss(X, condition=c),
    "sample": lambda model, c: model.sample(3, condition=c),
    "terms": lambda model, c: model.terms(
        X, torch.zeros(5, 3, 1) if isinstance(model, df.DiffusionModel) else torch.zeros(3, *model.noise_shape), c
    ),
    "evaluate": lambda model, c: df.evaluate(model, X, condition=c),
}
OF_CHAINS: dict[str, Any] = {
    "kl_at": lambda model, c: model.kl_at(X, torch.tensor([1, 2, 3]), torch.zeros(3, 1), c),
    "path_elbo": lambda model, c: model.path_elbo(X, condition=c),
    "simple_loss": lambda model, c: model.simple_loss(X, condition=c),
    "walk_back": lambda model, c: list(model.walk_back(3, condition=c)),
    "plan": lambda model, c: df.Plan.fit(model, X, 100, condition=c),
}


@pytest.mark.parametrize(
    ("model", "call"),
    [(chain, call) for call in {**CALLS, **OF_CHAINS}.values()]
    + [(vae, call) for call in CALLS.values()]
    + [(vae, lambda model, c: model.warmed_loss(X, condition=c))],
)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_condition_of_another_length_is_refused_with_both_numbers(model: Any, call: Any, rows: int) -> None:
    with pytest.raises(DiffusionalError, match=f"{rows} rows for 3 items"):
        call(model(), torch.zeros(rows, 1))
    with pytest.raises(DiffusionalError, match=f"'label'.*{rows} rows for 3 items"):
        call(model(), {"text": torch.zeros(3, 1), "label": torch.zeros(rows)})


class Bits(nn.Module):
    """Log-odds ± 9 of the bits that the condition states."""

    def forward(self, z: Tensor, log_snr: Tensor, condition: Any) -> Tensor:
        return 9 * told(condition)


def test_a_binomial_chain_takes_conditions_as_a_gaussian_one_does() -> None:
    bits = torch.tensor([[1.0], [-1.0], [-1.0]])
    model = df.BinomialDiffusionModel(df.BinomialDiffusion.constant(6), Bits(), df.space.binary((1,)))
    for form in FORMS.values():
        g = torch.Generator().manual_seed(0)
        assert float(model.elbo(bits, g, form(bits)).nelbo.max()) < 0.05
        assert float(model.elbo(bits, g, form(-bits)).nelbo.min()) > 1
        assert float(model.path_elbo(bits, g, form(bits)).nelbo.max()) < 1
        assert model.sample(3, g, form(bits)).equal(bits)
    for call in (model.path_elbo, model.elbo, model.loss):
        with pytest.raises(DiffusionalError, match="2 rows for 3 items"):
            call(bits, condition=bits[:2])
    with pytest.raises(DiffusionalError, match="2 rows for 3 items"):
        model.sample(3, condition=bits[:2])


# How a network gets a condition, and says that it needs one.


def test_a_condition_is_passed_as_the_signature_allows() -> None:
    z, c, named = torch.ones(2), torch.tensor([1.0, 2.0]), {"text": torch.ones(2), "label": torch.tensor([3.0, 4.0])}

    class Keyword(nn.Module):
        def forward(self, z: Tensor, *, condition: Tensor | None = None) -> Tensor:
            return z if condition is None else z + condition

    class Open(nn.Module):
        def forward(self, z: Tensor, **more: Any) -> Tensor:
            return z + sum(value for value in more.values())

    assert called(lambda z, anything: z + anything, z, condition=c).tolist() == [2.0, 3.0]
    assert called(lambda z, anything=None: z if anything is None else z + anything, z).tolist() == [1.0, 1.0]
    assert called(lambda *inputs: inputs[0] + inputs[1], z, condition=c).tolist() == [2.0, 3.0]
    for network in (Keyword(), Open()):
        assert called(network, z, condition=c).tolist() == [2.0, 3.0]
        assert called(network, z).tolist() == [1.0, 1.0]
    # A mapping is one condition to whoever takes one, and is taken apart only by the names of parameters.
    assert called(lambda z, c: z + c["label"], z, condition=named).tolist() == [4.0, 5.0]
    assert called(lambda z, *, text, label: z + text * label, z, condition=named).tolist() == [4.0, 5.0]
    with pytest.raises(DiffusionalError, match="takes 1 inputs and no condition"):
        called(lambda z, *, text: z + text, z, condition=named)


def test_a_network_that_requires_a_condition_says_so() -> None:
    z = torch.ones(2)
    for network in (lambda z, words: z, lambda z, *, words: z, Needs()):
        with pytest.raises(DiffusionalError, match=r"requires a condition.*'words'"):
            called(network, z)

    def broken(z: Tensor) -> Tensor:
        return broken()  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="missing"):  # an error of the network itself
        called(broken, z)
    model = chain(network=Needs2())
    for call in CALLS.values():
        with pytest.raises(DiffusionalError, match=r"requires a condition.*'words'"):
            call(model, None)


class Needs(nn.Module):
    def forward(self, z: Tensor, words: Tensor) -> Tensor:
        return z


class Needs2(nn.Module):
    def forward(self, z: Tensor, log_snr: Tensor, words: Tensor) -> Tensor:
        return 0 * z


def test_values_that_are_not_finite_are_refused() -> None:
    check_condition({"a": torch.ones(3, 2), "b": torch.tensor([1, 2, 3])}, 3)
    for bad in (float("nan"), float("inf")):
        broken = torch.ones(3, 2)
        broken[2, 1] = bad
        with pytest.raises(DiffusionalError, match=r"'a'.*row 2"):
            check_condition({"a": broken}, 3)
        with pytest.raises(DiffusionalError, match="row 1"):
            check_condition(torch.tensor([0.0, bad, 1.0]), 3)
        for call in CALLS.values():
            with pytest.raises(DiffusionalError, match="row 2"):
                call(chain(), broken)


@pytest.mark.parametrize(
    ("wanted", "classes", "n", "numbers"),
    [
        ("dog", ["cat", "dog"], 2, [1, 1]),
        (["dog", "cat"], ["cat", "dog"], 5, [1, 0, 1, 0, 1]),
        (1, ["cat", "dog"], None, [1]),
        (["0", "dog"], ["cat", "dog"], None, [0, 1]),
        (3, ["1", "3", "5"], None, [1]),  # a name, not a number
        (torch.tensor([1, 0]), ["cat", "dog"], 3, [1, 0, 1]),
    ],
)
def test_labels_by_name_and_number(wanted: Any, classes: list[str], n: int | None, numbers: list[int]) -> None:
    found = labels(wanted, classes, n)
    assert found.dtype == torch.int64
    assert found.tolist() == numbers


@pytest.mark.parametrize(
    ("wanted", "classes", "n", "match"),
    [
        ("dig", ["cat", "dog"], None, "'dig'.*'dog'"),
        (2, ["cat", "dog"], None, "2.*'cat', 'dog'"),
        (-1, ["cat", "dog"], None, "-1"),
        (0, ["1", "3", "5"], None, "0.*'1', '3', '5'"),
        ([], ["cat", "dog"], None, "0 labels"),
        (["cat", "dog"], ["cat", "dog"], 1, "2 labels.*1 items"),
        (torch.tensor([2]), ["cat", "dog"], None, "label 2"),
        (torch.tensor([1.0]), ["cat", "dog"], None, "float32"),
    ],
)
def test_labels_of_no_class_are_refused(wanted: Any, classes: list[str], n: int | None, match: str) -> None:
    with pytest.raises(DiffusionalError, match=match):
        labels(wanted, classes, n)


def test_a_model_of_the_items_alone_may_be_compared_with_a_conditional_one() -> None:
    plain, given = chain(network=Unconditional()), chain()
    ignoring = ignoring_condition(plain)
    first = df.Plan.fit(given, X, 100, condition=X)
    plans = first, df.Plan.fit(ignoring, X, 100, condition=X, like=first)
    both = df.compare(given, ignoring, X, 1e6, "nats", plans=plans, condition=X, audit=False)
    assert "condition_ignored" not in both.a.provenance
    assert both.b.provenance["condition_ignored"] is True
    assert both.a.provenance["condition_sha256"] == both.b.provenance["condition_sha256"]
    assert both.difference.value < -10
    alone = df.evaluate(plain, X, draws=50)
    assert both.b.nelbo.value == pytest.approx(alone.nelbo.value, abs=5 * (alone.nelbo.error + both.b.nelbo.error))
    assert "condition_ignored" not in alone.provenance
    assert both.b.provenance["weights_sha256"] == alone.provenance["weights_sha256"]
    with pytest.raises(DiffusionalError, match="no condition"):
        df.compare(given, plain, X, 1e6, "nats", plans=plans, condition=X, audit=False)
    with pytest.raises(DiffusionalError, match="no condition"):
        plain.elbo(X, condition=X)
    linear = df.Denoiser(nn.Sequential(), "data")
    assert not hasattr(linear, "ignores_condition")


def test_all_networks_of_an_autoencoder_are_made_to_ignore_a_condition() -> None:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.full_like(x, -8.0)], 1)

    decoder = likelihood.GaussianLikelihood(LINE, 1.0)
    model = df.VAE(Encoder(), nn.Identity(), decoder, 1, prior=chain(network=Unconditional()))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    expected = model.elbo(X, generators[0]).nelbo
    assert ignoring_condition(model).elbo(X, generators[1], {"label": torch.ones(3)}).nelbo.equal(expected)
