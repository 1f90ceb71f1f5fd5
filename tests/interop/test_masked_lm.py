"""Masked language models of transformers, tiny and random: conventions, and the formulas of public code on the same masks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import generator
from diffusional.interop.masked_lm import MaskedLanguageModel, load_masked_lm, masked_language_model
from diffusional.sequences import SequenceWorld

V, L, MASK = 30, 8, 4


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=V, **sizes)).eval().requires_grad_(False)


def tokens(n: int) -> Tensor:
    x = torch.randint(5, V, (n, L), generator=generator(0))
    return x.float()


def test_a_model_of_transformers_is_a_masked_diffusion(bert: nn.Module, tmp_path: Path) -> None:
    bert.save_pretrained(tmp_path)  # type: ignore[operator]
    model, x = load_masked_lm(tmp_path, L, mask_token=MASK), tokens(3)
    z = x.clone()
    z[:, 2:5] = V  # the mask of the library
    given = z.long()
    given[:, 2:5] = MASK
    logits = bert(input_ids=given).logits
    logits[..., MASK] = -torch.inf
    torch.testing.assert_close(model.log_probs(z), logits.double().log_softmax(-1), rtol=1e-5, atol=1e-5)
    assert model.space.to_dict() == {"kind": "categorical", "length": L, "categories": V, "excluded": MASK}
    drawn = model.sample(2, generator(1))
    assert not bool((drawn == MASK).any())
    assert df.evaluate(model, x, visits=4, audit=False).nelbo.value > 0


def test_a_mask_in_the_data_is_refused(bert: nn.Module) -> None:
    model, x = masked_language_model(bert, L, mask_token=MASK), tokens(2)
    x[1, 3] = MASK
    for call in (model.elbo, model.loss, lambda x: model.space.encode(x.long())):
        with pytest.raises(df.DiffusionalError, match="token 4"):
            call(x)


def test_the_formula_of_llada_on_the_same_masks(bert: nn.Module) -> None:
    """get_log_likelihood: Σ_masked CE / p_mask with p_mask = n/L, for n uniform over 1 … L."""
    model, x = masked_language_model(bert, L, mask_token=MASK), tokens(4)
    noise = torch.randn(4, L, generator=generator(2))
    for n in range(1, L + 1):
        masks = noise.argsort(1).argsort(1) < n
        ids = torch.where(masks, MASK, x.long())
        logits = bert(input_ids=ids).logits.double()
        logits[..., MASK] = -torch.inf
        theirs = nn.functional.cross_entropy(logits[masks], x.long()[masks], reduction="none") / (n / L)
        per_item = torch.zeros(4, dtype=torch.float64).index_add_(0, masks.nonzero()[:, 0], theirs)
        t = torch.full((4,), n - 1)
        ours = model.reconstruction(x, noise) if n == 1 else model.kl_at(x, t, noise)
        torch.testing.assert_close(L * ours, per_item, rtol=1e-5, atol=1e-5)


def test_the_loss_of_mdlm_on_the_same_masks(bert: nn.Module) -> None:
    """−Σ_masked ln p · dσ/expm1(σ) with the log-linear schedule, 1 − e^{−σ} = t: the weight 1/t."""
    model, x = masked_language_model(bert, L, mask_token=MASK), tokens(4)
    continuous = df.MaskedDiffusion(model.network, model.space, df.Absorbing(V))
    t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    noise = torch.randn(4, L, generator=generator(3))
    masks = torch.special.ndtr(noise.double()) >= 1 - t[:, None]
    logits = bert(input_ids=torch.where(masks, MASK, x.long())).logits.double()
    logits[..., MASK] = -torch.inf
    log_p = logits.log_softmax(-1).gather(-1, x.long()[..., None])[..., 0]
    sigma, dsigma = -torch.log1p(-t), 1 / (1 - t)
    theirs = -(torch.where(masks, log_p, 0.0).sum(1)) * dsigma / torch.expm1(sigma)
    torch.testing.assert_close(continuous.kl_at(x, t, noise), theirs, rtol=1e-5, atol=1e-6)


def test_leaving_out_small_t_is_biased_by_what_it_leaves_out() -> None:
    """The mean over t in [ε, 1] instead of [0, 1], exactly: ∫_ε^1 1/t E Σ dt/(1 − ε)."""
    import numpy as np

    world = SequenceWorld.random(3, 3, seed=4)
    model = df.MaskedDiffusion(world.conditionals(), world.space)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    found = []
    for least in (0.0, 1e-3, 0.1):
        total = torch.zeros(27, dtype=torch.float64)
        t = torch.from_numpy(least + (1 - least) * 0.5 * (nodes + 1))
        exact = model.exact_ledger(world.states)
        each = torch.cat([exact.reconstruction[:, None], exact.kl * torch.arange(2, 4)], 1)  # E Σ at n masks
        for at, weight in zip(t, 0.5 * torch.from_numpy(weights), strict=True):
            chance = torch.stack([3 * at * (1 - at) ** 2, 3 * at**2 * (1 - at), at**3])
            total += weight * (each @ chance) / at
        found.append(float(world.table.flatten() @ total))
    assert found[0] == pytest.approx(world.entropy(), abs=1e-9)
    assert 0 < abs(found[1] - found[0]) < 1e-2
    assert abs(found[2] - found[0]) > 20 * abs(found[1] - found[0])


def test_conventions() -> None:
    class Timed(nn.Module):
        """Logits that show which input they belong to, and the time."""

        def forward(self, input_ids: Tensor, timesteps: Tensor) -> Tensor:
            return nn.functional.one_hot(input_ids, V + 1).float() + timesteps[:, None, None]

    x = tokens(2).long()
    plain = MaskedLanguageModel(Timed(), V, V)
    assert torch.equal(plain(x), nn.functional.one_hot(x, V).float())
    shifted = MaskedLanguageModel(Timed(), V, V, shift=True)(x)
    assert torch.equal(shifted[:, 1:], nn.functional.one_hot(x[:, :-1], V).float())
    assert torch.equal(shifted[:, 0], nn.functional.one_hot(x[:, 0], V).float())


def test_refusals(bert: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(df.DiffusionalError, match="mask_token"):
        masked_language_model(bert, L, mask_token=V + 1)
    with pytest.raises(df.DiffusionalError, match="categories"):
        masked_language_model(nn.Identity(), L, mask_token=3)
    bert.save_pretrained(tmp_path / "bert")  # type: ignore[operator]
    with pytest.raises(df.DiffusionalError, match="mask_token"):
        load_masked_lm(tmp_path / "bert", L)
    (tmp_path / "empty").mkdir()
    with pytest.raises(df.DiffusionalError, match="masked language model"):
        df.load_checkpoint(f"hf:{tmp_path / 'empty'}")
