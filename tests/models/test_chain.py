"""What a chain asks of a family: its attributes, signatures and shapes, and what is reported where they are wrong."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import diffusional as df
from battery import generator
from diffusional.conditions import ignoring_condition
from diffusional.models.chain import one_per_item

SPACE = df.space.binary((3,))
X = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
C = torch.tensor([0, 1, 1, 0])


class Coins(df.Chain):
    """Bits by a linear map of the next latent, over a space that is given when the model is made."""

    def __init__(self) -> None:
        super().__init__()
        self.space, self.process = SPACE, df.BinomialDiffusion([0.3, 0.2, 0.4])  # type: ignore[misc]
        self.map = torch.nn.Linear(3, 3).double()

    def bits(self, z: Tensor) -> df.Bits:
        return df.Bits(self.map(z.double()))

    def step(self, z_next: Tensor, t: Tensor) -> df.Bits:  # type: ignore[override]
        return self.bits(z_next)

    def last(self, n: int) -> df.Bits:
        return df.Bits(torch.zeros(n, 3))

    def decode(self, z_1: Tensor) -> df.Bits:  # type: ignore[override]
        return self.bits(z_1)


class Labelled(Coins):
    """p(x|c): the steps need a label, and the decoder none."""

    def step(self, z_next: Tensor, t: Tensor, label: Tensor) -> df.Bits:  # type: ignore[override]
        return self.bits(z_next + label[:, None])


USES: dict[str, Callable[[df.Chain, Tensor | None], Any]] = {
    "elbo": lambda model, c: model.elbo(X, generator(0), c).nelbo,
    "path": lambda model, c: model.path_elbo(X, generator(0), c).nelbo,
    "weight": lambda model, c: model.log_weight(X, torch.zeros(4, *model.noise_shape), c),
    "loss": lambda model, c: model.loss(X.repeat(32, 1), generator(0), None if c is None else c.repeat(32)),
    "sample": lambda model, c: model.sample(4, generator(0), c),
    "evaluate": lambda model, c: df.evaluate(model, X, visits=2, condition=c).nelbo.value,
    "sweep": lambda model, c: df.evaluate(model, X, condition=c, draws=1).nelbo.value,
}
every_use = pytest.mark.parametrize("use", USES)


@every_use
def test_the_signatures_decide_about_conditions(use: str) -> None:
    torch.manual_seed(0)
    plain, labelled = Coins(), Labelled()
    labelled.load_state_dict(plain.state_dict())
    call = USES[use]
    without = call(plain, None)
    with pytest.raises(df.DiffusionalError, match="Coins"):
        call(plain, C)
    with pytest.raises(df.DiffusionalError, match=r"Labelled\.step.*'label'"):
        call(labelled, None)
    # A label of 0 is no label; others change the result.
    assert not torch.equal(torch.as_tensor(call(labelled, C)), torch.as_tensor(without)) or use == "sample"
    if use not in ("evaluate", "sweep"):  # their noise depends on the condition
        assert torch.equal(call(labelled, 0 * C), without)
        assert torch.equal(call(ignoring_condition(plain), C), without)


def test_a_decoder_may_be_the_only_part_that_takes_the_condition() -> None:
    class Decoded(Coins):
        def decode(self, z_1: Tensor, *, condition: Tensor) -> df.Bits:  # type: ignore[override]
            return self.bits(z_1 + condition[:, None])

    model = Decoded()
    one, other = (model.elbo(X, generator(0), c) for c in (0 * C, C + 1))
    assert torch.equal(one.kl, other.kl)
    assert not torch.equal(one.reconstruction, other.reconstruction)


def test_latents_of_samples_have_the_type_of_the_last_one() -> None:
    """Here steps compute in float64 and the last latent is of float32."""
    assert {z.dtype for z in Coins().walk_back(4, generator(0))} == {torch.float32}


def unsummed(p: df.Bits) -> Any:
    """Log-probabilities and KLs without the sum over dimensions."""
    p = copy.copy(p)
    object.__setattr__(p, "log_prob", lambda z: z * p.logit)
    object.__setattr__(p, "kl", lambda other: p.logit - other.logit)
    return p


def summed_over_items(p: df.Bits) -> Any:
    """A mean over the batch, as other libraries' losses have it: it would broadcast."""
    p = copy.copy(p)
    object.__setattr__(p, "log_prob", lambda z: (z * p.logit).mean())
    object.__setattr__(p, "kl", lambda other: (p.logit - other.logit).mean())
    return p


@pytest.mark.parametrize("wrong", [unsummed, summed_over_items])
@pytest.mark.parametrize("use", ["elbo", "path", "weight", "loss", "evaluate", "sweep"])
def test_costs_have_one_number_per_item(use: str, wrong: Callable[[df.Bits], Any]) -> None:
    class Posterior(df.BinomialDiffusion):
        def posterior(self, z_next: Tensor, x: Tensor, t: Any) -> Any:
            return wrong(super().posterior(z_next, x, t))

    class Wrong(Coins):
        def step(self, z_next: Tensor, t: Tensor) -> Any:
            return wrong(super().step(z_next, t))

    model = Wrong()
    model.process = Posterior([0.3, 0.2, 0.4])
    with pytest.raises(df.DiffusionalError, match=r"one number per item.*sum over all dimensions"):
        USES[use](model, None)


@pytest.mark.parametrize("cost", [torch.zeros(()), torch.zeros(len(X), 3), torch.zeros(len(X), 1), 0.5, None])
@pytest.mark.parametrize("use", ["elbo", "loss", "evaluate", "sweep"])
@pytest.mark.parametrize("method", ["prior", "level_kl", "reconstruction"])
def test_overridden_costs_have_one_number_per_item(method: str, use: str, cost: Any) -> None:
    """The message names the method, the shape expected and the one returned."""
    made = type("Own", (Coins,), {method: lambda self, *args: cost})
    given = re.escape(f"got {tuple(cost.shape)}" if isinstance(cost, Tensor) else f"got a {type(cost).__name__}")
    with pytest.raises(df.DiffusionalError, match=rf"Own\.{method} to .*shape \(\d+,\).*{given}"):
        USES[use](made(), None)


def test_a_cost_that_would_broadcast_is_refused() -> None:
    with pytest.raises(df.DiffusionalError, match=r"\(2,\).*\(2, 1\)"):
        one_per_item(torch.zeros(2, 1), 2, "kl")
    assert one_per_item(torch.ones(2), 2, "kl").tolist() == [1.0, 1.0]


def test_a_family_without_its_parts_is_told_which() -> None:
    class Nothing(df.Chain):
        pass

    class Process(df.ForwardProcess):
        pass

    model = Nothing()
    for missing, give in {
        "`space`": lambda: setattr(model, "space", SPACE),
        "`process`": lambda: setattr(model, "process", Process()),
        "`steps`": lambda: setattr(model.process, "steps", 1),
        "T ≥ 2": lambda: setattr(model.process, "steps", 2.5),
        "2.5": lambda: setattr(model.process, "steps", 3),
        "marginal": lambda: setattr(model, "process", Coins().process),
        "step": lambda: None,
    }.items():
        with pytest.raises(df.DiffusionalError, match=missing):
            model.elbo(X)
        give()


def test_a_process_needs_its_parts() -> None:
    class Process(df.ForwardProcess):
        steps = 3  # type: ignore[assignment]

    process = Process()
    for name, call in {
        "marginal": lambda: process.marginal(X, 1),
        "transition": lambda: process.sample_path(X),
        "posterior": lambda: process.posterior(X, X, 1),
    }.items():
        with pytest.raises(df.DiffusionalError, match=f"Process to define {name}"):
            call()


class Options(df.ForwardProcess):
    def __init__(self, steps: int, rate: float, table: Tensor) -> None:
        self.steps, self.rate, self.table, self._cache = steps, rate, table, object()  # type: ignore[misc]


def test_plain_options_and_a_process_s_own_tensors_are_part_of_the_identity() -> None:
    def identity(rate: float = 0.5, table: float = 0.0, names: tuple[str, ...] = ("a",)) -> str:
        model = Coins()
        model.names = names  # type: ignore[assignment]
        model.__dict__["process"] = None
        del model.process
        model.process = Options(3, rate, torch.full((2,), table))
        return str(model.identity())

    assert identity() == identity()
    assert len({identity(), identity(rate=0.6), identity(table=1.0), identity(names=("a", "b"))}) == 4


def test_a_process_that_is_not_markov_is_part_of_the_identity() -> None:
    def identity(eta: float) -> list[Any]:
        process = df.NonMarkovDiffusion(df.schedule.linear(5, 0.2, 0.6), eta)
        denoiser = df.Denoiser(lambda z, log_snr: 0 * z, "data")
        return df.DiffusionModel(process, denoiser, df.likelihood.LevelPosterior(SPACE)).identity()

    assert identity(0.5) != identity(0.6)
    assert identity(0.5) == identity(0.5)


class Looking(df.Chain):
    """Fair coins, D ln 2 = 3 ln 2, whose reconstruction an evaluation draws once for every item before its visits."""

    space, process, looked = SPACE, df.BinomialDiffusion([0.3, 0.2, 0.4]), ("reconstruction",)

    def __init__(self, network: bool) -> None:
        super().__init__()
        self.network = network

    @property
    def decoder_uses_network(self) -> bool:
        return self.network

    def step(self, z_next: Tensor, t: Tensor) -> df.Bits:  # type: ignore[override]
        return df.Bits(0 * z_next.double())

    def last(self, n: int) -> df.Bits:
        return df.Bits(torch.zeros(n, 3).double())

    def decode(self, z_1: Tensor) -> df.Bits:  # type: ignore[override]
        return df.Bits(0 * z_1.double())


@pytest.mark.parametrize("network", [True, False])
def test_a_family_without_a_look_of_its_own_draws_the_costs_of_the_decoder(network: bool) -> None:
    model = Looking(network)
    assert model.look(X, torch.zeros(4, 3))["reconstruction"].tolist() == pytest.approx(
        [3 * math.log(2)] * 4, rel=1e-12
    )
    result = df.evaluate(model, X, visits=4)
    assert result.terms["reconstruction"].value == pytest.approx(3 * math.log(2), rel=1e-12)
