"""The levels of a model that is more than a chain, as a chain of costs of its x, so that an evaluation can visit them one by one."""

from collections.abc import Callable

from torch import Tensor

from diffusional.conditions import Condition, once_each, row_digests, rows_of
from diffusional.models.base import LatentVariableModel
from diffusional.models.chain import Chain
from diffusional.shapes import PerItem
from diffusional.space import Space


class VisitedChain(Chain):
    """What `visited` of such a model returns: costs of the model's x, at levels that are by default those of one chain inside the model.

    A subclass defines the costs, `visit_shape` and `identity`; without a chain inside, also `steps`, `noise_levels`, `gamma_at` and
    `level_constants`. Tensors stay those of the model: neither it nor the chain inside is registered as a submodule.

    Args:
        model: the model whose costs these are.
        over: the chain inside whose levels are visited, or None.

    >>> import torch
    >>> from diffusional import Continuous, Denoiser, DiffusionModel, GaussianDiffusion, Renoised, likelihood, schedule
    >>> process = GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=10))
    >>> network = torch.nn.Linear(2, 2)
    >>> denoiser = Denoiser(lambda z, s, low: network(z), "v")
    >>> inner = DiffusionModel(process, denoiser, likelihood.GaussianLikelihood(Continuous((2,))))
    >>> chain = Renoised(inner, gamma=0.0, shape=(2,)).visited()
    >>> chain.steps, chain.space.shape, chain.visit_shape, len(list(chain.parameters()))
    (10, (2,), (4,), 0)
    """

    model: LatentVariableModel
    over: Chain | None

    def __init__(self, model: LatentVariableModel, over: Chain | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "over", over)
        self._encoded: dict[bytes, tuple[Tensor, ...]] = {}

    @property
    def _inside(self) -> Chain:
        assert self.over is not None, f"{type(self).__name__} has no chain inside: it defines its levels itself"
        return self.over

    def whole(self) -> LatentVariableModel:
        return self.model

    @property
    def space(self) -> Space:
        return self.model.space

    @property
    def steps(self) -> int | None:
        return self._inside.steps

    @property
    def positioned(self) -> bool:
        """False: by default the latents are not positions of the model's x."""
        return False

    def noise_levels(self) -> Tensor:
        return self._inside.noise_levels()

    def gamma_at(self, edges: Tensor) -> Tensor | None:
        return self._inside.gamma_at(edges)

    def level_constants(self, level: PerItem) -> PerItem:
        return self._inside.level_constants(level)

    def extra(self, x: Tensor) -> dict[str, Tensor]:
        return self.model.extra(x)

    def _once(
        self,
        x: Tensor,
        condition: Condition | None,
        encode: Callable[[Tensor, Condition | None], tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """Return `encode(x, condition)`, tensors (B, …). Each item with its condition is encoded once, however often it is visited."""
        keys = row_digests(x)
        if condition is not None:
            keys = [one + other for one, other in zip(keys, row_digests(condition), strict=True)]

        def encoded(rows: Tensor) -> tuple[Tensor, ...]:
            at = rows.to(x.device)
            return encode(x[at], rows_of(condition, at))

        return once_each(self._encoded, keys, encoded)
