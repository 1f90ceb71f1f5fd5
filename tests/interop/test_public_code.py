"""Estimators of public code on the same weights and masks: their formulas in float64, where they agree, and by how much they are biased.

    LLaDA   github.com/ML-GSAI/LLaDA, get_log_likelihood.py at b7e6c35: `forward_process`, `get_log_likelihood`
    MDLM    github.com/kuleshov-group/mdlm, diffusion.py and noise_schedule.py at c112c52: `_sample_t`, `_d3pm_loss`, `LogLinearNoise`
    UDLM    github.com/kuleshov-group/discrete-diffusion-guidance, diffusion.py at edb0f8c: `_forward_pass_diffusion`
    Duo     github.com/s-sahoo/duo, algo.py and trainer_base.py at 7c9b498: `nll_per_token`, `_sample_t`, `LogLinear`
    D3PM    github.com/google-research/google-research, d3pm/images/diffusion_categorical.py at 30adf0e: `q_posterior_logits`, `vb_terms_bpd`

Nothing of them is copied: each function is their formula, written out again.
"""

import math
from collections.abc import Callable
from itertools import permutations, product

import pytest
import torch
from scipy.special import betainc
from torch import Tensor, nn

import diffusional as df
from battery import randn
from diffusional.absorbing import Absorbing
from diffusional.models.prompted import PromptedDiffusion, prompts
from diffusional.models.redrawn import UniformDiffusion
from diffusional.redrawn import UniformNoise
from diffusional.sequences import SequenceWorld, all_sequences, exact_ledger

L, K = 4, 2
WORLD = SequenceWorld.random(L, K, seed=1)


class Random(nn.Module):
    """Logits (B, L, K) that depend on every token, and on the time if there is one."""

    def __init__(self, length: int = L) -> None:
        super().__init__()
        self.first = nn.Parameter(randn(length * (K + 1), 8, seed=1))
        self.last = nn.Parameter(randn(8, length * K, seed=2))
        self.length = length

    def forward(self, tokens: Tensor, log_snr: Tensor | None = None) -> Tensor:
        inputs = nn.functional.one_hot(tokens, K + 1).flatten(1).to(self.first)
        time = 0 if log_snr is None else 0.2 * log_snr[:, None].double()
        return (torch.tanh(inputs @ self.first + time) @ self.last).view(-1, self.length, K)


NETWORK = Random().requires_grad_(False)
MODEL = df.MaskedDiffusion(NETWORK, WORLD.space)


# LLaDA.


def llada_numbers(k: int, length: int, batch: int) -> list[int]:
    """The numbers of masks of a batch: k, k + length/batch, …, rounded to whole numbers and wrapped to 1 … length."""
    x = torch.round(torch.linspace(float(k), k + (batch - 1) * (length / batch), steps=batch)).long()
    return ((x - 1) % length + 1).tolist()


def llada_log_likelihood(x: Tensor, given: int, orders: list[list[int]], k: int) -> float:
    """Their estimate of one batch, for the offset k and the order in which the answer's positions are masked in each row."""
    answer, total = len(x) - given, 0.0
    for n, order in zip(llada_numbers(k, answer, len(orders)), orders, strict=True):
        z = x.clone()
        masked = [given + i for i in order[:n]]
        z[masked] = K
        log_p = NETWORK(z[None].long()).double().log_softmax(-1)[0]
        total += sum(float(log_p[i, int(x[i])]) for i in masked) / (n / answer) / len(orders)
    return total


@pytest.mark.parametrize("given", [0, 1, 2])
def test_llada_s_likelihood_of_an_answer_has_our_costs_on_its_draws(given: int) -> None:
    model, x = PromptedDiffusion(MODEL), WORLD.states[11]
    answer = L - given
    orders = [list(order) for order in permutations(range(answer))][:5]
    for k in range(1, answer + 1):
        ours = 0.0
        for n, order in zip(llada_numbers(k, answer, len(orders)), orders, strict=True):
            # Noise in the order of these masks, and the level of the middle of their number, (n − ½)/F, which noise at a given position chooses.
            noise, u = torch.zeros(1, L, dtype=torch.float64), (n - 0.5) / answer * L
            noise[0, [given + i for i in order]] = torch.arange(answer).double()
            s = int(u) + 1
            if given:
                noise[0, 0] = torch.special.ndtri(torch.tensor(s - u, dtype=torch.float64))
            number, rate = model.masks_at(torch.tensor([s]), noise, torch.arange(L)[None] >= given)
            assert int(number) == n
            row, prompt = x[None], prompts(x[None], given)
            cost = (
                model.reconstruction(row, noise, prompt)
                if s == 1
                else model.kl_at(row, torch.tensor([s - 1]), noise, prompt)
            )
            ours += float(cost) / float(rate) * answer / n / len(orders)
        assert -ours == pytest.approx(llada_log_likelihood(x, given, orders, k), rel=1e-10)


def expected_at(number: dict[int, float], answer: int) -> float:
    """Σ_n P(n) (answer/n) E Σ over masks of n positions, of one item without a prompt."""
    masks, sums = MODEL.sums_over_masks(WORLD.states[11:12])
    return sum(p * answer / n * float(sums[0, masks.sum(1) == n].mean()) for n, p in number.items())


def llada_law(length: int, batch: int) -> dict[int, float]:
    """P(n) of a draw of a batch, over all offsets k."""
    found = [n for k in range(1, length + 1) for n in llada_numbers(k, length, batch)]
    return {n: found.count(n) / len(found) for n in range(1, length + 1)}


def test_llada_s_draws_are_unbiased_only_without_halves() -> None:
    """Where length · i/batch ends in ½, rounding to the even number makes even numbers of masks more frequent than odd ones."""
    exact = float(MODEL.exact_ledger(WORLD.states[11:12]).nelbo)
    assert expected_at(llada_law(L, 4), L) == pytest.approx(exact, rel=1e-10)
    apart = expected_at(llada_law(L, 8), L) - exact
    assert abs(apart) > 0.01
    for length, batch, most in ((32, 16, 1.0), (64, 16, 1.0), (24, 16, 1.5), (40, 16, 1.5), (100, 16, 1.25)):
        assert max(llada_law(length, batch).values()) * length == pytest.approx(most)


# MDLM.


def mdlm_weights(length: int, least: float = 0.0, floor: float = 0.0) -> Tensor:
    """c_n (length,) of E Σ over n masks in the mean of their loss: ∫ C(L, n) m^n (1 − m)^(L − n) (1/t) dt with t uniform on [least, 1] and
    m = (1 − floor) t, by Gauss–Legendre, exact for these polynomials.
    """
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(40)
    t, w = least + (1 - least) * torch.from_numpy(nodes + 1) / 2, torch.from_numpy(weights) / 2
    m = (1 - floor) * t
    n = torch.arange(1, length + 1)
    ways = torch.tensor([math.comb(length, int(i)) for i in n], dtype=torch.float64)
    return ways * ((w / t)[:, None] * m[:, None] ** n * (1 - m[:, None]) ** (length - n)).sum(0)


def test_by_how_much_mdlm_s_loss_is_biased() -> None:
    """c_n = 1/n without ε; with t on [ε, 1] it is (1 − I_ε(n, L − n + 1))/(n (1 − ε)), with I the incomplete beta function."""
    n = torch.arange(1, L + 1).double()
    torch.testing.assert_close(mdlm_weights(L), 1 / n, rtol=1e-12, atol=0)
    for least in (1e-3, 0.05):
        closed = (1 - torch.from_numpy(betainc(n.numpy(), L - n.numpy() + 1, least))) / (n * (1 - least))
        torch.testing.assert_close(mdlm_weights(L, least), closed, rtol=1e-12, atol=0)
    masks, sums = MODEL.sums_over_masks(WORLD.states)
    each = torch.stack([sums[:, masks.sum(1) == i].mean(1) for i in range(1, L + 1)], 1)
    exact = MODEL.exact_ledger(WORLD.states).nelbo
    torch.testing.assert_close(each @ mdlm_weights(L), exact, rtol=1e-10, atol=0)
    # Their defaults, sampling_eps = 1e-3 and the noise's ε = 1e-3: the bound that is reported is too low, by 0.1 to 0.4 % here.
    apart = (each @ mdlm_weights(L, 1e-3, 1e-3) - exact) / exact
    assert bool((apart < 0).all())
    assert -0.01 < float(apart.min()) < float(apart.max()) < -1e-4
    # The longer the sequence, the more of the term with a single mask is lost: 12 % at 128 tokens, 64 % at 1,024.
    lost = [1 - (1 - 1e-3) ** length for length in (128, 1024)]
    assert [float(betainc(1, length, 1e-3)) for length in (128, 1024)] == pytest.approx(lost)
    assert lost == pytest.approx([0.12, 0.64], abs=0.005)


def mdlm_discrete(x: Tensor, z: Tensor, s: int, steps: int, clamped: bool = True) -> Tensor:
    """Their loss (B,) in T steps at t = s/T, in which a mask has the probability 0 under the model."""
    dt = 1 / steps
    t = min(s / steps, 1 - 1e-4) if clamped else s / steps
    log_p = NETWORK(z.long()).double().log_softmax(-1).gather(-1, x.long()[..., None])[..., 0]
    at_mask = 0.0
    first = math.log((1 - t) * at_mask / t + 1)
    second = math.log((1 - (t - dt)) * at_mask / (t - dt) + 1) if t > dt else 0.0
    each = dt / t * (first - log_p) + (1 - dt / t) * (first - second)
    return steps * (each * (z == K)).sum(1)


@pytest.mark.parametrize("steps", [2, 5])
def test_mdlm_s_discrete_loss_is_our_bound_of_as_many_steps(steps: int) -> None:
    """Mean over t ∈ {1/T … 1} and all masks. They clamp t to 1 − 10⁻⁴, which weights the last step 1.0001 times."""
    x = WORLD.states
    found = {}
    for clamped in (False, True):
        total = torch.zeros(len(x), dtype=torch.float64)
        for s in range(1, steps + 1):
            for mask in product([False, True], repeat=L):
                chance = math.prod(s / steps if one else 1 - s / steps for one in mask)
                z = torch.where(torch.tensor(mask), float(K), x)
                total += chance * mdlm_discrete(x, z, s, steps, clamped) / steps
        found[clamped] = total
    exact = df.MaskedDiffusion(NETWORK, WORLD.space, Absorbing(K, steps)).exact_ledger(x).nelbo
    torch.testing.assert_close(found[False], exact, rtol=1e-10, atol=0)
    apart = found[True] / exact - 1
    assert 0 < float(apart.min()) < float(apart.max()) < 1.1e-4


# D3PM.


def d3pm_terms(logits: Tensor, x: Tensor, z: Tensor, t: int, one_step: list[Tensor], eps: float) -> Tensor:
    """Their term t (0 is the decoder) of the bound (B,), nats, from logits (B, L, S) of x, at noisy z, with matrices Q_1 … Q_T (S, S)."""
    if t == 0:
        return -logits.log_softmax(-1).gather(-1, x.long()[..., None])[..., 0].sum(1)
    upto = one_step[0]
    for matrix in one_step[1:t]:
        upto = upto @ matrix
    back = (one_step[t].T[z.long()] + eps).log()
    truth = (back + (upto[x.long()] + eps).log()).log_softmax(-1)
    model = (back + (logits.softmax(-1) @ upto + eps).log()).log_softmax(-1)
    return torch.where(truth.exp() > 0, truth.exp() * (truth - model), 0.0).sum((1, 2))


@pytest.mark.parametrize("kind", ["uniform", "absorbing"])
def test_d3pm_s_bound_without_its_hybrid_term(kind: str) -> None:
    """All terms, summed over all latents. Their ε = 10⁻⁶ in logarithms changes the bound by up to 10⁻⁴ relatively."""
    length, steps = 3, 4
    world, network = SequenceWorld.random(length, K, seed=2), Random(3).requires_grad_(False)
    x, signal = world.states, [0.75, 0.5, 0.25, 0.1 if kind == "uniform" else 0.0]
    keep = [b / a for a, b in zip([1.0, *signal[:-1]], signal, strict=True)]
    if kind == "uniform":
        states = K
        matrices = [a * torch.eye(K).double() + (1 - a) / K for a in keep]
        model = UniformDiffusion(network, world.space, UniformNoise(K, steps, signal))
        ours = exact_ledger(model, x, K)
        # At z_1 they take the network's logits without the evidence of z_1 itself.
        first = exact_ledger(UniformDiffusion(network, world.space, model.process, evidence=False), x, K).reconstruction
    else:
        states = K + 1
        matrices = [
            a * torch.eye(K + 1).double() + (1 - a) * nn.functional.one_hot(torch.tensor(K), K + 1).double()
            for a in keep
        ]
        model = df.MaskedDiffusion(network, world.space, Absorbing(K, steps, signal))
        ours = model.exact_ledger(x)
        first = ours.reconstruction
    latents = all_sequences(length, states)
    rows, items = x.repeat_interleave(len(latents), 0), latents.repeat(len(x), 1)
    for eps in (0.0, 1e-6):
        upto, terms = torch.eye(states).double(), []
        for t in range(steps):
            upto = upto @ matrices[t]
            chance = upto[rows.long(), items.long()].prod(1)
            reached = chance > 0
            inputs = items[reached].long()
            if kind == "uniform":
                assert isinstance(model, UniformDiffusion)
                logits = network(inputs, model.process.log_snr(torch.full((len(inputs),), t + 1)))
            else:
                logits = nn.functional.pad(network(inputs), (0, 1), value=-torch.inf)
                if t == 0:  # a decoder that copies shown positions, as in MDLM's parametrisation
                    copied = torch.full_like(logits, -torch.inf).scatter(-1, inputs[..., None], 0.0)
                    logits = torch.where((inputs == K)[..., None], logits, copied)
            cost = torch.zeros(len(rows), dtype=torch.float64)
            cost[reached] = d3pm_terms(logits.double(), rows[reached], items[reached], t, matrices, eps)
            terms.append((chance * cost).view(len(x), -1).sum(1))
        found = torch.stack(terms, 1)
        if eps == 0:
            torch.testing.assert_close(found[:, 1:], ours.kl, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found[:, 0], first, rtol=1e-10, atol=1e-12)
            exact = found.sum(1)
        else:
            apart = (found.sum(1) / exact - 1).abs().max()
            assert 1e-9 < float(apart) < 1e-3


# UDLM and Duo: uniform noise in continuous time.


def plugged_in(x: Tensor, z: Tensor, a: Tensor, log_predicted: Tensor) -> Tensor:
    """Their cost at every position (B, L), per unit of −a, written out: with x̄ = K a x + 1 − a and x̄_θ = K a x̂ + 1 − a,

    [Σ_j x̄_j/x̄_z ln(x̄_θ,z x̄_j)/(x̄_θ,j x̄_z) − K/x̄_z + K/x̄_θ,z] / (K a)           (Schiff et al. 2024; Sahoo et al. 2025).
    """
    a, one = a[:, None, None], nn.functional.one_hot(x.long(), K).double()
    true, found = (K * a * p + 1 - a for p in (one, log_predicted.exp()))
    true_z, found_z = (p.gather(-1, z.long()[..., None]) for p in (true, found))
    ratio = (true / true_z * (found_z * true / (found * true_z)).log()).sum(-1)
    return (ratio - K / true_z[..., 0] + K / found_z[..., 0]) / (K * a[..., 0])


def test_udlm_s_and_duo_s_continuous_time() -> None:
    """The same cost at every x, z and a as with `evidence=True`: q(·|x̂) is the mixture over x with p(x|z) ∝ x̂ q(z|x). That over x̂ itself,
    D3PM's, is another one. Sampling t from [10⁻³, 1] leaves out a third of a per cent of this bound.
    """
    length = 3
    world, network = SequenceWorld.random(length, K, seed=2), Random(length).requires_grad_(False)
    latents = all_sequences(length, K)
    x, z = world.states.repeat_interleave(len(latents), 0), latents.repeat(len(world.states), 1)
    model = UniformDiffusion(network, world.space, UniformNoise(K))
    for level in (0.1, 0.5, 0.9):
        u = torch.full((len(x),), level, dtype=torch.float64)
        a, step = model.process.keeps(u), 1e-6
        slope = -(model.process.keeps(u + step) - model.process.keeps(u - step)) / (2 * step)
        theirs = plugged_in(x, z, a, network(z.long(), model.process.log_snr(u)).double().log_softmax(-1))
        ours = model.density_map(x, z, u)
        torch.testing.assert_close(ours, slope[:, None] * theirs, rtol=1e-8, atol=1e-10)

    def charged(eps: float, drawn: Callable[[Tensor], Tensor], weighted: Callable[[Tensor], Tensor]) -> float:
        """The mean over items and t ~ U[ε, 1] of their loss, with z drawn at one a(t) and weighted at another."""
        import numpy as np

        nodes, weights = np.polynomial.legendre.leggauss(100)
        root = eps**0.5 + (1 - eps**0.5) * torch.from_numpy(0.5 * (nodes + 1))
        mass = torch.from_numpy(weights) * (1 - eps**0.5) * root / (1 - eps)
        total = 0.0
        for t, w in zip(root.square(), mass, strict=True):
            keep, a = drawn(t), weighted(t).expand(len(x))
            time = torch.logit(a).clamp(-20, 20)
            chance = torch.where(x == z, keep + (1 - keep) / K, (1 - keep) / K).prod(1)
            log_predicted = network(z.long(), time).double().log_softmax(-1)
            slope = float(weighted(torch.zeros(())) - weighted(torch.ones(())))
            total += (
                float(w) * slope * float((chance * plugged_in(x, z, a, log_predicted).sum(1)).sum()) / len(world.states)
            )
        return total

    inside = UniformNoise(K, signal=lambda u: 0.999 * (1 - u))
    both = [UniformDiffusion(network, world.space, inside, evidence) for evidence in (True, False)]
    plugged, mixed = (float(exact_ledger(one, world.states, K).nelbo.mean()) for one in both)
    assert mixed > 2 * plugged

    exact = float(exact_ledger(model, world.states, K).nelbo.mean())
    assert charged(0.0, lambda t: 1 - t, lambda t: 1 - t) == pytest.approx(exact, rel=1e-7)
    duo = charged(1e-3, lambda t: 1 - 0.999 * t, lambda t: 1 - 0.999 * t) / exact - 1
    udlm = charged(1e-3, lambda t: 1 - 0.999 * t, lambda t: 1 - t) / exact - 1
    assert duo == pytest.approx(-0.0033, abs=1e-4)
    assert udlm == pytest.approx(-0.0035, abs=1e-4)
