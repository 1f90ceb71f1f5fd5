"""Cost maps of systems of stages: they add up to the costs of the stages, and stand at the right pixels."""

import math

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from battery import randn
from diffusional import likelihood, schedule
from diffusional.evaluation.stage_maps import StageMaps, stage_maps
from diffusional.models.composite import Downscale
from diffusional.models.direct import DirectModel
from diffusional.space import Space


class Given(nn.Module):
    """A convolution of z whose output is shifted by the condition, brought to the size of z; one that knows its place, so that pixels differ."""

    def __init__(self, side: int, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(side)
        self.layer = nn.Conv2d(1, 1, 3, 1, 1)
        self.place = nn.Parameter(torch.randn(1, side, side))
        self.channels = channels

    def forward(self, z: Tensor, log_snr: Tensor, low: Tensor | None = None) -> Tensor:
        found = torch.tanh(self.layer(z) + self.place)
        if low is None:
            return found
        return found + 0.5 * nn.functional.interpolate(low[:, :1], z.shape[-2:])


def diffusion(space: Space, given: str = "", steps: int | None = 6) -> df.DiffusionModel:
    side = space.shape[-1]
    process = df.GaussianDiffusion(schedule.log_snr_linear(-3.0, 4.0, steps))
    network = Given(side)

    def predicted(z: Tensor, log_snr: Tensor, **named: Tensor) -> Tensor:
        return network(z, log_snr, named.get(given) if given else None)

    decoder = (
        likelihood.LevelPosterior(space)
        if space.levels
        else likelihood.GaussianLikelihood(space, variance=0.3, assisted=False)
    )
    return df.DiffusionModel(process, df.Denoiser(predicted, "v"), decoder).requires_grad_(False).eval()


def images(side: int) -> df.Discrete:
    return df.Discrete((1, side, side), levels=5)


class Encoder(nn.Module):
    """f(x), or the mean and ln σ of q(y|x): 2 × 2 numbers of an image of 4 × 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = nn.Conv2d(1, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Means(nn.Module):
    """The mean of x (B, 1, 4, 4) for a latent (B, 1, 2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.layer = nn.ConvTranspose2d(1, 1, 2, 2)

    def forward(self, y: Tensor) -> Tensor:
        return self.layer(y)


LATENT, REALS = df.Continuous((1, 2, 2)), df.Continuous((1, 4, 4), shift=(0.5,), scale=(2.0,))


def direct() -> DirectModel:
    return DirectModel(Means(), likelihood.GaussianLikelihood(REALS, variance=0.5)).requires_grad_(False)


def cascade(steps: int | None = 6, **options: object) -> df.Cascade:
    stages = {"base": diffusion(images(2), steps=steps), "middle": diffusion(images(4), "low", steps)}
    return df.Cascade({**stages, "top": diffusion(images(8), "low", steps)}, **options).eval()  # type: ignore[arg-type]


SYSTEMS = {
    "cascade": lambda: cascade(),
    "continuous time": lambda: cascade(None),
    "renoised": lambda: cascade(renoise=-1.0),
    "handed over": lambda: cascade(handover=2),
    "frozen encoder": lambda: df.FrozenEncoder(Encoder(1), diffusion(LATENT), direct()).eval(),
    "frozen encoder, diffusion": lambda: df.FrozenEncoder(
        Encoder(1), diffusion(LATENT), diffusion(images(4), "latent")
    ).eval(),
    "frozen posterior": lambda: df.FrozenPosterior(Encoder(2), diffusion(LATENT), direct()).eval(),
    "frozen posterior, diffusion": lambda: df.FrozenPosterior(
        Encoder(2), diffusion(LATENT), diffusion(images(4), "latent")
    ).eval(),
}


def items(model: df.Composite, n: int = 2) -> Tensor:
    space = model.space
    if isinstance(space, df.Discrete):
        return space.encode(torch.randint(0, 5, (n, *space.shape), generator=torch.Generator().manual_seed(1)))
    return randn(n, *space.shape, seed=1).float()


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_maps_of_a_stage_add_up_to_its_costs(name: str) -> None:
    """Those of the joint ledger, by draws of the whole path, to within the errors of both."""
    model = SYSTEMS[name]()
    x = items(model)
    maps = stage_maps(model, x, visits=512, seed=2)
    wanted = ["decoder"] if "frozen" in name else ["base", "middle", "top"]
    assert list(maps.stages) == wanted
    assert [*maps.missing] == [one for one in model.stages if one not in wanted]
    many = x.repeat_interleave(3000, 0)
    totals = model.elbo(many, torch.Generator().manual_seed(3)).totals()
    for stage, found in maps.stages.items():
        draws = sum((cost for term, cost in totals.items() if term.startswith(f"{stage}.")), torch.zeros(len(many)))
        draws = draws.double().unflatten(0, (len(x), -1))
        # Positions share their draws, so that the error of a sum is at most the sum of the errors.
        error = maps.error[stage].flatten(1).sum(1) + draws.std(1) / math.sqrt(draws.shape[1])
        assert bool((error < 1.5 + 0.1 * draws.mean(1).abs()).all())
        assert bool(((found.flatten(1).sum(1) - draws.mean(1)).abs() < 3 * error + 1e-4).all()), stage


@pytest.mark.parametrize("successive", [False, True])
def test_a_pixel_has_the_cost_of_its_block(successive: bool) -> None:
    """The base has 2 × 2 positions, each for 4 × 4 pixels, which share the cost that the base's own map has there. A run's cascade scales down
    in steps.
    """
    half = Downscale(images(8), 2)
    downs = [nn.Sequential(half, Downscale(half.low, 2)), nn.Sequential(half)]
    model = cascade(downscale=downs) if successive else cascade()
    x = items(model)
    maps = stage_maps(model, x, visits=16, seed=5)
    assert maps.blocks == {"base": 4, "middle": 2, "top": 1}
    base = dict(model.models())["base"]
    own = df.cost_map(base, model.variable("base", x), visits=16, seed=5)
    for row in range(8):
        for column in range(8):
            expected = own.total[:, :, row // 4, column // 4] / 16
            torch.testing.assert_close(maps.stages["base"][:, :, row, column], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(maps.total, maps.stages["base"] + maps.stages["middle"] + maps.stages["top"])


def test_a_decoder_without_latents_has_its_cost_at_every_pixel() -> None:
    """−ln N(x_d; mean_d, ½) on average over y ~ q(y|x), by many draws of ours."""
    model = SYSTEMS["frozen posterior"]()
    assert isinstance(model, df.FrozenPosterior)
    x = items(model)
    maps = stage_maps(model, x, visits=2000)
    q = model.posterior(x)
    # ỹ is linear in the noise, and so is the mean: its variance is known.
    weight = model.last.decoder.layer.weight[0, 0]  # type: ignore[union-attr]
    mean = model.last.decoder(q.mean)  # type: ignore[operator]
    spread = torch.exp(q.log_variance).repeat_interleave(2, -1).repeat_interleave(2, -2) * weight.square().repeat(2, 2)
    squared = (x - mean).square() + spread
    expected = (0.5 * squared / 0.5 + 0.5 * math.log(2 * math.pi * 0.5)).double() + math.log(2.0)
    error = maps.error["decoder"]
    assert bool((error < 2.0).all())
    assert bool(((maps.stages["decoder"] - expected).abs() < 5 * error).all())
    assert maps.missing == {
        "prior": "the positions of its variable, of shape (1, 2, 2), are not blocks of positions of x"
    }


def test_maps_do_not_depend_on_other_items() -> None:
    for name in ("renoised", "frozen encoder"):
        model = SYSTEMS[name]()
        x = items(model, 4)
        whole = stage_maps(model, x, visits=8)
        stage = list(model.stages)[-1]
        if name == "frozen encoder":
            torch.testing.assert_close(stage_maps(model, x[2:3], visits=8).stages[stage], whole.stages[stage][2:3])
        repeated = stage_maps(model, x, visits=8)
        torch.testing.assert_close(repeated.total, whole.total, rtol=0, atol=0)


def test_a_function_of_x_that_is_not_of_blocks_has_no_map() -> None:
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., :2, :2]

    model = df.Cascade({"base": diffusion(images(2)), "top": diffusion(images(4), "low")}, [Corner()])
    maps = stage_maps(model, items(model), visits=4)
    assert list(maps.stages) == ["top"]
    assert "base" in maps.missing


def test_a_system_without_any_map_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> Tensor:
        raise df.DiffusionalError("it has no costs by position")

    monkeypatch.setattr(DirectModel, "reconstruction_map", without)
    model = SYSTEMS["frozen encoder"]()
    with pytest.raises(df.DiffusionalError, match="decoder: it has no costs by position"):
        stage_maps(model, items(model))


def test_wrong_visits_and_items_are_refused() -> None:
    model = cascade()
    with pytest.raises(df.DiffusionalError, match="visits"):
        stage_maps(model, items(model), visits=1)
    with pytest.raises(df.DiffusionalError, match="shape"):
        stage_maps(model, torch.zeros(1, 1, 4, 4))


def test_the_total_is_the_sum() -> None:
    one = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    assert StageMaps({"a": one, "b": 2 * one}, {}, {}, {}).total.tolist() == (3 * one).tolist()
