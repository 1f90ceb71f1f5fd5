"""Enumerable worlds of sequences: K^L states with known probabilities, so that every number of a categorical diffusion is a finite sum.

Sequences are encoded by a `space.Categorical(L, K)`. `exact_ledger` and `exact_probabilities` enumerate the latents of any chain whose latents
have finitely many values.
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError
from diffusional.ledger import Ledger
from diffusional.models.chain import Chain
from diffusional.models.redrawn import UniformDiffusion
from diffusional.shapes import Batch, PerItem
from diffusional.space import Categorical

# The most states of a world, and of the latents of a chain.
_MOST = 20_000
# Rows of one call.
_ROWS = 50_000


def _check_number(states: float | int) -> None:
    if states > _MOST:
        raise DiffusionalError(
            f"expected at most {_MOST} states to enumerate, got {states:.3g}; use fewer positions or categories"
        )


def all_sequences(length: int, values: int) -> Tensor:
    """Return all sequences (values^length, length) of 0 … values − 1, float64, in lexicographic order.

    >>> all_sequences(2, 2).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    _check_number(float(values) ** length)
    return torch.tensor(list(product(range(values), repeat=length)), dtype=torch.float64)


class Conditionals(nn.Module):
    """The exact conditionals of a world, as the network of a `MaskedDiffusion`: tokens (B, L), with masks K, to ln p(x_i = k | shown)."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", table)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ln p(x_i = k | the shown positions of `tokens`) (B, L, K), float64."""
        k, length = self.table.shape[0], self.table.ndim
        shown = torch.cat([torch.eye(k, dtype=torch.float64), torch.ones(1, k, dtype=torch.float64)]).to(tokens.device)
        allowed = shown[tokens]  # (B, L, K): which categories agree with a position
        joint = self.table.expand(len(tokens), *self.table.shape)
        for i in range(length):
            shape = [len(tokens)] + [k if j == i else 1 for j in range(length)]
            joint = joint * allowed[:, i].reshape(shape)
        axes = [tuple(j + 1 for j in range(length) if j != i) for i in range(length)]
        return torch.stack([joint.sum(axis) if axis else joint for axis in axes], 1).log()


class RedrawnConditionals(nn.Module):
    """The exact predictions of a world from the context of a position under uniform noise, as the network of a `UniformDiffusion`: tokens
    (B, L) and ln a/(1 − a) (B,) to ln p(x_i = k | z_j, j ≠ i), by Bayes' rule over all states.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        # A parameter: a network receives its time in the type of its parameters.
        self.table = nn.Parameter(table, requires_grad=False)

    def forward(self, tokens: Tensor, log_snr: Tensor) -> Tensor:
        """Return ln p(x_i = k | the other positions of `tokens`) (B, L, K), float64."""
        k, length = self.table.shape[0], self.table.ndim
        keep = torch.sigmoid(log_snr.double())
        # Networks receive at least −20, which stands for a = 0.
        keep = torch.where(log_snr <= -20, 0.0, keep)[:, None, None]
        seen = keep * nn.functional.one_hot(tokens, k) + torch.sigmoid(-log_snr.double())[:, None, None] / k
        out = []
        for i in range(length):
            joint = self.table.movedim(i, 0).expand(len(tokens), *self.table.shape)
            # Contracted from the last axis on, with q(z_j | x_j) of every other position.
            for j in reversed([j for j in range(length) if j != i]):
                joint = torch.einsum("b...k,bk->b...", joint, seen[:, j])
            out.append(joint)
        return torch.stack(out, 1).log().log_softmax(-1)


@dataclass(frozen=True, eq=False)
class SequenceWorld:
    """A distribution over all sequences of L positions with K categories.

    Args:
        table: p (K, …, K), L axes, not negative; it is divided by its sum.

    Raises DiffusionalError for axes of different sizes, negative probabilities, and more than 20,000 states.

    >>> world = SequenceWorld.random(length=3, categories=2, seed=0)
    >>> world.states.shape, round(float(world.log_prob(world.states).exp().sum()), 12)
    (torch.Size([8, 3]), 1.0)
    """

    table: Tensor

    def __post_init__(self) -> None:
        table = self.table.double()
        if table.ndim < 1 or len(set(table.shape)) != 1 or table.shape[0] < 2:
            raise DiffusionalError(
                f"expected a table (K, …, K) with one axis for each position, K ≥ 2, got {tuple(table.shape)}"
            )
        _check_number(table.numel())
        if not bool((table >= 0).all()) or not float(table.sum()) > 0:
            raise DiffusionalError("expected probabilities of at least 0 that are not all 0")
        object.__setattr__(self, "table", table / table.sum())

    @classmethod
    def random(cls, length: int, categories: int, seed: int = 0, concentration: float = 1.5) -> "SequenceWorld":
        """Return a world of log-probabilities that are normal with standard deviation `concentration`, so that no position is independent."""
        _check_number(float(categories) ** length)
        generator = torch.Generator().manual_seed(seed)
        logs = torch.randn([categories] * length, generator=generator, dtype=torch.float64)
        return cls((concentration * logs).exp())

    @property
    def space(self) -> Categorical:
        """The space of the sequences."""
        return Categorical(self.table.ndim, self.table.shape[0])

    @property
    def states(self) -> Tensor:
        """All sequences (K^L, L), float64, in the order of `table.flatten()`."""
        return all_sequences(self.table.ndim, self.table.shape[0])

    def log_prob(self, x: Batch) -> PerItem:
        """Return ln p(x) (B,) of sequences x (B, L)."""
        return self.table[tuple(x.round().long().T)].log()

    def entropy(self) -> float:
        """Return H(x), nats."""
        return float(torch.special.entr(self.table).sum())

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n sequences (n, L), float64."""
        return self.states[torch.multinomial(self.table.flatten(), n, replacement=True, generator=generator)]

    def conditionals(self) -> Conditionals:
        """Return the network whose predictions are exact."""
        return Conditionals(self.table)

    def redrawn_conditionals(self) -> RedrawnConditionals:
        """Return the network of a `UniformDiffusion` whose predictions from the context are exact.

        >>> from diffusional.redrawn import UniformNoise
        >>> world = SequenceWorld.random(length=2, categories=3)
        >>> model = UniformDiffusion(world.redrawn_conditionals(), world.space, UniformNoise(3))
        >>> bool((exact_ledger(model, world.states, values=3).nelbo + world.log_prob(world.states)).abs().max() < 1e-10)
        True
        """
        return RedrawnConditionals(self.table)

    def information(self, keep: float) -> float:
        """Return I(x; z), nats, of a z in which each position of x is shown with probability `keep`, and masked otherwise: the mean entropy of
        what is shown.
        """
        length, total = self.table.ndim, 0.0
        for shown in product([False, True], repeat=length):
            chance = keep ** sum(shown) * (1 - keep) ** (length - sum(shown))
            hidden = tuple(i for i in range(length) if not shown[i])
            part = self.table.sum(hidden) if hidden else self.table
            total += chance * float(torch.special.entr(part).sum())
        return total


def _latents(chain: Chain, values: int) -> Tensor:
    return all_sequences(chain.space.dimensions, values)


def _tanh_sinh(nodes: int) -> tuple[Tensor, Tensor]:
    """Return u (N,) in (0, 1) and weights (N,), for integrands with singularities at the ends.

    >>> u, weight = _tanh_sinh(80)
    >>> abs(float((weight * u.log()).sum()) + 1) < 1e-14
    True
    """
    tau = torch.linspace(-3.2, 3.2, nodes, dtype=torch.float64)
    inner = math.pi * torch.sinh(tau)
    u = torch.sigmoid(inner)
    return u, float(tau[1] - tau[0]) * math.pi * torch.cosh(tau) * u * torch.sigmoid(-inner)


@torch.no_grad()
def exact_ledger(chain: Chain, x: Batch, values: int, nodes: int = 80) -> Ledger:
    """Return the ledger of MATH (8) of items x (B, L) without any Monte Carlo error, from sums over all latents in {0 … values − 1}^L.

    Args:
        chain: a chain in discrete time whose `process.marginal` has probabilities (`log_prob`), such as a `MaskedDiffusion` (values = K + 1),
            or a `UniformDiffusion` in continuous time, whose ∫ dKL/du du is computed by tanh-sinh quadrature.
        x: items.
        values: the number of values of a latent's position.
        nodes: the number of levels u in continuous time, each of which is a column of the ledger's `kl`. The error of 80 of them is below
            1e-12 for a network that is a smooth function of its time.

    Raises DiffusionalError for another chain in continuous time.

    >>> from diffusional.models.masked import MaskedDiffusion
    >>> world = SequenceWorld.random(length=3, categories=2)
    >>> ledger = exact_ledger(MaskedDiffusion(world.conditionals(), world.space), world.states, values=3)
    >>> bool((ledger.nelbo + world.log_prob(world.states)).abs().max() < 1e-12)
    True
    """
    z = _latents(chain, values).to(x)
    rows, items = x.repeat_interleave(len(z), 0), z.repeat(len(x), 1)
    steps = chain.steps

    def expected(t: int | Tensor, cost: Tensor) -> Tensor:
        chance = chain.process.marginal(rows, t).log_prob(items).exp()
        return torch.where(chance > 0, chance * cost, 0.0).view(len(x), -1).sum(1)

    def each(t: int) -> Tensor:
        cost = []
        for some in torch.arange(len(rows)).split(_ROWS):
            level = torch.full((len(some),), t)
            q = chain.process.posterior(items[some], rows[some], level)
            cost.append(q.kl(chain.step(items[some], level)))
        return expected(t + 1, torch.cat(cost))

    def at(chain: UniformDiffusion, level: Tensor) -> Tensor:
        """Return dKL/du (B,) at a level u: the network is evaluated once for every latent."""
        context, cost = chain.context(z, level.expand(len(z))), []
        for some in torch.arange(len(rows)).split(_ROWS):
            u = level.expand(len(some))
            cost.append(chain.density_of(rows[some], items[some], u, context[some % len(z)]).sum(1))
        return expected(level, torch.cat(cost))

    if steps is not None:
        first = expected(1, -chain.decode(items).log_prob(rows))
        kl = torch.stack([each(t) for t in range(1, steps)], 1)
    elif isinstance(chain, UniformDiffusion):
        start = torch.zeros((), dtype=torch.float64)
        certain = not chain.decoder_uses_network
        first = chain.prior(x) * 0 if certain else expected(start, -chain.decode(items).log_prob(rows))
        u, weight = _tanh_sinh(nodes)
        kl = torch.stack([weight[i] * at(chain, u[i]) for i in range(nodes)], 1)
    else:
        raise DiffusionalError(
            f"expected discrete time or a UniformDiffusion, got a {type(chain).__name__} in continuous time; use regrid(steps)"
        )
    return Ledger(first, kl, chain.prior(x), chain.space.dimensions)


@torch.no_grad()
def exact_probabilities(chain: Chain, values: int) -> Tensor:
    """Return p(x) (K^L,) of what the chain's ancestral sampler draws, in the order of `all_sequences(L, K)`, from sums over all paths.

    >>> from diffusional.models.masked import MaskedDiffusion
    >>> world = SequenceWorld.random(length=2, categories=2)
    >>> p = exact_probabilities(MaskedDiffusion(world.conditionals(), world.space), values=3)
    >>> torch.allclose(p, world.table.flatten())
    True
    """
    z, x = _latents(chain, values), all_sequences(chain.space.dimensions, chain.space.levels or values)
    like = chain.last(1).sample().dtype
    z, x, steps = z.to(like), x.to(like), chain.steps
    assert steps is not None
    p = chain.last(len(z)).log_prob(z).exp().double()

    def moved(p: Tensor, to: Tensor, t: int) -> Tensor:
        """Return Σ_z p(z) p(to | z), with the transition of z_{t+1} to z_t, or of z_1 to x for t = 0."""
        out = torch.zeros(len(to), dtype=torch.float64)
        reached = (p > 0).nonzero().squeeze(1)
        for some in reached.split(max(1, _ROWS // len(to))):
            before, after = z[some].repeat_interleave(len(to), 0), to.repeat(len(some), 1)
            given = chain.step(before, torch.full((len(before),), t)) if t else chain.decode(before)
            out += p[some] @ given.log_prob(after).exp().double().view(len(some), -1)
        return out

    for t in range(steps - 1, 0, -1):
        p = moved(p, z, t)
    return moved(p, x, 0)
