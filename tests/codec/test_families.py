"""Every family of models is coded by its moves: what is decoded is what was coded, and the file is as long as the bound of the same path."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import generator
from diffusional import likelihood, schedule
from diffusional.codec import compress, decompress, restore
from diffusional.codec.laws import law_of
from diffusional.codec.stack import Stack
from diffusional.conditions import Condition
from diffusional.models.composite import Cascade, FrozenEncoder, FrozenPosterior
from diffusional.models.direct import DirectModel
from diffusional.models.prior import Prior
from diffusional.networks import Ladder
from diffusional.redrawn import UniformNoise
from diffusional.space import Categorical, Continuous, Discrete

LEVELS = Discrete((1, 2, 2), levels=4)
LOW = Discrete((1, 1, 1), levels=4)
TOKENS = Categorical(5, 3)


class Denoise(nn.Module):
    """x̂ from z and, if there is one, the mean of a condition."""

    def forward(self, z: Tensor, log_snr: Tensor, condition: Condition | None = None) -> Tensor:
        given = 0.0
        if condition is not None:
            value = condition if isinstance(condition, Tensor) else condition["low" if "low" in condition else "latent"]
            given = 0.1 * value.float().flatten(1).mean(1).reshape(-1, *(1,) * (z.ndim - 1)) if value.ndim > 1 else 0.1
        return torch.tanh(0.8 * z + given)


class Tokens(nn.Module):
    def __init__(self, values: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(values, 8)
        self.mix = nn.Linear(5 * 8, 5 * 3)

    def forward(self, tokens: Tensor, *given: Tensor) -> Tensor:
        return self.mix(self.embed(tokens).flatten(1)).view(len(tokens), 5, 3)


def diffusion(space: Discrete | Continuous, steps: int | None = 5) -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-3.0, 3.0, steps=steps))
    decoder = (
        likelihood.GaussianLikelihood(space, assisted=False)
        if isinstance(space, Continuous)
        else likelihood.LevelPosterior(space)
    )
    return df.DiffusionModel(forward, df.Denoiser(Denoise(), "data"), decoder)


def vae(prior: df.DiffusionModel | None = None, classes: int = 0) -> df.VAE:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)))
    return df.VAE(encoder, decoder, likelihood.NetworkLevels(LEVELS), latents=2, prior=prior)


def direct(inputs: int) -> DirectModel:
    decoder = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), nn.Unflatten(1, (2, 2, 2)))
    return DirectModel(decoder, likelihood.NetworkLevels(LEVELS))


def encoder(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, outputs))


def bits() -> df.BinomialDiffusionModel:
    space = df.space.binary((1, 2, 2))
    return df.BinomialDiffusionModel(df.BinomialDiffusion.constant(6), lambda z, log_snr: 0.3 * z, space)


FAMILIES: dict[str, Callable[[], df.LatentVariableModel]] = {
    "bits": bits,
    "VAE": vae,
    "VAE with a Bernoulli likelihood": lambda: df.VAE(
        encoder(4),
        nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Unflatten(1, (1, 2, 2))),
        likelihood.Bernoulli(df.space.binary((1, 2, 2))),
        latents=2,
    ),
    "VAE with a diffusion prior": lambda: vae(diffusion(Continuous((2,)))),
    "hierarchical VAE": lambda: df.HierarchicalVAE(
        Ladder((1, 2, 2), (2, 2, 2), latents=(3, 2), hidden=8), likelihood.NetworkLevels(LEVELS)
    ),
    "masks, one at a time": lambda: df.MaskedDiffusion(Tokens(4), TOKENS),
    "masks, T = 3": lambda: df.MaskedDiffusion(Tokens(4), TOKENS).regrid(3),
    "uniform": lambda: df.UniformDiffusion(Tokens(3), TOKENS, UniformNoise(3, steps=4)),
    "cascade": lambda: Cascade({"base": diffusion(LOW), "upsampler": diffusion(LEVELS)}),
    "cascade, renoised": lambda: Cascade({"base": diffusion(LOW), "upsampler": diffusion(LEVELS)}, renoise=-1.0),
    "cascade, handing z_2 over": lambda: Cascade({"base": diffusion(LOW), "upsampler": diffusion(LEVELS)}, handover=2),
    "frozen encoder": lambda: FrozenEncoder(encoder(3), diffusion(Continuous((3,))), direct(3)),
    "frozen posterior": lambda: FrozenPosterior(encoder(4), diffusion(Continuous((2,))), direct(2)),
}


def made(name: str) -> tuple[df.LatentVariableModel, Tensor]:
    torch.manual_seed(0)
    model = FAMILIES[name]()
    rng = np.random.default_rng(1)
    space = model.space
    assert isinstance(space, Discrete)
    return model, space.encode(torch.from_numpy(rng.integers(0, space.levels, (9, *space.shape))))


@pytest.mark.parametrize("name", FAMILIES)
def test_items_come_back_and_take_what_their_path_costs(name: str) -> None:
    model, x = made(name)
    done = compress(model, x, rows=4, check=False)
    found = restore(model, done.data)
    assert found.x.equal(x)
    # Both ends know the path.
    np.testing.assert_allclose(found.path_nats, done.path_nats, atol=1e-9)
    # A word of the stack, and another one for its top.
    assert abs(done.net_bits - done.path_nats.sum() / np.log(2)) < 80
    assert done.network_evaluations == 9 * model.evaluations


@pytest.mark.parametrize("name", FAMILIES)
def test_the_path_is_a_draw_of_the_bound(name: str) -> None:
    model, x = made(name)
    x = x[:1].repeat(96, *(1,) * (x.ndim - 1))
    costs = compress(model, x, check=False).path_nats
    with torch.no_grad():
        bounds = torch.stack([model.elbo(x, generator(seed)).nelbo for seed in range(20)]).double()
    error = np.hypot(costs.std() / 96**0.5, float(bounds.std()) / 1920**0.5)
    assert abs(costs.mean() - float(bounds.mean())) < 4 * error + 0.02


def test_damaged_files_of_every_family_are_refused() -> None:
    rng = np.random.default_rng(0)
    for name in ("VAE", "masks, one at a time", "cascade", "frozen posterior"):
        model, x = made(name)
        data = compress(model, x[:2], rows=2, check=False).data
        for place in rng.integers(len(data), size=25):
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(rng.integers(8))
            for bad in (bytes(flipped), data[:place], data + data[place:]):
                with pytest.raises(df.DiffusionalError, match=r"damaged|other data"):
                    decompress(model, bad)


def test_latents_that_take_more_bits_than_there_are_at_first_are_coded() -> None:
    decoder = nn.Sequential(nn.Linear(400, 8), nn.Unflatten(1, (2, 2, 2)))
    wide = df.VAE(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 800)), decoder, likelihood.NetworkLevels(LEVELS), latents=400
    )
    x = made("VAE")[1]
    done = compress(wide, x, check=False)
    # 400 latents on grids of at least 16 points for a standard deviation, 6 bits each; there are 64 + 4 words at first.
    assert done.borrowed_bits > 32 * (64 + 4)
    assert decompress(wide, done.data).equal(x)


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Embedding(3, 1)

    def forward(self, z: Tensor, log_snr: Tensor, condition: Tensor) -> Tensor:
        return torch.tanh(z + self.shift(condition)[:, :, None, None])


def conditional() -> tuple[df.DiffusionModel, Tensor, Tensor]:
    torch.manual_seed(0)
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=4))
    model = df.DiffusionModel(forward, df.Denoiser(Labelled(), "data"), likelihood.LevelPosterior(LEVELS))
    rng = np.random.default_rng(0)
    x = LEVELS.encode(torch.from_numpy(rng.integers(0, 4, (11, 1, 2, 2))))
    return model, x, torch.from_numpy(rng.integers(0, 3, 11) // 2)


def test_labels_are_a_part_of_the_file() -> None:
    model, x, labels = conditional()
    done = compress(model, x, condition=labels)
    found = restore(model, done.data)
    assert found.x.equal(x)
    assert isinstance(found.condition, Tensor)
    assert found.condition.equal(labels)
    given = compress(model, x, condition=labels, labels="given")
    counts = torch.bincount(labels).double()
    entropy = -float((counts * (counts / 11).log()).sum())
    assert done.path_nats.sum() - entropy == pytest.approx(given.path_nats.sum(), rel=0.25)
    assert decompress(model, given.data, condition=labels).equal(x)


@pytest.mark.parametrize("wrong", [None, "other"])
def test_a_missing_or_wrong_condition_is_refused(wrong: str | None) -> None:
    model, x, labels = conditional()
    data = compress(model, x, condition=labels, labels="given").data
    with pytest.raises(df.DiffusionalError, match="condition"):
        decompress(model, data, condition=None if wrong is None else 1 - labels)
    coded = compress(model, x, condition=labels).data
    with pytest.raises(df.DiffusionalError, match="no condition"):
        decompress(model, coded, condition=labels)


def test_families_that_cannot_be_coded_are_named() -> None:
    class Odd(Prior):
        shape = (2,)

        def log_prob(self, z: Tensor, condition: Condition | None = None) -> Tensor:
            return z.sum(1)

        def sample(self, n: int, like: Tensor, generator: object = None, condition: object = None) -> Tensor:
            return like.new_zeros(n, 2)

    odd = df.VAE(encoder(4), direct(2).decoder, likelihood.NetworkLevels(LEVELS), latents=2, prior=Odd())
    x = LEVELS.encode(torch.zeros(2, 1, 2, 2, dtype=torch.long))
    with pytest.raises(df.DiffusionalError, match="Odd"):
        compress(odd, x)
    side = df.GaussianDiffusion(schedule.log_snr_linear(-5.0, 5.0, steps=5))
    ddim = df.DiffusionModel(
        df.NonMarkovDiffusion(side.schedule, eta=0.5), df.Denoiser(Denoise(), "data"), likelihood.LevelPosterior(LEVELS)
    )
    with pytest.raises(df.DiffusionalError, match="Markov"):
        compress(ddim, x)


def test_values_of_probability_zero_are_never_popped() -> None:
    from diffusional.categorical import Categorical as States

    logits = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf]).expand(500, 4)
    law = law_of(States(logits, torch.arange(4.0).double()))
    stack = Stack(np.arange(1, 99, dtype=np.uint32))
    assert set(law.pop(stack).tolist()) == {0.0, 2.0}
    with pytest.raises(df.DiffusionalError, match="probability 0"):
        law.push(stack, torch.ones(500))
