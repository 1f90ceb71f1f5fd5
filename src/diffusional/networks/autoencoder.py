"""Encoders and decoders of autoencoders: residual layers on flattened items, and a ladder of them."""

import math

import torch
from torch import Tensor, nn

from diffusional.condition_form import ConditionForm
from diffusional.conditions import Condition
from diffusional.networks.conditioning import ConditionVectors
from diffusional.networks.embedding import check_condition, class_vectors
from diffusional.networks.norms import check_hidden


class ResidualMLP(nn.Module):
    """A network (B, *shape) → (B, outputs) of `blocks` residual layers of width `hidden`, at least 2 (else DiffusionalError).

    With `classes` it requires a condition of labels (B,), and adds a learned vector for each class after the first layer; with `form` a condition
    of numbers, tokens or images of that form, and adds vectors that are linear in it.

    >>> ResidualMLP((1, 8, 8), 10, hidden=16)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        hidden: int = 256,
        blocks: int = 2,
        dropout: float = 0.0,
        classes: int = 0,
        form: ConditionForm | None = None,
    ) -> None:
        super().__init__()
        check_hidden(hidden)
        self.first = nn.Linear(math.prod(shape), hidden)
        self.blocks = nn.Sequential(*(_Residual(hidden, dropout) for _ in range(blocks)))
        self.last = nn.Sequential(nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, outputs))
        self.classes = classes
        self.condition = _vectors(classes, form, hidden)

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        return self.last(self.blocks(_added(self.first(x.flatten(1)), self.condition, condition, self.classes)))


class Decoder(nn.Sequential):
    """A ResidualMLP from latents (B, n) to outputs of shape `out_shape`, with its arguments `classes` and `form`.

    >>> Decoder(4, (2, 8, 8), hidden=16, classes=3)(torch.zeros(5, 4), torch.tensor([0, 1, 2, 0, 1])).shape
    torch.Size([5, 2, 8, 8])
    """

    def __init__(
        self,
        latents: int,
        out_shape: tuple[int, ...],
        hidden: int = 256,
        blocks: int = 2,
        dropout: float = 0.0,
        classes: int = 0,
        form: ConditionForm | None = None,
    ) -> None:
        network = ResidualMLP((latents,), math.prod(out_shape), hidden, blocks, dropout, classes, form)
        super().__init__(network, nn.Unflatten(1, out_shape))

    def forward(self, input: Tensor, condition: Condition | None = None) -> Tensor:
        network, unflatten = self
        return unflatten(network(input, condition))


def _vectors(classes: int, form: ConditionForm | None, width: int) -> nn.Embedding | ConditionVectors | None:
    """Return the network of a condition of `classes`, or of a form; None without a condition."""
    return class_vectors(classes, width) if form is None else ConditionVectors(form, width)


def _added(
    h: Tensor, vectors: nn.Embedding | ConditionVectors | None, condition: Condition | None, classes: int
) -> Tensor:
    """Return h (B, hidden) with the vectors of the condition, if there is one, added. Raises DiffusionalError for one that does not fit."""
    if isinstance(vectors, ConditionVectors):
        return h + vectors(condition, len(h))
    labels = check_condition(condition, 0, classes)
    return h if vectors is None or labels is None else h + vectors(labels)


class Ladder(nn.Module):
    """The network of a hierarchical VAE with bidirectional inference (Sønderby et al. 2016; Kingma et al. 2016).

    A bottom-up pass computes features d_1 … d_L of x. A top-down pass, the same in inference and generation, has states h_L … h_0,
    which depend on the latents drawn so far. p(z_l|z_{>l}) is a function of h_l, q(z_l|z_{>l}, x) of h_l and d_l, and the output of
    shape `out_shape` of h_0.

    Args:
        shape: shape of x.
        out_shape: shape of the output for one item.
        latents: dimensions of z_1 … z_L, where z_1 is the one next to x.
        hidden: width of the layers, at least 2 (else DiffusionalError).
        classes: number of classes. If it is not 0, `up` and `top` require labels (B,), and learned vectors of the classes are added to
            the first features and to the top-down state.
        form: of a condition of numbers, tokens or images instead of labels.

    >>> ladder = Ladder((1, 8, 8), (2, 8, 8), latents=(8, 4), hidden=16)
    >>> features, state = ladder.up(torch.zeros(3, 1, 8, 8)), ladder.top(3)
    >>> mean, log_std = ladder.posterior(2, state, features[1])
    >>> ladder.output(ladder.down(1, ladder.down(2, state, mean), torch.zeros(3, 8))).shape
    torch.Size([3, 2, 8, 8])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        latents: tuple[int, ...],
        hidden: int = 256,
        blocks: int = 1,
        dropout: float = 0.0,
        classes: int = 0,
        form: ConditionForm | None = None,
    ) -> None:
        super().__init__()
        check_hidden(hidden)
        self.latents, self.out_shape = tuple(latents), tuple(out_shape)
        depth = range(len(latents))
        self.first = nn.Linear(math.prod(shape), hidden)
        self.rise = nn.ModuleList(_stack(hidden, blocks, dropout) for _ in depth)
        self.start = nn.Parameter(torch.zeros(hidden))
        self.priors = nn.ModuleList(_Head(hidden, 2 * n) for n in latents)
        self.posteriors = nn.ModuleList(_Head(2 * hidden, 2 * n) for n in latents)
        self.take = nn.ModuleList(nn.Linear(n, hidden) for n in latents)
        self.fall = nn.ModuleList(_stack(hidden, blocks, dropout) for _ in depth)
        self.last = _Head(hidden, math.prod(out_shape))
        self.classes = classes
        self.condition_up, self.condition_top = _vectors(classes, form, hidden), _vectors(classes, form, hidden)

    def up(self, x: Tensor, condition: Condition | None = None) -> list[Tensor]:
        """Return d_1 … d_L, each (B, hidden)."""
        h, features = _added(self.first(x.flatten(1)), self.condition_up, condition, self.classes), []
        for layer in self.rise:
            h = layer(h)
            features.append(h)
        return features

    def top(self, n: int, condition: Condition | None = None) -> Tensor:
        """Return h_L (n, hidden): the same for all items of the same condition."""
        return _added(self.start.expand(n, -1), self.condition_top, condition, self.classes)

    def prior(self, layer: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log std of p(z_l|z_{>l}), each (B, latents[l − 1])."""
        mean, log_std = self.priors[layer - 1](state).chunk(2, 1)
        return mean, log_std

    def posterior(self, layer: int, state: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log std of q(z_l|z_{>l}, x)."""
        mean, log_std = self.posteriors[layer - 1](torch.cat([state, feature], 1)).chunk(2, 1)
        return mean, log_std

    def down(self, layer: int, state: Tensor, z: Tensor) -> Tensor:
        """Return h_{l−1} from h_l and z_l."""
        return self.fall[layer - 1](state + self.take[layer - 1](z))

    def output(self, state: Tensor) -> Tensor:
        """Return the decoder's output at h_0, (B, *out_shape)."""
        return self.last(state).unflatten(1, self.out_shape)


def _stack(hidden: int, blocks: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(*(_Residual(hidden, dropout) for _ in range(blocks)))


class _Head(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.LayerNorm(inputs), nn.SiLU(), nn.Linear(inputs, outputs))


class _Residual(nn.Module):
    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(hidden),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.inner(h)
