"""A network from conditions to vectors: the second encoder of a contrastive pair."""

import torch
from torch import Tensor, nn

from diffusional.condition_form import ConditionForm
from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.networks.autoencoder import ResidualMLP
from diffusional.networks.conditioning import pooled


class ConditionTower(nn.Module):
    """Conditions → (B, outputs): a learned vector for each class, or residual layers of numbers and of the mean of tokens.

    Args:
        form: of the condition: labels, numbers or tokens, else DiffusionalError.
        outputs: dimensions of the result.
        hidden, blocks, dropout: of the residual layers.

    >>> ConditionTower(ConditionForm("labels", classes=3), outputs=4)(torch.tensor([0, 2])).shape
    torch.Size([2, 4])
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, form: ConditionForm, outputs: int, hidden: int = 256, blocks: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.form = form
        if form.kind == "image":
            raise DiffusionalError(f"expected labels, numbers or tokens as the condition of an encoder, got {form}")
        if form.kind == "labels":
            self.network: nn.Module = nn.Embedding(form.classes, outputs)
            return
        if form.kind == "numbers":
            self.register_buffer("mean", torch.tensor(form.mean))
            self.register_buffer("scale", torch.tensor(form.scale))
        self.network = ResidualMLP((form.shape[-1],), outputs, hidden, blocks, dropout)

    def forward(self, condition: Condition) -> Tensor:
        self.form.check(condition, len(condition if isinstance(condition, Tensor) else condition["tokens"]))
        if self.form.kind == "tokens":
            return self.network(pooled(condition))
        assert isinstance(condition, Tensor)
        return self.network((condition - self.mean) / self.scale if self.form.kind == "numbers" else condition)
