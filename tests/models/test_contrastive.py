"""The contrastive encoder: CLIP's loss, and what it finds out about a world whose information is known."""

import math

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional.condition_form import ConditionForm
from diffusional.models.contrastive import ContrastiveEncoder
from diffusional.networks import ConditionTower


class Fixed(nn.Module):
    """Embeddings of items that are their numbers, and of labels from a table."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.is_floating_point() else nn.functional.one_hot(x, 3).float()


def test_the_loss_is_that_of_clip() -> None:
    """By the reference's formula, on cosine similarities: cross-entropies over rows and columns with the targets 0 … B − 1."""
    model = ContrastiveEncoder(Fixed(), Fixed(), df.Continuous((3,)), group=4)
    x, c = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])
    cosine = nn.functional.cosine_similarity(x[:, None], nn.functional.one_hot(c, 3).float()[None], dim=2)
    logits, target = cosine / 0.07, torch.arange(4)
    expected = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    assert model.loss(x, condition=c).item() == pytest.approx(float(expected), rel=1e-5)
    # Groups are rows of their own.
    twice = model.costs(x.repeat(2, 1), {}, c.repeat(2)).terms["contrastive"]
    assert torch.allclose(twice, model.costs(x, {}, c).terms["contrastive"].repeat(2))


def test_the_scale_is_limited() -> None:
    model = ContrastiveEncoder(Fixed(), Fixed(), df.Continuous((3,)))
    with torch.no_grad():
        model.log_scale.fill_(20.0)
    s = model.similarities(torch.eye(3), torch.arange(3))
    assert s.diagonal().min().item() == pytest.approx(100.0)


def test_it_finds_the_information_of_labels() -> None:
    """ln B − loss reaches I(x; c) = ln 3 from below, although labels are repeated in the batch."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    c = torch.randint(3, (64,), generator=generator)
    x = 4.0 * nn.functional.one_hot(c, 3) + torch.randn(64, 3, generator=generator)
    model = ContrastiveEncoder(
        nn.Linear(3, 4), ConditionTower(ConditionForm("labels", classes=3), 4), df.Continuous((3,)), 64
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(80):
        optimizer.zero_grad()
        model.loss(x, condition=c).backward()
        optimizer.step()
    found = math.log(64) - model.loss(x, condition=c).item()
    share = torch.bincount(c) / 64
    entropy = -float((share * share.log()).sum())
    assert 0.9 * entropy < found < entropy + 0.01


def test_towers_of_numbers_and_tokens() -> None:
    numbers = ConditionForm.of(torch.tensor([[1.0, 100.0], [3.0, 300.0]]))
    assert ConditionTower(numbers, 5, hidden=8)(torch.tensor([[2.0, 200.0]])).shape == (1, 5)
    tokens = ConditionTower(ConditionForm("tokens", (3, 2), masked=True), 5, hidden=8)
    c = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    padded = torch.where(mask[:, :, None], c, 7.0)
    assert torch.equal(tokens({"tokens": c, "mask": mask}), tokens({"tokens": padded, "mask": mask}))
    with pytest.raises(df.DiffusionalError, match=r"\(2, 3, 2\)"):
        tokens({"tokens": c[:, :, :1], "mask": mask})
    with pytest.raises(df.DiffusionalError, match="image"):
        ConditionTower(ConditionForm("image", (1, 4, 4)), 5)


def test_it_is_no_model_of_x() -> None:
    model = ContrastiveEncoder(Fixed(), Fixed(), df.Continuous((3,)))
    for call in (
        lambda: df.evaluate(model, torch.eye(3), condition=torch.arange(3)),
        lambda: model.sample(2),
        lambda: model.elbo(torch.eye(3)),
        lambda: model.terms(torch.eye(3), torch.zeros(3, 0)),
    ):
        with pytest.raises(df.DiffusionalError, match=r"no p\(x\)"):
            call()
    with pytest.raises(df.DiffusionalError, match="condition"):
        model.loss(torch.eye(3))
    with pytest.raises(df.DiffusionalError, match=r"group.*1"):
        ContrastiveEncoder(Fixed(), Fixed(), df.Continuous((3,)), group=1)
