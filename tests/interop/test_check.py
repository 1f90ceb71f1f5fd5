"""The fault finder on a network that is optimal for a known world, read right and in every wrong way."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import diffusional as df
from diffusional import (
    Continuous,
    Denoiser,
    DiffusionalError,
    DiffusionModel,
    Discrete,
    GaussianDiffusion,
    exact,
    likelihood,
    schedule,
)
from diffusional.interop.check import check_denoiser
from diffusional.interop.readings import Reading
from diffusional.models.parameterization import Prediction
from diffusional.shapes import align

T = 1000
SHAPE = (3, 2, 2)
EDM_INPUT = "z/α divided by √(σ²/α² + 0.25)"
PIXELS = Discrete(SHAPE, 256)


def pictures(seed: int = 0, n: int = 24) -> Tensor:
    """Items (n, 3, 2, 2) of 256 levels whose channels have different means: smooth pictures, red above green above blue."""
    generator = torch.Generator().manual_seed(seed)
    shared, own = torch.randn(n, 1, 1, 1, generator=generator), torch.randn(n, *SHAPE, generator=generator)
    means = torch.tensor([0.4, 0.0, -0.5])[:, None, None]
    return PIXELS.encode(((means + 0.25 * shared + 0.08 * own).clamp(-1, 1) * 127.5 + 127.5).round().long())


WORLD = exact.Gaussian(
    torch.tensor([0.4, 0.0, -0.5], dtype=torch.float64).repeat_interleave(4),
    0.25**2 * torch.ones(12, 12, dtype=torch.float64) + 0.08**2 * torch.eye(12, dtype=torch.float64),
)


class Trained(nn.Module):
    """The optimal network for WORLD, trained on m x + k, as a function of its scaled z and the time that its clock shows.

    `gamma_of` inverts the clock; `output` is what it returns.
    """

    def __init__(
        self, output: str, gamma_of: Callable[[Tensor], Tensor], m: float = 1.0, k: float = 0.0, scale: str = "z"
    ) -> None:
        super().__init__()
        self.output, self.gamma_of, self.m, self.k, self.scale = output, gamma_of, m, k, scale

    def forward(self, seen: Tensor, time: Tensor) -> Tensor:
        gamma = self.gamma_of(time).double()
        g = align(gamma, seen)
        alpha, sigma = torch.sigmoid(-g).sqrt(), torch.sigmoid(g).sqrt()
        ratio = torch.exp(0.5 * g)  # σ/α
        unscaled = {
            "z": seen.double(),
            "z/(α + σ)": seen.double() * (alpha + sigma),
            EDM_INPUT: seen.double() * alpha * (ratio**2 + 0.25).sqrt(),
        }
        z = unscaled[self.scale]
        # The same noise in units of x: (z − α k)/(α m) = x + σ/(α m) ε, as a variance-preserving latent at γ − 2 ln m.
        gamma_x = gamma - 2 * torch.log(torch.tensor(self.m, dtype=torch.float64))
        own = (z - alpha * self.k) / (alpha * self.m) * torch.sigmoid(-align(gamma_x, seen)).sqrt()
        x_hat = self.m * WORLD.optimum(own.flatten(1), gamma_x)[0].reshape(z.shape) + self.k
        noise = (z - alpha * x_hat) / sigma
        outputs = {
            "noise": noise,
            "data": x_hat,
            "v": alpha * noise - sigma * x_hat,
            "score": -noise / sigma,
            "velocity": noise - x_hat,
            "EDM's F, σ_data = 0.5": (x_hat - 0.25 / (ratio**2 + 0.25) * z / alpha)
            * (ratio**2 + 0.25).sqrt()
            / (0.5 * ratio),
        }
        return outputs[self.output].to(seen.dtype)


LINEAR, COSINE = schedule.linear(T), schedule.cosine(T)


def by_index(one: schedule.Schedule) -> Callable[[Tensor], Tensor]:
    return lambda time: one.grid()[time.round().long().clamp(0, T - 1)]


def index_of(one: schedule.Schedule) -> Callable[[Tensor], Tensor]:
    return lambda log_snr: (-log_snr.double()[:, None] - one.grid()).abs().argmin(1)


def model(
    network: nn.Module,
    predicts: str = "noise",
    of: schedule.Schedule = LINEAR,
    time: Callable[[Tensor], Tensor] | None = None,
    space: Discrete = PIXELS,
) -> DiffusionModel:
    """A model that declares all this of a network."""
    denoiser = Denoiser(network, predicts, time=time or index_of(of))  # type: ignore[arg-type]
    return DiffusionModel(GaussianDiffusion(of), denoiser, likelihood.DiscretizedGaussian(space))


NETWORK = Trained("noise", by_index(LINEAR))
HALF = Discrete(SHAPE, 256, low=0.0, high=1.0)
FAULTS = {
    "output": (model(NETWORK, "v"), pictures(), {"output": "noise"}),
    "schedule": (model(NETWORK, of=COSINE), pictures(), {"clock": "the linear schedule's index"}),
    "reversed": (
        model(NETWORK, time=lambda log_snr: T - 1 - index_of(LINEAR)(log_snr)),
        pictures(),
        {"clock": "as declared, reversed"},
    ),
    "scaled time": (
        model(NETWORK, time=lambda log_snr: index_of(LINEAR)(log_snr) / T),
        pictures(),
        {"clock": f"as declared, times {T}"},
    ),
    "range": (model(NETWORK, space=HALF), (pictures() + 1) / 2, {"data": "[−1, 1]"}),
    "channels": (model(NETWORK), pictures().flip(1), {"channels": "reversed"}),
    "two at once": (
        model(NETWORK, "v", of=COSINE),
        pictures(),
        {"output": "noise", "clock": "the linear schedule's index"},
    ),
}


def names_of(reading: Reading, names: dict[str, str]) -> dict[str, str]:
    return {name: getattr(reading, name) for name in names}


@pytest.mark.parametrize("fault", FAULTS)
def test_finds_the_declarations_that_are_wrong(fault: str) -> None:
    declared, x, expected = FAULTS[fault]
    found = check_denoiser(declared, x)
    assert set(found.declared.differences(found.best)) == set(expected)
    assert names_of(found.best, expected) == expected
    assert len(found.findings) == 1
    assert all(value in found.findings[0] for value in expected.values())
    assert found.margin > 4 * found.error > 0


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "two at once"])
def test_the_short_form_finds_one_mistake_and_names_the_remedy(fault: str) -> None:
    declared, x, expected = FAULTS[fault]
    found = check_denoiser(declared, x, items=24, levels=7, search="short")
    assert set(found.declared.differences(found.best)) == set(expected)
    assert names_of(found.best, expected) == expected
    assert len(found.findings) == len(found.remedies) == 1
    assert found.findings[0] in found.line()
    assert found.remedies[0] in found.line()
    assert found.network_evaluations < 1200


def test_the_short_form_finds_nothing_where_nothing_is_wrong() -> None:
    found = check_denoiser(model(NETWORK), pictures(), items=24, levels=7, search="short")
    assert (found.findings, found.remedies) == ((), ())
    assert found.line().startswith(f"nothing found in {found.network_evaluations:,}")


def test_the_network_is_called_once_for_every_row() -> None:
    """Rounds reuse the outputs of earlier ones, readings with the same input share a call, and no call is larger than the declared one."""
    calls: list[int] = []
    rows: dict[bytes, int] = {}

    class Counted(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            calls.append(len(z))
            for row in torch.cat([z.flatten(1), time[:, None]], 1).numpy():
                rows[row.tobytes()] = rows.get(row.tobytes(), 0) + 1
            return NETWORK(z, time)

    for search in ("short", True):
        calls.clear()
        rows.clear()
        found = check_denoiser(model(Counted(), of=COSINE), pictures(), items=12, levels=7, search=search)
        assert found.best.clock == "the linear schedule's index"
        assert found.network_evaluations == sum(calls)
        # Twice: the declared reading on a quarter of the items, to see whether the network is random, and where two clocks agree by chance.
        twice = sum(rows.values()) - len(rows)
        assert 3 * len(found.gamma) <= twice < 3 * len(found.gamma) + len(rows) / 20
        assert max(calls) <= 12 * len(found.gamma)
        assert len(calls) < len(rows) / 8


@pytest.mark.parametrize("output", ["noise", "data", "v", "score"])
def test_nothing_is_found_where_nothing_is_wrong(output: str) -> None:
    for of in (LINEAR, COSINE):
        found = check_denoiser(model(Trained(output, by_index(of)), output, of), pictures())
        assert found.findings == ()
        assert found.best == found.declared
        assert (found.margin, found.error) == (0.0, 0.0)


def test_foreign_inputs_and_outputs_are_recognised() -> None:
    flow = Trained("velocity", lambda t: 2 * torch.logit(t.double().clamp(1e-6, 1 - 1e-6)), scale="z/(α + σ)")
    found = check_denoiser(model(flow, time=lambda log_snr: torch.sigmoid(-0.5 * log_snr)), pictures())
    assert names_of(found.best, {"output": "", "input": ""}) == {"output": "velocity", "input": "z/(α + σ)"}

    scale = EDM_INPUT
    edm = Trained("EDM's F, σ_data = 0.5", lambda time: 8 * time.double(), scale=scale)
    found = check_denoiser(model(edm, "data", time=lambda log_snr: -log_snr / 8), pictures())
    assert names_of(found.best, {"output": "", "input": ""}) == {"output": "EDM's F, σ_data = 0.5", "input": scale}


def test_wrapped_networks_are_read_as_they_are_declared() -> None:
    edm = Trained("EDM's F, σ_data = 0.5", lambda time: 8 * time.double(), scale=EDM_INPUT)
    flow = Trained("velocity", lambda t: 2 * torch.logit(t.double().clamp(1e-6, 1 - 1e-6)), scale="z/(α + σ)")
    for denoiser, output in (
        (df.wrap.edm(edm, sigma_data=0.5), "EDM's F, σ_data = 0.5"),
        (df.wrap.flow(flow), "velocity"),
    ):
        found = check_denoiser(
            DiffusionModel(GaussianDiffusion(LINEAR), denoiser, likelihood.DiscretizedGaussian(PIXELS)), pictures()
        )
        assert found.findings == ()
        assert (found.declared.output, found.declared.input) == (output, EDM_INPUT if "EDM" in output else "z/(α + σ)")
    # The velocity points the other way.
    wrong = df.wrap.flow(flow, counts="data")
    found = check_denoiser(
        DiffusionModel(GaussianDiffusion(LINEAR), wrong, likelihood.DiscretizedGaussian(PIXELS)), pictures()
    )
    assert found.best.output == "velocity"
    assert set(found.declared.differences(found.best)) == {"output", "clock"}
    assert len(found.findings) == 1


def test_an_unknown_fault_is_reported_without_a_cure() -> None:
    class Wrong(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            return 0.5 * NETWORK(z, time)

    found = check_denoiser(model(Wrong()), pictures())
    assert len(found.findings) == 1
    assert "slopes" in found.findings[0]


def test_an_untrained_network_fits_no_reading() -> None:
    torch.manual_seed(0)
    mix = 0.2 * torch.randn(12, 12, dtype=torch.float64) / 12**0.5

    class Untrained(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            return (z.double().flatten(1) @ mix).reshape(z.shape).to(z.dtype)

    for predicts in ("noise", "v", "data"):
        (finding,) = check_denoiser(model(Untrained(), predicts), pictures()).findings
        assert "untrained" in finding


def flow_gamma(time: Tensor) -> Tensor:
    return 2 * torch.logit(time.double().clamp(1e-6, 1 - 1e-6))


VARIANCES = torch.tensor([0.9, 0.01], dtype=torch.float64).repeat_interleave(128)


class Brittle(nn.Module):
    """The optimal x̂ for independent values with these variances, as long as the input has the usual size.

    The input of what is inside is (α + σ)^power times the z/(α + σ) of its training, and x̂ is formed from its output and z outside.
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        gamma = flow_gamma(time)[:, None]
        alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        seen = z * (alpha + sigma) ** (self.power - 1)
        usual = (alpha.square() * VARIANCES.mean() + sigma.square()) / (alpha + sigma).square()
        unusual = ((seen.square().mean(1, keepdim=True) / usual).log().abs() - 0.2).clamp(min=0.0)
        wave = torch.sin(40 * seen.cumsum(1))
        known = alpha * VARIANCES / (alpha.square() * VARIANCES + sigma.square())
        return (known * z + 2.0 * sigma * unusual * wave).to(z.dtype)


def test_an_input_that_is_scaled_wrongly_inside_the_network_is_found() -> None:
    """No reading undoes it, since the output has been combined with z."""
    x = VARIANCES.sqrt() * torch.randn(16, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def found(power: float) -> tuple[str, ...]:
        denoiser = Denoiser(Brittle(power), "data", time=lambda log_snr: torch.sigmoid(-0.5 * log_snr))
        decoder = likelihood.GaussianLikelihood(Continuous((256,)))
        return check_denoiser(DiffusionModel(GaussianDiffusion(LINEAR), denoiser, decoder), x).findings

    (finding,) = found(1.0)
    assert "multiplied by 1/(α + σ)" in finding
    assert found(0.0) == ()


def test_a_reading_does_not_win_because_it_is_worse_than_z_in_fewer_places() -> None:
    """A network of x whose error does not fall with the noise is a bad estimate of the noise, and readings mixed with z are less bad."""

    class Rough(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            wave = torch.sin(40 * z.flatten(1) @ torch.ones(12, 12, dtype=z.dtype).triu()).reshape(z.shape)
            return Trained("data", by_index(COSINE))(z, time) + 0.6 * wave

    found = check_denoiser(model(Rough(), "data", COSINE), pictures())
    assert float(found.squared_error[0]) > 1  # worse than no prediction
    (finding,) = found.findings
    assert "badly trained" in finding
    assert "another reading" not in finding


def test_a_wrong_slope_counts_where_it_costs() -> None:
    class Shrunk(nn.Module):
        """EDM's F times a factor at noise levels in a range."""

        def __init__(self, factor: float, low: float, high: float) -> None:
            super().__init__()
            self.factor, self.low, self.high = factor, low, high

        def forward(self, seen: Tensor, time: Tensor) -> Tensor:
            gamma = align(flow_gamma(time), seen)
            inside = (gamma > self.low) & (gamma < self.high)
            net = Trained("EDM's F, σ_data = 0.5", flow_gamma, scale=EDM_INPUT)
            return torch.where(inside, self.factor, 1.0).to(seen.dtype) * net(seen, time)

    def found(*shrunk: float) -> tuple[str, ...]:
        denoiser = df.wrap.edm(Shrunk(*shrunk), time="t")
        diffusion = DiffusionModel(GaussianDiffusion(LINEAR), denoiser, likelihood.DiscretizedGaussian(PIXELS))
        return check_denoiser(diffusion, pictures(n=64), items=64).findings

    assert found(0.75, 0.0, 6.0) == ()
    assert "slopes of 1.66" in found(0.6, -3.0, 1.0)[0]


def test_a_network_that_hardly_depends_on_its_time_is_noted() -> None:
    class Timeless(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            return Trained("data", by_index(COSINE))(z, torch.full_like(time, 400))

    dull, plain = (
        check_denoiser(model(net, "data", COSINE), pictures())
        for net in (Timeless(), Trained("data", by_index(COSINE)))
    )
    assert dull.findings == plain.findings == ()
    assert "time input" in dull.notes[0]
    assert len(dull.notes) == 2
    assert len(plain.notes) == 1
    assert "off by one step" in plain.notes[0]
    assert all(note in str(dull) for note in dull.notes)
    assert dull.to_json()["notes"] == list(dull.notes)
    # Where something was found, nothing is left to say.
    assert check_denoiser(*FAULTS["output"][:2]).notes == ()


def test_readings_that_the_network_refuses_do_not_spoil_those_of_the_same_call() -> None:
    class Picky(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            if bool((z.abs() > 5).any()) or time.dtype.is_floating_point:
                raise ValueError("out of range")
            return NETWORK(z, time)

    found = check_denoiser(model(Picky(), "v", of=COSINE), pictures())
    expected = FAULTS["two at once"][2]
    assert names_of(found.best, expected) == expected
    assert set(found.declared.differences(found.best)) == set(expected)


def test_a_network_that_is_random_is_reported() -> None:
    class Dropout(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            return nn.functional.dropout(NETWORK(z, time), 0.02, training=True)

    assert "dropout" in check_denoiser(model(Dropout()), pictures()).findings[0]


def test_slopes_and_errors_of_the_declared_reading() -> None:
    # The optimal network is calibrated: E⟨target, output⟩ = E⟨output, output⟩, so that doubling its output halves the slope.
    class Doubled(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            return 2 * NETWORK(z, time)

    plain, doubled = (check_denoiser(model(net), pictures(), search=False) for net in (NETWORK, Doubled()))
    torch.testing.assert_close(doubled.slope, plain.slope / 2)
    assert bool(((plain.slope - 1).abs() < 0.2).all())
    # On a quarter of the items once more, to see whether the network is random, and once with the times in reversed order.
    assert plain.network_evaluations == (1 + 1 / 4 + 1 / 4) * len(plain.gamma) * 16
    # ‖ε − ε̂‖²/D from the model's own prediction, at the same noise.
    x = pictures()[:16]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = plain.gamma[3].expand(16)
    z = (
        torch.sigmoid(-g)[:, None, None, None].sqrt() * x.double()
        + torch.sigmoid(g)[:, None, None, None].sqrt() * noise
    )
    said = model(NETWORK).denoiser(z, g)
    assert isinstance(said, Prediction)
    assert float(plain.squared_error[3]) == pytest.approx(
        float(said.squared_error(x.double(), noise).mean()) / 12, rel=1e-5
    )


def test_the_record_is_json_and_the_text_names_the_finding() -> None:
    found = check_denoiser(*FAULTS["output"][:2])
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (record["declared"]["output"], record["best"]["output"], record["format"]) == ("v", "noise", 1)
    assert record["ranked"][0]["score"] <= record["ranked"][1]["score"]
    assert str(found).splitlines()[0] == found.findings[0]
    assert "nothing found" in str(check_denoiser(model(NETWORK), pictures(), search=False))


def test_bad_input() -> None:
    right = model(NETWORK)
    with pytest.raises(DiffusionalError, match="at least 2 items, got 1"):
        check_denoiser(right, pictures()[:1])
    with pytest.raises(DiffusionalError, match="at least 2 noise levels, got 1"):
        check_denoiser(right, pictures(), levels=1)
    from diffusional import BinomialDiffusion, BinomialDiffusionModel
    from diffusional.space import binary

    bits = BinomialDiffusionModel(BinomialDiffusion.constant(5), lambda z, t: z, binary((4,)))
    with pytest.raises(DiffusionalError, match="BinomialDiffusionModel"):
        check_denoiser(bits, torch.ones(4, 4))
    two = Denoiser(lambda z, s: torch.cat([z, z], 1), "noise", time=index_of(LINEAR))
    with pytest.raises(DiffusionalError, match="learns_variance"):
        check_denoiser(
            DiffusionModel(GaussianDiffusion(LINEAR), two, likelihood.DiscretizedGaussian(PIXELS)), pictures()
        )


def test_real_values_keep_their_units() -> None:
    world = exact.Gaussian(torch.zeros(2), torch.tensor([[0.5, 0.3], [0.3, 0.4]]))
    x = world.sample(32, torch.Generator().manual_seed(0))
    decoder = likelihood.GaussianLikelihood(Continuous((2,)))
    found = check_denoiser(DiffusionModel(GaussianDiffusion(LINEAR), world.denoiser("v"), decoder), x)
    assert found.findings == ()
    assert found.declared.data == "its own units"


def test_nan_is_not_taken_for_noise() -> None:
    # A wrong time may be one of which the network has no logarithm: NaN twice, which is not another output.
    space = df.Continuous((2,))
    forward, decoder = df.GaussianDiffusion(df.schedule.linear()), df.likelihood.GaussianLikelihood(space)
    denoiser = df.Denoiser(lambda z, time: z + time.log()[:, None].to(z), "noise", time=lambda log_snr: log_snr)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    found = df.check_denoiser(df.DiffusionModel(forward, denoiser, decoder), x, search=False)
    assert not any("dropout" in finding for finding in found.findings)
