"""The objective of training, and the bound of a validation."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, moved, repeated
from diffusional.data.dataset import Dataset
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks
from diffusional.ledger import Costs
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.models.chain import batch_rows
from diffusional.training.config import Config
from diffusional.training.seeds import seed_of

# Draws per validation item. They are the same at every validation, so that differences of bounds have little noise.
VALIDATION_DRAWS = 16
# There are fewer draws if the validation split is large, since its size reduces the error as well.
_VALIDATION_ROWS = 8_192


class Objective(nn.Module):
    """The loss and its costs as a forward pass, to which wrappers of modules apply."""

    def __init__(self, model: LatentVariableModel, config: Config) -> None:
        super().__init__()
        self.model, self.latent = model, config.latent
        self.kind, self.bf16 = config.objective, config.precision == "bf16"

    def forward(
        self, x: Tensor, draws: dict[str, Tensor], part: float | None, condition: Condition | None = None
    ) -> tuple[Tensor, Costs]:
        """Return the loss and the costs of items x; `part` of the run is done, or None for a validation: the bound in full precision."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16 and part is not None):
            costs = self.model.objective_costs("elbo" if part is None else self.kind, x, draws, condition)
            if part is None:
                return costs.total().mean(), costs
            weight = 1.0 if part >= self.latent.warmup else (part / self.latent.warmup) ** 2
            return self.model.objective(costs, weight, self.latent.free_bits), costs


def validate(
    model: nn.Module,
    dataset: Dataset,
    seed: int,
    objective: Callable[..., tuple[Tensor, Costs]] | None = None,
    stop: Callable[[int, int], bool] | None = None,
) -> float | None:
    """Compute the validation NELBO in nats from up to 16 draws of the noise (and of stratified t) per item, equal at every call.

    Several processes share the blocks of items, each counted once.

    Args:
        objective: the wrapper through which sharded weights are called.
        stop: called by every process before each batch, with the number of batches done and their total. If it returns
            True the validation is abandoned.

    Returns the bound, or None if the validation was abandoned.

    Raises DiffusionalError if the bound is not finite.
    """
    assert isinstance(model, LatentVariableModel)
    device = next(model.parameters()).device
    n = len(dataset.validation)
    draws = max(1, min(VALIDATION_DRAWS, _VALIDATION_ROWS // n))
    size = max(1, batch_rows(model.space) // draws)
    blocks = -(-n // size)
    totals = torch.zeros(blocks, dtype=torch.float64)
    mine = ranks.share(blocks).tolist()
    # Sharded weights are gathered by all processes at once: a process without blocks computes its last one again.
    rounds = -(-blocks // ranks.world_size())
    with evaluation_mode(model), torch.inference_mode():
        for i in range(rounds):
            if stop is not None and stop(i, rounds):
                return None
            block = mine[i] if i < len(mine) else blocks - 1
            span = slice(block * size, (block + 1) * size)
            x = dataset.encode("validation", span).to(device)
            rows = x.repeat(draws, *(1,) * (x.ndim - 1))
            condition = moved(repeated(dataset.condition_of("validation", span), draws), device)
            generator = torch.Generator(device).manual_seed(seed_of(seed, "validation", block))
            random = model.draw(rows, None, generator)
            if objective is None:
                costs = model.costs(rows, random, condition)
            else:
                costs = objective(rows, random, None, condition)[1]
            if i < len(mine):
                totals[block] = float(costs.total().mean()) * len(x)
    bound = float(ranks.collect(totals).sum()) / n
    if not math.isfinite(bound):
        raise DiffusionalError(
            f"the validation bound is {bound:g}: the averaged weights give an item of the validation split a cost that is not "
            "finite. Try a lower optimizer.lr or optimizer.clip, or check the data with `diffusional data`"
        )
    return bound
