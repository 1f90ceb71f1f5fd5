"""A contrastive encoder of items and their conditions, trained by the loss of CLIP: it has no likelihood, and serves as a frozen encoder.

For a batch of B pairs (x_i, c_i) with embeddings u_i = u(x_i) and v_i = v(c_i) of length 1, and s_ij = u_i·v_j/τ with a learned temperature τ,

    loss = mean_i ½ [−ln softmax_j(s_ij)_i − ln softmax_j(s_ji)_i],

the mean of the cross-entropies of finding the condition of an item among those of the batch, and the item of a condition. ln B − loss is at
most I(x; c) in expectation; the best s is ln p(x|c)/p(x), up to a constant, also if conditions are repeated in a batch.

References: Radford et al. 2021, "Learning transferable visual models from natural language supervision" (CLIP), Figure 3; van den Oord et al.
2018, "Representation learning with contrastive predictive coding" (InfoNCE), §2.3 and App. A.1.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusional.conditions import Condition, check_condition, rows_of
from diffusional.errors import DiffusionalError
from diffusional.ledger import Costs, Ledger
from diffusional.models.base import LatentVariableModel
from diffusional.space import Space
from diffusional.timesteps import TimestepSampler

# 1/τ at the beginning, and at most (Radford et al. 2021, §2.5).
_START, _MOST = 1 / 0.07, 100.0


class ContrastiveEncoder(LatentVariableModel):
    """An encoder of items x and an encoder of conditions c, whose embeddings of a pair are close: CLIP's loss, in nats.

    It is trained like a model, in a run of its own, but it is not one: its loss is not a bound on ln p(x), so that `elbo`, `terms` and `sample` raise
    DiffusionalError. `FrozenEncoder` takes its `features`, and the bound is that of prior and decoder.

    Args:
        encoder: module from x (B, *space.shape) to (B, n).
        tower: module from c to (B, n).
        space: of x.
        group: number of pairs among which an item and its condition are found. A batch is divided into groups of consecutive rows.

    >>> from diffusional.space import Continuous
    >>> class Towers(nn.Linear):
    ...     def forward(self, c): return super().forward(c.float()[:, None])
    >>> model = ContrastiveEncoder(nn.Linear(3, 2), Towers(1, 2), Continuous((3,)))
    >>> x, c = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    >>> model.features(x).shape, model.costs(x, {}, c).terms["contrastive"].shape
    (torch.Size([8, 2]), torch.Size([8]))
    """

    def __init__(self, encoder: nn.Module, tower: nn.Module, space: Space, group: int = 128) -> None:
        super().__init__()
        self._space = space
        if isinstance(group, bool) or not isinstance(group, int) or group < 2:
            raise DiffusionalError(f"expected group to be an integer of at least 2, got {group!r}")
        self.encoder, self.tower, self.group = encoder, tower, group
        self.log_scale = nn.Parameter(torch.tensor(math.log(_START)))

    def features(self, x: Tensor) -> Tensor:
        """Return the embeddings (B, n) of items, of length √n, so that their numbers are of order one: a deterministic encoder of x."""
        return features(self.encoder(x))

    def deterministic_encoder(self) -> nn.Module:
        """Return the module from x to `features`."""
        return Features(self.encoder)

    def embedded(self, condition: Condition) -> Tensor:
        """Return the embeddings (B, n) of conditions, of length √n."""
        return features(self.tower(condition))

    def similarities(self, x: Tensor, condition: Condition) -> Tensor:
        """Return s (B, B'), the similarity of every item to every condition over the temperature, nats."""
        u, v = self.features(x), self.embedded(condition)
        return self.log_scale.exp().clamp(max=_MOST) * u @ v.T / u.shape[1]

    @property
    def space(self) -> Space:
        return self._space

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(0,): the loss has no noise."""
        return (0,)

    def draw(
        self,
        x: Tensor,
        sampler: TimestepSampler | None = None,
        generator: torch.Generator | None = None,
        n: int | None = None,
    ) -> dict[str, Tensor]:
        """Return {}: nothing is random."""
        return {}

    def costs(self, x: Tensor, draws: dict[str, Tensor], condition: Condition | None = None) -> Costs:
        """Return the loss of each pair as the cost "contrastive" (N,), nats.

        Raises DiffusionalError without a condition.
        """
        if condition is None:
            raise DiffusionalError(
                "expected conditions to pair the items with, got none; give condition=…, or data.condition in a config"
            )
        check_condition(condition, len(x))
        found = [self._paired(x[rows], rows_of(condition, rows)) for rows in _groups(len(x), self.group)]
        none = torch.zeros(0)
        return Costs({"contrastive": torch.cat(found)}, none, none)

    def _paired(self, x: Tensor, condition: Condition | None) -> Tensor:
        assert condition is not None
        s = self.similarities(x, condition)
        return -0.5 * (s.log_softmax(1).diagonal() + s.log_softmax(0).diagonal())

    # It is not a model of x.

    def _refused(self) -> DiffusionalError:
        return DiffusionalError(
            "a contrastive encoder has no p(x): its loss is not a bound, and there is nothing to sample. Evaluate the system whose frozen "
            "encoder it is"
        )

    def terms(self, x: Tensor, noise: Tensor, condition: Condition | None = None) -> Ledger:
        raise self._refused()

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, condition: Condition | None = None) -> Ledger:
        raise self._refused()

    def sample(self, n: int, generator: torch.Generator | None = None, condition: Condition | None = None) -> Tensor:
        raise self._refused()


class Features(nn.Module):
    """The features (B, n) of items from an encoder's output, without the encoder of conditions."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return features(self.encoder(x))


def features(output: Tensor) -> Tensor:
    """Return the outputs (B, n) of an encoder scaled to the length √n."""
    return functional.normalize(output, dim=1) * math.sqrt(output.shape[1])


def _groups(n: int, size: int) -> list[Tensor]:
    """Return the rows of groups of about `size` consecutive items, none of a single item unless there is only one.

    >>> [len(rows) for rows in _groups(10, 4)]
    [5, 5]
    """
    return list(torch.arange(n).tensor_split(max(1, n // size)))
