"""The denoiser: what reaches the module, what comes back, and the adapters of its time input."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from battery import F64, close, every_prediction, float64, plain_alpha, plain_sigma, randn
from diffusional import schedule
from diffusional.errors import DiffusionalError
from diffusional.models.denoiser import Denoiser, clipped, output_channels, unassisted
from diffusional.models.parameterization import LevelsPrediction
from diffusional.models.time import Affine, TrainedIndex
from diffusional.space import Continuous, Discrete

Z, GAMMA = randn(3, 2, 4), float64([-3.0, 0.5, 2.0])


class Spy(nn.Module):
    """Remembers what it was called with, and returns `output`, or z."""

    def __init__(self, output: Tensor | None = None) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Tensor) -> Tensor:
        self.args = args
        return args[0] if self.output is None else self.output


@every_prediction
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_module_sees_log_snr(kind: str, dtype: torch.dtype) -> None:
    spy, z = Spy(), Z.to(dtype)
    prediction = Denoiser(spy, predicts=kind)(z, GAMMA)
    seen, log_snr = spy.args  # two arguments without a condition
    assert torch.equal(seen, z)
    close(log_snr.double(), [3.0, -0.5, -2.0])
    assert log_snr.dtype == dtype
    assert prediction.kind == kind
    assert prediction.value.equal(z)
    assert prediction.gamma.equal(GAMMA)
    Denoiser(spy, predicts=kind)(z, GAMMA[1])
    close(spy.args[1].double(), [-0.5] * 3)


def test_the_condition_is_passed_on() -> None:
    spy, condition = Spy(), torch.arange(3)
    Denoiser(spy)(Z, GAMMA, condition)
    assert len(spy.args) == 3
    assert torch.equal(spy.args[2], condition)


def test_the_output_comes_back_in_the_data_s_type() -> None:
    half = (Z / 3).to(torch.bfloat16)
    prediction = Denoiser(Spy(half))(Z.float(), GAMMA)
    assert prediction.value.dtype == torch.float32
    assert prediction.value.equal(half.float())


@pytest.mark.parametrize("head", ["categorical", "logistic"])
def test_levels_and_their_mean(head: str) -> None:
    space = Discrete((2, 4), 5, 0.0, 1.0)
    output = randn(3, output_channels("levels", head, 2, 5), 4)
    denoiser = Denoiser(Spy(output), predicts="levels", space=space, head=head)
    prediction = denoiser(Z, GAMMA)
    assert isinstance(prediction, LevelsPrediction)
    assert prediction.kind == "data"
    # Bayes: prior of the network at each position, times N(z; α x_k, σ²).
    values = np.linspace(0, 1, 5)
    if head == "categorical":
        prior = np.exp(output.numpy().reshape(3, 2, 5, 4)).swapaxes(1, 2)
    else:
        cdf = stats.logistic(0.5 + 0.5 * output[:, :2].numpy(), 0.5 * np.exp(output[:, 2:].numpy())).cdf
        prior = np.diff([cdf(e) for e in (-np.inf, *((values[1:] + values[:-1]) / 2), np.inf)], axis=0).swapaxes(0, 1)
    alpha, sigma = (f(GAMMA.numpy())[:, None, None, None] for f in (plain_alpha, plain_sigma))
    joint = prior * stats.norm(alpha * values[:, None, None], sigma).pdf(Z.numpy()[:, None])
    joint /= joint.sum(1, keepdims=True)
    close(prediction.log_probs.exp(), joint, rtol=1e-9)
    close(prediction.value, (joint * values[:, None, None]).sum(1), rtol=1e-9)
    close(prediction.data, prediction.value)


def test_output_channels() -> None:
    assert [output_channels(p, "categorical", 3, None) for p in ("noise", "data", "v", "score")] == [3] * 4
    assert output_channels("levels", "categorical", 3, 17) == 51
    assert output_channels("levels", "logistic", 3, 17) == 6
    with pytest.raises(DiffusionalError, match="continuous"):
        output_channels("levels", "logistic", 3, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"predicts": "energy"}, "noise, data, v, score, levels.*energy"),
        ({"head": "sigmoid"}, "categorical, logistic.*sigmoid"),
        ({"predicts": "levels"}, "space=Discrete"),
        ({"predicts": "levels", "space": Continuous((2, 4))}, "space=Discrete"),
    ],
)
def test_refused(wrong: dict, message: str) -> None:
    # Unwrapped: under test, beartype would refuse literals and types first.
    init = Denoiser.__init__
    while hasattr(init, "__wrapped__"):
        init = init.__wrapped__
    with pytest.raises(DiffusionalError, match=message):
        init(Denoiser.__new__(Denoiser), Spy(), **wrong)


@every_prediction
def test_outputs_of_another_shape_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"\(3, 2, 5\).*\(3, 2, 4\).*" + kind):
        Denoiser(Spy(torch.zeros(3, 2, 5)), predicts=kind)(Z, GAMMA)


def test_unassisted() -> None:
    close(unassisted(Z, GAMMA).data, Z.numpy() / plain_alpha(GAMMA.numpy())[:, None, None])


# Time inputs.


def test_affine() -> None:
    close(Affine(-0.25, 1.0)(GAMMA), -0.25 * GAMMA.numpy() + 1)
    close(Affine()(GAMMA), GAMMA)
    spy = Spy()
    Denoiser(spy, time=Affine(scale=2.0, shift=-1.0))(Z, GAMMA)
    close(spy.args[1], -2 * GAMMA.numpy() - 1)


TRAINED = {
    "linear": schedule.linear,
    "cosine": schedule.cosine,
    "log_snr_linear": lambda steps: schedule.log_snr_linear(-13.3, 5.0, steps),
}


@pytest.mark.parametrize("steps", [2, 1000, 10_000])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", TRAINED)
def test_trained_index(kind: str, steps: int, first: int, dtype: torch.dtype) -> None:
    trained = TRAINED[kind](steps=steps)
    index = TrainedIndex(trained, first)
    grid = trained.grid()
    assert index((-grid).to(dtype)).equal(torch.arange(steps) + first)
    shuffled = torch.randperm(steps)
    assert index((-grid[shuffled]).to(dtype)).equal(shuffled + first)
    # Between two levels, before the first and after the last: none of the trained.
    for off in (0.5, 0.1, -0.1, 0.02):
        gamma = grid[:-1] + off * grid.diff()
        for one in (gamma[0], gamma[len(gamma) // 2], gamma[-1], grid[-1] + 0.5 * grid[-2:].diff()[0]):
            with pytest.raises(DiffusionalError, match=f"log-SNR of one of the {steps} levels"):
                index(-one[None])


def test_trained_index_in_a_denoiser() -> None:
    trained, spy = schedule.linear(steps=1000), Spy()
    denoiser = Denoiser(spy, time=TrainedIndex(trained))
    denoiser(Z.float(), trained.grid()[[0, 499, 999]])
    assert spy.args[1].tolist() == [0, 499, 999]
    with pytest.raises(DiffusionalError, match="regrid"):
        denoiser(Z.float(), trained.regrid(77).grid()[[0, 30, 76]])


@every_prediction
@pytest.mark.parametrize("learns", [False, True])
def test_clipped_is_the_same_x_within_the_range(kind: str, learns: bool) -> None:
    """And the same variance."""
    space = Discrete((2, 4), 5, -1.5, 1.0)
    output = randn(3, 4 if learns else 2, 4, seed=1)
    free = Denoiser(Spy(output), kind, learns_variance=learns)
    said, cut = free(Z, GAMMA), clipped(free, space)(Z, GAMMA)
    close(cut.data, said.data.clamp(-1.5, 1.0), rtol=1e-12)
    assert bool((said.data != cut.data).any())
    assert bool(((said.data > -1.5) & (said.data < 1)).any())
    torch.testing.assert_close(cut.fraction, said.fraction, rtol=1e-12, atol=1e-15)


def test_clipped_asks_the_trained_index() -> None:
    """A network that knows its T indices still does, in float32 too."""
    made = schedule.cosine(50)
    spy = Spy()
    for dtype in (torch.float32, F64):
        clipped(Denoiser(spy, time=TrainedIndex(made)), Discrete((2, 4), 5))(Z.to(dtype), made.grid()[[0, 30, 49]])
        assert spy.args[1].tolist() == [0, 30, 49]
