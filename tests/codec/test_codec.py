"""The codec: what is decoded is what was coded, files are as long as the bound, and damaged or foreign files are refused."""

import hashlib
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import diffusional as df
from battery import generator, randn
from diffusional import likelihood, schedule
from diffusional.codec import Choice, choose_steps, code_length, compress, decompress, rate_distortion
from diffusional.codec.stack import _STREAM, Stack, StackEmpty
from diffusional.evaluation import ODE
from diffusional.evaluation.witnesses import witnesses
from diffusional.space import Discrete

SPACE = Discrete((1, 3, 3), levels=5)


class Small(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(9) + 0.2 * randn(9, 9, dtype=torch.float32, seed=seed))

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return torch.tanh(z.flatten(1) @ self.weight).view(z.shape)


def model(steps: int | None = 12, decoder: type = likelihood.LevelPosterior, seed: int = 0) -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 7.0, steps=steps))
    return df.DiffusionModel(forward, df.Denoiser(Small(seed), "data"), decoder(SPACE))


def best() -> df.DiffusionModel:
    """The optimal denoiser of independent, equally likely levels, T = 20."""

    def mean(z: Tensor, log_snr: Tensor) -> Tensor:
        gamma = -log_snr.view(-1, 1, 1, 1, 1)
        values = SPACE.values.to(z)
        evidence = -0.5 * (z[..., None] - torch.sigmoid(-gamma).sqrt() * values).square() / torch.sigmoid(gamma)
        return evidence.softmax(-1) @ values

    forward = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 7.0, steps=20))
    return df.DiffusionModel(forward, df.Denoiser(mean, "data"), likelihood.LevelPosterior(SPACE))


def items(n: int, seed: int = 0) -> Tensor:
    return SPACE.encode(torch.from_numpy(np.random.default_rng(seed).integers(0, 5, (n, 1, 3, 3))))


@pytest.mark.parametrize("decoder", [likelihood.LevelPosterior, likelihood.DiscretizedGaussian])
@pytest.mark.parametrize(("n", "rows"), [(1, 1), (5, 4), (23, 16)])
def test_items_come_back(decoder: type, n: int, rows: int) -> None:
    x, coder = items(n), model(decoder=decoder)
    done = compress(coder, x, rows=rows, check=False)
    assert decompress(coder, done.data).equal(x)
    assert (done.items, done.dimensions) == (n, 9)
    # A LevelPosterior takes no network.
    assert done.network_evaluations == (11 + coder.decoder_uses_network) * n
    assert 8 * len(done.data) == done.net_bits + done.borrowed_bits + done.header_bits


class Spy(Stack):
    """A stack that keeps what is pushed and popped: the bits of the coder's own distribution, written out here, and of the density.

    A value k of a grid has the probability 2^-24 (1 + the rounded (2^24 − n) P[k]) among the n of its window, where P[k] is the mass of
    its cell and the ends have the tails. An end is followed by a distance, whose b bits take 2 b bits, and the distance 0 one bit.
    """

    pushed: ClassVar[list[np.ndarray]] = []
    popped: ClassVar[list[np.ndarray]] = []

    def push_levels(self, levels: np.ndarray, probabilities: np.ndarray) -> None:
        bits = -np.log2(probabilities[np.arange(len(levels)), levels])
        self.pushed.append(np.stack([bits, bits, np.zeros(len(levels))]))
        super().push_levels(levels, probabilities)

    def push_gaussian(self, values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
        self.pushed.append(self.lengths(values, mean, std))
        super().push_gaussian(values, mean, std)

    def pop_gaussian(self, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        values = super().pop_gaussian(mean, std)
        self.popped.append(self.lengths(values, mean, std))
        return values

    @staticmethod
    def lengths(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        """Bits of the coder, bits of the density, and standard deviations from the mean (3, n) of values whose std are equal."""
        assert std.min() == std.max()
        edge, centre = math.ceil(6 * std[0]) + 2, np.rint(mean)
        apart = values - centre
        near = np.clip(apart, -edge, edge)
        below = np.where(near == -edge, 0.0, norm.cdf((near - 0.5 + centre - mean) / std))
        above = np.where(near == edge, 1.0, norm.cdf((near + 0.5 + centre - mean) / std))
        free = 2**24 - (2 * edge + 1)
        bits = 24 - np.log2(np.floor(free * above) - np.floor(free * below) + 1)
        distance = np.abs(apart) - edge
        beyond = np.maximum(1.0, 2 * (1 + np.floor(np.log2(np.maximum(distance, 0.1)))))
        z = (values - mean) / std
        return np.stack([bits + np.where(distance >= 0, beyond, 0.0), -norm.logpdf(z) / math.log(2) + np.log2(std), z])


def test_a_witness_differs_from_the_bound_by_the_overhead_and_the_noise_of_its_paths() -> None:
    x, coder, nats = items(64), best(), 9 * math.log(2)
    found = witnesses(coder, x, counts=(1, 2), visits=8, flow=ODE(draws=2, tolerance=1.0), code=code_length)
    order, done = {one.left: one for one in found.orders}["code"], compress(coder, x, check=False)
    nelbo = found.evaluations["NELBO"].nelbo.value
    assert order.difference == pytest.approx((done.path_bits_per_dim + done.overhead) * nats - nelbo)
    assert 0 < abs(order.difference - done.overhead * nats) < 4 * order.error < 4.0
    assert order.holds is None


def test_a_file_is_as_long_as_the_path_form_of_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    x, coder = items(1600), best()
    monkeypatch.setattr("diffusional.codec._paid", lambda *given: 4)
    monkeypatch.setattr("diffusional.codec.coder.Stack", Spy)
    Spy.pushed, Spy.popped = [], []
    done = compress(coder, x, rows=64, check=False)
    with torch.no_grad():
        paths = torch.stack([coder.path_elbo(x, generator(seed)).nelbo for seed in range(20)]) / (9 * math.log(2))
    error = math.hypot(float(paths[0].std()) / 1600**0.5, float(paths.mean(0).std()) / 1600**0.5 / 20**0.5)
    assert abs(done.path_bits_per_dim - float(paths.mean())) < 4 * error
    assert error < 0.02
    # The coder's own distribution says how long the file is, to the word on top at both ends.
    pushed, popped, values = np.concatenate(Spy.pushed, 1), np.concatenate(Spy.popped, 1), 1600 * 9
    assert abs(done.net_bits - pushed[0].sum() + popped[0].sum()) < 40
    assert done.path_bits_per_dim * values == pytest.approx(pushed[1].sum() - popped[1].sum())
    # What it is longer than the bound: a push is longer by the cell's curvature, 1/(24 · 16²), and the window's share, 197/2^24, at most.
    excess, lost = pushed[0] - pushed[1], popped[1] - popped[0]
    assert excess.max() < (1 / (24 * 16**2) + 197 / 2**24) / math.log(2) + 1e-6
    # Pops under the coder's distribution lose its KL divergence from the density.
    window = np.arange(-96, 97)
    coder_bits, density_bits, _ = Spy.lengths(window, np.zeros(193), np.full(193, 16.0))
    mass, lose = 2.0**-coder_bits, density_bits - coder_bits
    wanted, variance = float((mass * lose).sum()), float((mass * lose**2).sum())
    assert 4e-6 < wanted < 6e-6
    assert abs(lost[np.abs(popped[2]) < 6].mean() - wanted) < 4 * (variance / len(lost)) ** 0.5 < 1e-4
    assert done.overhead == pytest.approx((excess.sum() + lost.sum()) / values, abs=40 / values)
    # It is shorter by values in tails: one of a thousand has nine tenths of it.
    tail = np.abs(pushed[2]) > 4
    assert tail.mean() < 0.002
    assert excess[tail].sum() < 0.85 * excess.sum() < 0
    assert abs(excess[~tail].sum() + lost.sum()) / values < 0.003


def test_the_length_of_items_is_that_of_their_file() -> None:
    x, coder = items(12), model()
    done = compress(coder, x, labels="given")
    assert float(code_length(coder, x).sum()) == pytest.approx(done.net_bits * math.log(2))
    assert code_length(coder, x).shape == (12,)


def test_few_bits_are_borrowed() -> None:
    x, coder = items(64), model(20)
    done = compress(coder, x, check=False)
    # One item's first two latents, 9 dimensions of at most 10 bits, and not 16 items'.
    assert 0 < done.borrowed_bits < 2 * 9 * 12 + 128


def test_the_steps_of_a_file_are_restored_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, coder = items(3), model(None)
    done = compress(coder, x, steps=7)
    assert done.latents == 7
    assert decompress(coder, done.data).equal(x)
    # In continuous time T is chosen, and in discrete time if asked for.
    monkeypatch.setattr("diffusional.codec.choose_steps", lambda *args, **options: Choice(9, {9: 1.0}))
    for some, steps in ((coder, None), (model(4), "auto")):
        done = compress(some, x, steps=steps)
        assert done.latents == 9
        assert decompress(some, done.data).equal(x)
    assert compress(model(4), x).latents == 4


def test_the_chosen_steps_have_the_shortest_file() -> None:
    coder, x = best().regrid(None), items(200)
    choice = choose_steps(coder, x, candidates=(8, 12, 24))
    assert choice.steps == 24
    for steps, bits in choice.bits.items():
        done = compress(coder, x[:50], steps=steps, check=False)
        assert bits / 200 == pytest.approx((done.net_bits + done.borrowed_bits) / 50, rel=0.2)
    with pytest.raises(df.DiffusionalError, match="candidates"):
        choose_steps(coder, x, candidates=(1, 2))
    # The bound of masks that appear one at a time is that of continuous time.
    masks = df.MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 3), df.space.Categorical(4, 3))
    assert choose_steps(masks, torch.zeros(1, 4)).steps is None


def test_a_file_of_another_format_is_refused() -> None:
    data = compress(model(), items(2), check=False).data
    body = data[:-32].replace(b'"format": 2', b'"format": 1')
    with pytest.raises(df.DiffusionalError, match=r"format 2.*format 1"):
        decompress(model(), body + hashlib.sha256(body).digest())


@pytest.mark.parametrize("far", [97, 98, 99, 352, 353, 354, 10_000])
@pytest.mark.parametrize("side", [-1, 1])
def test_values_beyond_the_window_are_coded(far: int, side: int) -> None:
    stack, mean, std = Stack(np.arange(1, 9, dtype=np.uint32)), np.array([0.3, -7.6, 100.2]), np.full(3, 16.0)
    values = np.array([0, side * far - 8, 100 + side * far])
    stack.push_gaussian(values, mean, std)
    assert stack.pop_gaussian(mean, std).tolist() == values.tolist()
    assert stack.words().tolist() == [*range(1, 9)]


def test_hiding_does_not_make_the_stack_longer() -> None:
    stack, rng = Stack(np.arange(1, 9999, dtype=np.uint32)), np.random.default_rng(0)
    mean, std = np.zeros(4), np.full(4, 16.0)
    for key in range(4000):
        stack.hide(4, key)
        values = stack.pop_gaussian(mean, std)
        stack.push_gaussian(values, mean, std)
        # Nothing is gained and nothing lost, except for what hiding does to the coder's state: 0.06 bits each, 230 of all.
        stack.push_levels(rng.integers(0, 3, 1), np.full((1, 3), 1 / 3))
    assert 32 * len(stack) == pytest.approx(32 * 9998 + 4000 * math.log2(3), abs=100)


class Copying(Stack):
    """A stack whose words are all copied for each keystream, in one coder."""

    def hide(self, number: int, key: int) -> None:
        self._need(len(self))
        super().hide(number, key)
        self._need(len(self))


def test_more_bits_than_there_are_cannot_be_popped() -> None:
    stack = Stack(np.arange(1, 9, dtype=np.uint32))
    with pytest.raises(StackEmpty):
        stack.pop_gaussian(np.zeros(50), np.full(50, 16.0))


def walked(stack: Stack, moves: int, rng: np.random.Generator) -> list[Any]:
    """What is popped, after pushes that make the stack longer and shorter in turn."""
    popped = []
    for move in range(moves):
        n = int(rng.integers(1, 400))
        mean, std = np.zeros(n), np.full(n, 10.0 if move // 20 % 2 else 2000.0)
        stack.hide(2 + n // 4, move)
        popped.append((stack.pop_gaussian(mean, std), std))
        more = int(rng.integers(0, 800 if move // 20 % 2 else 100))
        popped.append(rng.integers(0, 3, more))
        stack.push_levels(popped[-1], np.full((more, 3), 1 / 3))
    return popped


def test_a_stack_in_parts_has_the_words_of_one_in_a_piece() -> None:
    words = np.random.default_rng(1).integers(1, 2**32, 20_000).astype(np.uint32)
    parts, piece = Stack(words), Copying(words)
    popped = walked(parts, 200, np.random.default_rng(2))
    again = walked(piece, 200, np.random.default_rng(2))
    assert parts.words().tolist() == piece.words().tolist()
    assert (len(parts), parts.lowest) == (len(piece), piece.lowest)
    # Undone, it is what it was.
    for move in reversed(range(200)):
        (values, std), levels = popped[2 * move : 2 * move + 2]
        assert parts.pop_levels(np.full((len(levels), 3), 1 / 3)).tolist() == levels.tolist()
        parts.push_gaussian(values, np.zeros(len(std)), std)
        parts.hide(2 + len(std) // 4, move)
        assert (again[2 * move][0] == values).all()
    assert parts.words().tolist() == words.tolist()


def test_the_words_that_are_copied_grow_in_proportion_to_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        copied = 0

        def __init__(self, words: np.ndarray) -> None:
            self.coder = _STREAM.stack.AnsCoder(words)
            Counting.copied += len(words)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.coder, name)

    monkeypatch.setattr("diffusional.codec.stack._coder", Counting)
    coder, found = best().regrid(4), []
    for n in (40, 80, 160):
        Counting.copied = 0
        data = compress(coder, items(n), rows=2, check=False).data
        coded, Counting.copied = Counting.copied, 0
        decompress(coder, data)
        found.append((coded, Counting.copied))
    # Twice as many items more, twice as many words more; if all words were copied each time, it would be four times as many.
    few, some, many = np.array(found)
    assert ((many - some) / (some - few)).tolist() == pytest.approx([2, 2], abs=0.4)


def test_pops_of_random_bits_are_near_their_mean() -> None:
    stack = Stack(np.random.default_rng(0).integers(1, 2**32, 60_000).astype(np.uint32))
    for _ in range(40):
        # A narrow window: values beyond it are popped with their distances.
        stack.push_levels(np.array([1]), np.array([[1 - 1e-7, 1e-7]]))
        assert np.abs(stack.pop_gaussian(np.zeros(500), np.full(500, 4.0))).max() < 2**30


def test_pushes_have_the_length_of_their_probability() -> None:
    rng = np.random.default_rng(0)
    std = rng.uniform(4, 30, 20_000)
    mean = rng.normal(0, 100, 20_000)
    values = np.rint(mean + std * rng.standard_normal(20_000)).astype(np.int64)
    stack = Stack(np.ones(1, dtype=np.uint32))
    stack.push_gaussian(values, mean, std)
    density = ((values - mean) ** 2 / std**2 / 2 + np.log(std) + math.log(2 * math.pi) / 2) / math.log(2)
    assert 32 * len(stack) == pytest.approx(density.sum(), rel=1e-3)


def test_levels_have_the_length_of_their_probability_whatever_the_order_of_the_array() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(5, 0.3), 9000)
    levels = np.array([rng.choice(5, p=row) for row in probabilities])
    for order in ("C", "F"):
        stack = Stack(np.ones(1, dtype=np.uint32))
        stack.push_levels(levels, np.asarray(probabilities, order=order))
        wanted = -np.log2(probabilities[np.arange(9000), levels]).sum()
        assert 32 * len(stack) == pytest.approx(wanted, rel=0.01, abs=64)


def test_damaged_files_are_refused() -> None:
    x, coder = items(6), model()
    data = compress(coder, x, check=False).data
    rng = np.random.default_rng(0)
    for _ in range(100):
        place = int(rng.integers(len(data)))
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        other = int(rng.integers(len(data)))
        swapped = bytearray(data)
        swapped[place], swapped[other] = swapped[other], swapped[place]
        for bad in (bytes(flipped), data[:place], bytes(swapped), data + data[place:]):
            if bad != data:
                with pytest.raises(df.DiffusionalError, match=r"damaged|other data"):
                    decompress(coder, bad)


def test_another_model_another_version_and_another_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = items(4)
    data = compress(model(), x, check=False).data
    with pytest.raises(df.DiffusionalError, match="weights_sha256"):
        decompress(model(seed=1), data)
    with pytest.raises(df.DiffusionalError, match="model="):
        decompress(_Renamed.of(model()), data)
    # A model without T latents.
    other = df.VAE(nn.Flatten(), nn.Identity(), likelihood.NetworkLevels(SPACE), latents=2)
    with pytest.raises(df.DiffusionalError, match="coded with model=DiffusionModel, got VAE"):
        decompress(other, data)
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(df.DiffusionalError, match=r"torch=2.*got 1\.0"):
        decompress(model(), data)


class _Renamed(df.DiffusionModel):
    @staticmethod
    def of(other: df.DiffusionModel) -> "_Renamed":
        return _Renamed(other.process, other.denoiser, other.likelihood)


def test_a_network_whose_numbers_change_is_found_before_its_file_is_returned() -> None:
    class Unsteady(Small):
        calls = 0

        def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(z, log_snr) + 0.01 * self.calls

    coder = model()
    coder.denoiser.module = Unsteady()
    with pytest.raises(df.DiffusionalError, match="did not decode"):
        compress(coder, items(4))


def test_what_cannot_be_coded_is_refused() -> None:
    real = df.DiffusionModel(
        df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 7.0, steps=5)),
        df.Denoiser(lambda z, log_snr: 0 * z, "data"),
        likelihood.GaussianLikelihood(df.Continuous((2,))),
    )
    with pytest.raises(df.DiffusionalError, match="discrete data"):
        compress(real, torch.zeros(2, 2))
    with pytest.raises(df.DiffusionalError, match="rows"):
        compress(model(), items(2), rows=0)


def test_rate_and_distortion() -> None:
    x, chain = items(40), best()
    found = rate_distortion(chain, x, points=6)
    assert found.latents.tolist() == [20, 16, 12, 9, 5, 1]
    assert found.bits_per_dim.diff().min() > 0
    assert found.rmse.diff().max() < 0.01
    assert float(found.rmse[-1]) < 0.01
    # Nothing is known at first: the spread of five equally likely levels; in the end the decoder's bits are left.
    assert float(found.rmse[0]) == pytest.approx(math.sqrt(2), rel=0.1)
    assert 0 < float(found.bits_per_dim[-1]) <= found.total
    with torch.no_grad():
        whole = float(chain.elbo(x, generator(5)).nelbo.mean()) / (9 * math.log(2))
    # One draw of each KL.
    assert found.total == pytest.approx(whole, rel=0.25)
    assert float(found.bits_per_dim[2]) < 0.2
    with pytest.raises(df.DiffusionalError, match="regrid"):
        rate_distortion(model(None), x)


def test_errors_of_rates_are_those_of_means() -> None:
    chain = best()
    draws = [rate_distortion(chain, items(40, seed), points=3, seed=seed) for seed in range(24)]
    for name, error in (("bits_per_dim", "error"), ("total", "total_error")):
        values = torch.stack([torch.as_tensor(getattr(one, name)) for one in draws]).double()
        stated = torch.stack([torch.as_tensor(getattr(one, error)) for one in draws]).double().square().mean(0).sqrt()
        # The standard deviation of 24 draws is known to 15 %.
        assert values.std(0).tolist() == pytest.approx(stated.tolist(), rel=0.6)
    assert math.isnan(rate_distortion(chain, items(1), points=2).total_error)
    assert rate_distortion(chain, items(1), points=2).to_json()["bits_per_dim_error"] == [None, None]


def test_items_of_several_batches_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    x, chain = items(10), best()
    x[4:] = SPACE.encode(torch.full((6, 1, 3, 3), 4))
    monkeypatch.setattr("diffusional.codec.rate._BATCH", 4)
    found, least = rate_distortion(chain, x, points=20, show=2), rate_distortion(chain, x[4:], points=20, show=2)
    # x̂(z_T) is the middle, and most items are the largest level.
    assert float(least.rmse[0]) == pytest.approx(2, rel=0.1)
    squares = [((x[rows] / SPACE.width).square().mean()) for rows in (slice(4), slice(4, 10))]
    assert float(found.rmse[0]) == pytest.approx(float(0.4 * squares[0] + 0.6 * squares[1]) ** 0.5, rel=0.1)
    assert found.shown.shape == (20, 2, 1, 3, 3)


@pytest.mark.parametrize("made", ["VAE", "masks"])
def test_models_whose_latents_do_not_show_x_have_no_rate_and_distortion(made: str) -> None:
    models = {
        "VAE": df.VAE(nn.Flatten(), nn.Identity(), likelihood.NetworkLevels(SPACE), latents=2),
        "masks": df.MaskedDiffusion(lambda tokens: torch.zeros(*tokens.shape, 3), df.space.Categorical(4, 3)),
    }
    with pytest.raises(df.DiffusionalError, match="Gaussian diffusion of x"):
        rate_distortion(models[made], items(2))


def test_no_items_and_other_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(df.DiffusionalError, match="at least one item"):
        compress(model(), torch.zeros(0, 1, 3, 3))
    with pytest.raises(df.DiffusionalError, match="levels"):
        compress(model(), torch.full((1, 1, 3, 3), 0.1))
