"""A differentiable estimate of ln p(x) for each item, of low variance: for reinforcement learning and preference optimisation.

`log_prob` estimates −NELBO. Its draws of an item are

    stratified   the levels of V visits invert a plan's probabilities at (j + U)/V, j = 0 … V − 1, with one U for each item
    antithetic   visits j and V − 1 − j have the noise ε and −ε: for masks, a set of positions and one that is disjoint as far as possible
    disjoint     instead, under a plan for numbers of masks: the sets of all visits are parts of one random order of the positions, until that is
                 used up and another one begins. Each set by itself is uniform, so that the estimate is unbiased; a plan mostly visits small sets
    common       they depend on the item, its condition, the seed and the plan only, not on the weights or the other items of a batch

so that the ratio of two policies, exp(log_prob(a, x) − log_prob(b, x)), has the variance of a difference under the same draws (VRPO, Zhu et al.
2025, shares times and masks between policies for this reason). The estimate and its gradient are unbiased; that of a ratio, as of any nonlinear
function, is not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, repeated, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.noise import item_keys, normal, stream
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.visits import LevelVisits, knows_constants, network_rows
from diffusional.ledger import total_of
from diffusional.models.base import LatentVariableModel
from diffusional.models.chain import Chain
from diffusional.shapes import Batch, PerItem


def log_prob(
    model: LatentVariableModel,
    x: Batch,
    visits: int = 8,
    *,
    condition: Condition | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    antithetic: bool = True,
) -> PerItem:
    """Return estimates of the ELBO, MATH (8) by (22), of items x (B, *space.shape), (B,) nats, float64, with gradients to the model's
    parameters.

    Args:
        model: a chain, such as a `MaskedDiffusion`, a `PromptedDiffusion` or a `DiffusionModel`, in the mode (train, eval) that it is to have.
        x: encoded items, on the model's device.
        visits: network evaluations of each item, V.
        condition: of a conditional model, with a row for each item; for a `PromptedDiffusion` the prompts.
        plan: chooses the levels, and has constants and controls that are subtracted and added back exactly. It may be of another model with the
            same levels, such as the reference policy. By default all levels are equally likely.
        seed: of the draws. Two models with the same levels, plan and seed have the same draws; a new seed at each step gives new ones.
        antithetic: whether noise is drawn in pairs ε, −ε, or masks under a plan are disjoint.

    Raises DiffusionalError for a model that is not a chain, fewer than one visit, a plan of other levels and one with the control `context`.

    >>> from diffusional.models.masked import MaskedDiffusion
    >>> from diffusional.space import Categorical
    >>> network = torch.nn.Sequential(torch.nn.Embedding(4, 8), torch.nn.Linear(8, 3))
    >>> policy = MaskedDiffusion(network, Categorical(5, 3))
    >>> estimate = log_prob(policy, torch.zeros(2, 5), visits=4)
    >>> estimate.mean().backward()
    >>> estimate.shape, network[1].weight.grad.shape
    (torch.Size([2]), torch.Size([3, 8]))
    """
    chain = model.visited()
    if chain is None or chain is not model:
        raise DiffusionalError(
            f"expected a chain for log_prob, such as a MaskedDiffusion or a DiffusionModel, got a {type(model).__name__}; use evaluate, or the "
            "negative of its loss"
        )
    if visits < 1:
        raise DiffusionalError(f"expected at least 1 visit of each item, got visits={visits}")
    chain.space.check(x)
    check_condition(condition, len(x))
    if plan is None:
        plan = Plan.uniform(chain)
    plan.check(chain)
    if plan.takes_context:
        raise DiffusionalError(
            "expected a plan without the control context, which takes a network evaluation of its own"
        )
    keys = item_keys(x.detach(), seed, condition)
    return -(known(chain, x, plan) + residuals(chain, x, keys, visits, plan, condition, antithetic))


def known(chain: Chain, x: Batch, plan: Plan) -> PerItem:
    """Return the part of the NELBO (B,) that takes no network evaluation, nats: what the plan predicts, the prior and other costs."""
    others = {"prior": chain.prior(x)} | chain.extra(x)
    total = plan.base(chain, x.detach()).sum(1).to(x.device)
    return total + total_of(others).to(total)


def residuals(
    chain: Chain,
    x: Batch,
    keys: Sequence[bytes],
    visits: int,
    plan: Plan,
    condition: Condition | None,
    antithetic: bool = True,
    replicate: int = 0,
) -> PerItem:
    """Return an estimate (B,) of the rest of the NELBO, nats, with gradients, from visits of every item. Replicates are independent, and those
    of items with other keys too.
    """
    first = torch.ones(1, dtype=torch.long)
    walk = antithetic and plan.learned and chain.masks is not None and chain.masks.masks_number(first) is not None
    noise, v = stratified(keys, visits, chain.visit_shape, antithetic and not walk, replicate)
    level_visits = plan.at(v)
    if walk:
        assert chain.masks is not None
        number = chain.masks.masks_number(torch.where(level_visits.cell == 0, 1, level_visits.level + 1))
        assert number is not None
        noise = disjoint(noise.view(len(x), visits, -1), number.view(len(x), visits)).flatten(0, 1)
    noise = noise.to(x.device, x.dtype)
    rows, rows_condition = x.detach().repeat_interleave(visits, 0), _interleaved(condition, visits)
    given = plan.subtracted(chain, rows, level_visits, noise).to(x.device)
    cost = _costs(chain, rows, level_visits, noise, rows_condition)
    left = level_visits.weight.to(x.device) * (cost - given)
    total = left.view(len(x), visits).mean(1)
    if not chain.decoder_uses_network:
        # It takes no network evaluation, so that every visit's noise has a draw.
        decoder = LevelVisits.of_decoder(len(rows))
        drawn = _costs(chain, rows, decoder, noise, rows_condition)
        drawn = drawn - plan.subtracted(chain, rows, decoder, noise).to(x.device)
        total = total + drawn.view(len(x), visits).mean(1)
    return total


def disjoint(noise: Tensor, number: Tensor) -> Tensor:
    """Return noise (B, V, L) of which the `number` (B, V) smallest of each visit are parts of one random order of the L positions, one after the
    other; a visit that no longer fits begins another order, that of its own noise.

    >>> noise = torch.tensor([[[0.3, -0.2, 0.9, -0.7], [1.0, 2.0, 3.0, 4.0], [0.4, 0.3, 0.2, 0.1]]])
    >>> disjoint(noise, torch.tensor([[1, 2, 2]])) < torch.tensor([[1], [2], [2]])
    tensor([[[False, False, False,  True],
             [ True,  True, False, False],
             [False, False,  True,  True]]])
    """
    length, out = noise.shape[2], torch.empty_like(noise)
    order, used = torch.zeros_like(noise[:, 0]), torch.full((len(noise),), length)
    for j in range(noise.shape[1]):
        fresh = used + number[:, j] > length
        order = torch.where(fresh[:, None], noise[:, j].argsort(1).argsort(1).to(noise), order)
        used = torch.where(fresh, 0, used)
        out[:, j] = (order - used[:, None]) % length
        used = used + number[:, j]
    return out


def stratified(
    keys: Sequence[bytes], visits: int, shape: tuple[int, ...], antithetic: bool, replicate: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the noise (B · V, *shape) in float32, and uniform numbers (B · V,) that choose the levels, on the CPU; the visits of an item
    follow each other. Replicates of the same keys and number of visits are independent.
    """
    half = (visits + 1) // 2 if antithetic else visits
    streams = [[stream(key, replicate * half + j, b"log_prob") for j in range(half)] for key in keys]
    offset = torch.tensor([own[0].random() for own in streams], dtype=torch.float64)
    noise = normal([one for own in streams for one in own], shape).view(len(keys), half, *shape)
    if antithetic:
        noise = torch.cat([noise, -noise[:, : visits - half].flip(1)], 1)
    v = (torch.arange(visits) + offset[:, None]) / visits
    return noise.flatten(0, 1), v.flatten().clamp(max=1 - 2.0**-53)


def _interleaved(condition: Condition | None, times: int) -> Condition | None:
    """Return a condition (B, …) with each row `times` times, one after the other."""
    if condition is None:
        return None
    n = len(condition) if isinstance(condition, Tensor) else len(next(iter(condition.values())))
    return rows_of(repeated(condition, times), torch.arange(times * n).view(times, n).T.flatten())


def _costs(chain: Chain, x: Tensor, visits: LevelVisits, noise: Tensor, condition: Condition | None) -> Tensor:
    """Return the cost of every visit (V,), nats, float64 on x's device, with gradients: KL_t without the value of its constant part, which the
    plan's base has, or the costs of the decoder.
    """
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for first in (False, True):
        chosen = ((visits.cell == 0) == first).nonzero().squeeze(1)
        for some in chosen.split(network_rows(chain)) if len(chosen) else ():
            at = some.to(x.device)
            c = rows_of(condition, at)
            if first:
                cost = total_of(chain.decoder_costs(x[at], noise[at], c))
            else:
                level = visits.level[some].to(x.device)
                cost = chain.kl_at(x[at], level, noise[at], c)
                if knows_constants(chain):
                    # Only its value: a learned schedule has its gradient in KL_t itself.
                    cost = cost - chain.level_constants(level).detach().to(x.device)
            total = total.index_add(0, at, cost.double())
    return total
