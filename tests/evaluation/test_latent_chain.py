"""Autoencoders with a chain as the prior of z_L: an evaluation visits the levels of the chain, and costs what it says."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.evaluation import Evaluation, Plan
from diffusional.evaluation.averages import average
from diffusional.models.latent_chain import LatentChain
from diffusional.models.vae import Autoencoder
from diffusional.networks import MLP, Ladder, ResidualMLP
from diffusional.report.figures import level_costs

SPACE, N = df.Discrete((4,), 3), 12
LATENT = df.Continuous((2,))


def randomised(model: Autoencoder, seed: int = 0) -> Autoencoder:
    """Random weights, so that every cost differs from 0 and from the others."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.requires_grad_(False)


def diffusion(steps: int | None = 5, assisted: bool = False, classes: int = 0) -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.log_snr_linear(-3.0, 4.0, steps))
    decoder = likelihood.GaussianLikelihood(LATENT, variance=0.3, assisted=assisted)
    return df.DiffusionModel(process, df.Denoiser(MLP((2,), 1, hidden=8, classes=classes), "v"), decoder)


def free_gaussians() -> df.GaussianChain:
    """A family whose p(z|z_1) takes a network of its own."""
    process = df.GaussianDiffusion(schedule.from_betas((0.5, 0.3, 0.4)))
    decoder = df.Denoiser(MLP((2,), 1, hidden=8), "data")
    return df.GaussianChain(
        process, MLP((2,), 2, hidden=8), decoder, likelihood.GaussianLikelihood(LATENT, variance=0.3)
    )


def ladder(prior: df.Chain | None, latents: tuple[int, ...] = (3, 2, 2), classes: int = 0) -> df.HierarchicalVAE:
    network = Ladder((4,), (12,), latents, hidden=8, classes=classes)
    return df.HierarchicalVAE(network, likelihood.NetworkLevels(SPACE), head="categorical", prior=prior)


def vae(prior: df.Chain | None) -> df.VAE:
    decoder = nn.Sequential(ResidualMLP((2,), 12, hidden=8), nn.Unflatten(1, (12,)))
    return df.VAE(
        ResidualMLP((4,), 4, hidden=8), decoder, likelihood.NetworkLevels(SPACE), 2, head="categorical", prior=prior
    )


MODELS: dict[str, Callable[[], Autoencoder]] = {
    "three layers": lambda: ladder(diffusion()),
    "one layer": lambda: ladder(diffusion(), latents=(2,)),
    "two levels": lambda: ladder(diffusion(2)),
    "continuous time": lambda: ladder(diffusion(None)),
    "assisted decoder": lambda: ladder(diffusion(assisted=True)),
    "assisted, continuous time": lambda: ladder(diffusion(None, assisted=True)),
    "free Gaussians": lambda: ladder(free_gaussians()),
    "VAE": lambda: vae(diffusion()),
    "VAE, assisted decoder": lambda: vae(diffusion(assisted=True)),
    "VAE, free Gaussians": lambda: vae(free_gaussians()),
}
of_models = pytest.mark.parametrize("name", MODELS)


def items(n: int = N, seed: int = 1) -> Tensor:
    """Different items: n of the 81 that there are."""
    states = torch.cartesian_prod(*[torch.arange(3)] * 4)
    return SPACE.encode(states[torch.randperm(81, generator=torch.Generator().manual_seed(seed))[:n]])


def uniform(model: Autoencoder) -> Plan:
    return Plan.uniform(model, 3)


class Rows:
    """Count the rows that networks are called with, by name."""

    def __init__(self, **networks: object) -> None:
        self.rows = dict.fromkeys(networks, 0)
        for name, network in networks.items():
            if isinstance(network, nn.Module):
                network.register_forward_hook(lambda _, inputs, __, name=name: self._add(name, inputs[0]))

    def wrap(self, owner: object, method: str, name: str) -> None:
        self.rows[name], original = 0, getattr(owner, method)

        def counted(*inputs: Tensor, **named: object) -> object:
            tensors = [one for one in inputs if isinstance(one, Tensor)]
            self._add(name, tensors[-1])
            return original(*inputs, **named)

        object.__setattr__(owner, method, counted)

    def _add(self, name: str, rows: Tensor) -> None:
        self.rows[name] += len(rows)


@pytest.mark.parametrize("assisted", [False, True])
@pytest.mark.parametrize("steps", [100, None])
def test_four_visits_take_four_evaluations_of_the_chain_and_a_pass_of_the_ladder(
    steps: int | None, assisted: bool
) -> None:
    model = randomised(ladder(diffusion(steps, assisted)))
    assert isinstance(model, df.HierarchicalVAE)
    assert isinstance(model.chain, df.DiffusionModel)
    # As many visits go to the decoder as under a learned plan.
    plan = Plan.uniform(model, 32)
    counted = Rows(chain=model.chain.denoiser.module)
    counted.wrap(model.ladder, "up", "up")
    counted.wrap(model.ladder, "output", "output")
    for layer in range(1, 4):
        counted.wrap(model.ladder.posteriors[layer - 1], "forward", f"q{layer}")
    x = items(60)
    found = df.evaluate(model, x, visits=4, plan=plan, audit=False)
    n, decoded = len(x), counted.rows["output"] - len(x)
    assert counted.rows["up"] == n
    # One pass of every item, and one for each visit that the plan sends to the decoder, here one of 33.
    assert 0 < decoded < 0.1 * 4 * n
    assert counted.rows["q1"] == n + decoded
    # q(z_L|x) is also made once for every item, for the visits of the chain.
    assert counted.rows["q3"] == 2 * n + decoded
    assert counted.rows["chain"] == (4 * n if assisted else 4 * n - decoded)
    assert found.nelbo.network_evaluations == 5 * n


@of_models
def test_visits_agree_with_draws_of_all_costs(name: str) -> None:
    model, x = randomised(MODELS[name]()), items()
    found = df.evaluate(model, x, visits=400, plan=Plan.fit(model, items(60, seed=5), 300), audit=False, seed=1)
    draws = 40 if model.steps is None else 200
    ledger = model.elbo(x.repeat_interleave(draws, 0), torch.Generator().manual_seed(2))
    assert set(found.terms) == set(ledger.totals())
    for term, values in {"nelbo": ledger.nelbo, **ledger.totals()}.items():
        own = found.nelbo if term == "nelbo" else found.terms[term]
        agrees(own.value, own.error, values.view(N, -1))
    assert found.nelbo.error < 0.15
    # The first levels are the layers, as in the columns of the ledger.
    for layer in range(len(model.latents) - 1):
        kl, error = float(found.levels_kl[layer]), float(found.levels_error[layer])
        agrees(kl, error, ledger.kl[:, layer].view(N, -1))
    assert float(found.levels_kl.sum()) == pytest.approx(found.terms["kl"].value)


def agrees(value: float, error: float, draws: Tensor) -> None:
    """A value is the mean of the draws (N, J) of N items, within the errors of both."""
    other = float((draws.var(1) / draws.shape[1]).sum().sqrt()) / len(draws)
    assert abs(value - float(draws.mean())) < 4.5 * math.hypot(error, other) + 1e-6


def test_full_draws_and_visits_have_the_same_terms_and_number() -> None:
    model, x = randomised(ladder(diffusion(assisted=True))), items()
    drawn = average(model, x, visits=60, seed=3)
    found = df.evaluate(model, x, visits=150, plan=uniform(model), audit=False)
    assert (drawn.provenance["method"], found.provenance["method"]) == ("draws of terms", "plan")
    assert set(found.terms) == set(drawn.terms)
    assert abs(found.nelbo.value - drawn.nelbo.value) < 4 * math.hypot(found.nelbo.error, drawn.nelbo.error)
    each = (found.per_item["nelbo"] - drawn.per_item["nelbo"]).square()
    assert float((each / (found.per_item["error"].square() + drawn.per_item["error"].square())).mean()) < 2.5


@pytest.mark.parametrize("name", ["three layers", "assisted, continuous time", "VAE, assisted decoder"])
def test_errors_cover_the_spread_of_repeats(name: str) -> None:
    model, x = randomised(MODELS[name]()), items(6)
    found = [df.evaluate(model, x, visits=6, plan=uniform(model), audit=False, seed=s) for s in range(40)]
    values = torch.tensor([one.nelbo.value for one in found])
    errors = torch.tensor([one.nelbo.error for one in found])
    assert float(values.std()) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.35)


def test_layers_are_a_block_of_their_own_in_records_and_figures(tmp_path: Path) -> None:
    for steps, edges in ((5, [1, 2, 3, 1, 2, 3, 5]), (None, [1, 2, 3, 0, *range(4)[1:]])):
        model, x = randomised(ladder(diffusion(steps))), items()
        found = df.evaluate(model, x, visits=4, plan=uniform(model), audit=False)
        assert found.blocks == {"layers.kl": 2, "kl": 3}
        assert len(found.level_edges) == len(edges)
        assert found.level_edges[:4].tolist() == [1, 2, 3, edges[3]]
        assert found.gamma_edges is None
        # "kl" of every item is that of its layers and levels.
        assert float(found.per_item["kl"].mean()) == pytest.approx(float(found.levels_kl.sum()))
        assert found.times() == ["T = 5" if steps else "T = ∞"]
        found.save(tmp_path / f"{steps}.json")
        loaded = Evaluation.load(tmp_path / f"{steps}.json")
        assert torch.equal(loaded.levels_kl, found.levels_kl)
        assert torch.equal(loaded.level_edges, found.level_edges)
        assert {k: v.tolist() for k, v in loaded.per_item.items()} == {k: v.tolist() for k, v in found.per_item.items()}
        level_costs(tmp_path / "levels.png", loaded, "costs")


@of_models
def test_a_score_is_the_item_s_own(name: str) -> None:
    model, x = randomised(MODELS[name]()), items()
    x[3] = x[0]
    options = {"visits": 5, "plan": uniform(model), "audit": False}
    whole = df.evaluate(model, x, **options).per_item
    order = torch.tensor([7, 0, 5])
    part = df.evaluate(model, x[order], **options).per_item
    for term in set(whole) - {"item"}:
        torch.testing.assert_close(part[term].double(), whole[term][order].double(), rtol=1e-5, atol=1e-6)
    assert float(whole["nelbo"][3]) != float(whole["nelbo"][0])


def test_the_pilot_expects_what_the_first_draws_leave() -> None:
    """Nothing on average, and the mean of −ln p(z|z_1) if its visits go to the decoder."""
    for assisted in (False, True):
        model = randomised(ladder(diffusion(assisted=assisted)))
        plan = Plan.fit(model, items(60), 2000)
        chain = model.visited()
        assert chain is not None
        rows = items().repeat_interleave(100, 0)
        noise = torch.randn(len(rows), *chain.visit_shape, generator=torch.Generator().manual_seed(0))
        first = chain.decoder_costs(rows, noise).get("latent_reconstruction", torch.zeros(1))
        assert float(plan.constant[0]) == pytest.approx(float(first.mean()), abs=0.15)


@pytest.mark.parametrize("name", ["three layers", "assisted decoder", "continuous time"])
def test_targets_pilots_and_plans(name: str, tmp_path: Path) -> None:
    """The pilot and the audit visit the same levels; a plan is saved and used again; an evaluation that was cut off goes on."""
    model, x = randomised(MODELS[name]()), items(40)
    plan = Plan.fit(model, x, 300)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json", model)
    found = df.evaluate(model, x, 0.3, "nats", plan=plan)
    assert found.nelbo.error < 0.3
    assert df.evaluate(model, x, 0.3, "nats", plan=again).nelbo == found.nelbo
    truth = model.elbo(x.repeat_interleave(100, 0), torch.Generator().manual_seed(0)).nelbo
    assert abs(found.nelbo.value - float(truth.mean())) < 4 * found.nelbo.error
    own = df.evaluate(model, x, item_error=1.5, unit="nats", plan=plan)
    assert float(own.per_item["error"].max()) <= 1.5

    records = {"visits": 3, "plan": plan, "audit": False, "records": tmp_path / "draws.safetensors"}
    whole = df.evaluate(model, x, visits=3, plan=plan, audit=False)
    df.evaluate(model, x, **records)
    restored = df.evaluate(model, x, **records)
    assert restored.nelbo == whole.nelbo
    assert restored.terms == whole.terms


def test_comparisons_are_paired() -> None:
    x = items()
    one, other = randomised(ladder(diffusion(assisted=True))), randomised(ladder(diffusion(assisted=True)), 1)
    plans = Plan.uniform(one, 3), Plan.uniform(other, 3)
    same = df.compare(one, one, x, 0.5, plans=(plans[0], plans[0]), audit=False)
    assert abs(same.difference.value) < 1e-12
    assert same.difference.error < 1e-12
    apart = df.compare(one, other, x, 0.2, "nats", plans=plans, audit=False)
    truth = [model.elbo(x.repeat_interleave(400, 0), torch.Generator().manual_seed(0)).nelbo for model in (one, other)]
    assert abs(apart.difference.value - float((truth[0] - truth[1]).mean())) < 4.5 * apart.difference.error
    assert apart.difference.error <= 0.2
    # With a model of another family, and one without levels to visit.
    for third in (vae(diffusion()), ladder(None)):
        assert df.compare(one, randomised(third), x, 1.0, "nats").difference.error <= 1.0


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("assisted", [False, True])
def test_a_visit_is_made_of_the_model_s_own_costs(assisted: bool, classes: int) -> None:
    """At the latents that the first numbers of its noise make, with the condition of every item, in any order of visits."""
    model = randomised(ladder(diffusion(assisted=assisted, classes=classes), classes=classes))
    chain, over, x, t = model.visited(), model.chain, items(), torch.arange(N) % 4 + 1
    assert isinstance(chain, LatentChain)
    assert over is not None
    generator = torch.Generator().manual_seed(0)
    for shift in range(2 if classes else 1):
        c = (torch.arange(N) + shift) % classes if classes else None
        noise = torch.randn(N, 9, generator=generator)
        drawn, level = model.infer(x, noise[:, :7], c), noise[:, 7:]
        z = drawn.z[-1]
        torch.testing.assert_close(chain.kl_at(x, t, noise, c), over.kl_at(z, t, level, c))
        first = over.reconstruction(z, level, c)
        outer = {
            "reconstruction": model.reconstruction(x, drawn),
            **{f"kl_{i}": drawn.q[i - 1].kl(drawn.p[i - 1]).double() for i in (1, 2)},
        }
        others = {"prior": over.prior(z), "encoder_entropy": -drawn.q[-1].entropy().double()}
        (outer_visit, every_visit) = (outer | {"latent_reconstruction": first}, others)
        if not assisted:
            outer_visit, every_visit = outer, others | {"latent_reconstruction": first}
        torch.testing.assert_close(chain.look(x, noise, c), outer)
        torch.testing.assert_close(chain.decoder_costs(x, noise, c), outer_visit)
        torch.testing.assert_close(chain.beside(x, noise, c), every_visit)


def test_conditions_are_passed_on_and_refused() -> None:
    model = randomised(ladder(diffusion(assisted=True, classes=3), classes=3))
    x, c = items(), torch.arange(N) % 3
    options = {"visits": 100, "plan": uniform(model), "audit": False}
    found = df.evaluate(model, x, condition=c, **options)
    ledger = model.elbo(x.repeat_interleave(200, 0), torch.Generator().manual_seed(2), c.repeat_interleave(200))
    agrees(found.nelbo.value, found.nelbo.error, ledger.nelbo.view(N, -1))
    with pytest.raises(df.DiffusionalError, match="condition"):
        df.evaluate(model, x, **options)
    plain = randomised(ladder(diffusion()))
    with pytest.raises(df.DiffusionalError, match="condition"):
        df.evaluate(plain, x, condition=c, visits=2, plan=uniform(plain))


def test_an_autoencoder_without_a_chain_has_no_levels_to_visit() -> None:
    assert ladder(None).visited() is None
    assert isinstance(ladder(diffusion()).visited(), LatentChain)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: ladder(diffusion()), {"draws": 2}, r"no draws.*HierarchicalVAE.*draws=2"),
        (lambda: ladder(diffusion(None)), {}, r"target_error, visits or item_error.*continuous time.*steps=T"),
        (lambda: ladder(None), {"draws": 2}, r"no draws.*no levels to visit"),
        (lambda: ladder(diffusion()).double(), {"visits": 2}, r"ladder \(Ladder\).*float64.*float32"),
        (lambda: ladder(diffusion(None)), {"estimator": df.evaluation.ImportanceWeights(4)}, "continuous time"),
    ],
)
def test_what_is_refused(make: Callable[[], Autoencoder], options: dict, message: str) -> None:
    with pytest.raises(df.DiffusionalError, match=message):
        df.evaluate(randomised(make()), items(), **options)


def test_a_continuous_chain_is_drawn_as_a_whole_at_a_number_of_latents() -> None:
    found = df.evaluate(randomised(ladder(diffusion(None))), items(), steps=4)
    assert found.provenance["method"] == "draws of terms"
    assert len(found.levels_kl) == 5


def test_the_constant_part_of_a_transition_variance_is_counted() -> None:
    """The KLs of a prior with the transition's variance have parts that no visit changes."""
    process = df.GaussianDiffusion(schedule.log_snr_linear(-3.0, 4.0, 5))
    decoder = likelihood.GaussianLikelihood(LATENT, variance=0.3, assisted=False)
    prior = df.DiffusionModel(process, df.Denoiser(MLP((2,), 1, hidden=8), "v"), decoder, variance="transition")
    model = randomised(vae(prior))
    x = SPACE.encode(torch.randint(3, (N, 4), generator=torch.Generator().manual_seed(1)))
    full = df.evaluate(model, x, visits=200)
    visited = df.evaluate(model, x, visits=800, plan=Plan.uniform(model), audit=False)
    drawn = average(model, x, visits=400)
    assert float(prior.level_constants(torch.arange(1, 5)).sum()) > 5 * drawn.nelbo.error
    assert (
        abs(visited.terms["kl"].value - drawn.terms["kl"].value)
        < 5 * (visited.terms["kl"].error ** 2 + drawn.terms["kl"].error ** 2) ** 0.5
    )
    assert abs(full.nelbo.value - drawn.nelbo.value) < 5 * (full.nelbo.error**2 + drawn.nelbo.error**2) ** 0.5
