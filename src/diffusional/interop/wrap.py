"""`wrap`: a network from elsewhere as a denoiser, by what it reads and what its output is of x and ε.

The latents of the process that the network was trained with are a x + s ε (MATH (23)). Whatever a and s, they are a multiple of ours at the
log-SNR −γ = ln a²/s², so that two declarations suffice: what the network reads, and what it predicts. Named functions do the common cases:

    wrap(net, predicts="v", time=TrainedIndex(schedule))      a network of a variance-preserving process
    wrap.edm(net, sigma_data=0.5)                             F of Karras et al. 2022
    wrap.denoised(net)                                        D(x + σ ε, σ) of Karras et al. 2022: x̂
    wrap.score(net)                                           ∇ ln q(x + σ ε), at σ
    wrap.flow(net)                                            the velocity ε − x of (1 − t) x + t ε, at t
    wrap.flow(net, counts="data")                             the velocity x − ε of t x + (1 − t) ε, at t

`wrap.openai(net, diffusion, space)` and `wrap.lucidrains(diffusion)` return the whole model of a diffusion of these two packages.

The result goes into a `DiffusionModel` with a schedule whose ends are the lowest and the highest noise of p.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.forward import sigma
from diffusional.interop.adapter import (
    DATA,
    NOISE,
    VELOCITY,
    Adapter,
    Clip,
    Coefficient,
    Output,
    Rule,
    V,
    VarianceOutput,
    value_at,
)
from diffusional.interop.clocks import FlowTime, SigmaTime, edm_output, edm_scale, flow_scale, ve_scale
from diffusional.interop.fitted import choose_start as choose_start
from diffusional.models.calls import from_diffusers
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.likelihood import Likelihood
from diffusional.models.time import Affine, TrainedIndex
from diffusional.schedule import Schedule
from diffusional.space import Space
from diffusional.words import our_word

Reads = Literal["vp", "ve", "flow"]
_SCALES: dict[str, Coefficient] = {"vp": 1.0, "ve": ve_scale, "flow": flow_scale}
_PREDICTS = ("noise", "data", "v", "score", "velocity", "velocity to data")
_TIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "log_snr": Affine(),
    "gamma": Affine(-1.0),
    "sigma": SigmaTime("sigma"),
    "log_sigma": Affine(-0.5),
    "t": FlowTime(),
    "1-t": FlowTime(of_data=True),
}


def _adapted(
    network: Callable[..., Tensor],
    *,
    predicts: str | tuple[Coefficient, Coefficient] = "noise",
    time: str | Schedule | Callable[[Tensor], Tensor],
    reads: Reads = "vp",
    scale: Coefficient = 1.0,
    learns: Literal["range"] | VarianceOutput | None = None,
    clip: tuple[float, float] | None = None,
) -> Adapter:
    if from_diffusers(network):
        from diffusional.interop.networks import DiffusersNetwork

        network = DiffusersNetwork(network)  # pyright: ignore[reportArgumentType]
    if isinstance(reads, str) and reads not in _SCALES:
        raise DiffusionalError(f"expected reads to be one of {', '.join(_SCALES)}, got {reads!r}")
    if isinstance(time, str):
        if time not in _TIMES:
            raise DiffusionalError(
                f"expected time to be one of {', '.join(_TIMES)}, a schedule, or a function of log SNR, got {time!r}"
            )
        clock = _TIMES[time]
    else:
        clock = TrainedIndex(time) if isinstance(time, Schedule) else time
    rule: Rule | None = None if clip is None else Clip(*clip)
    return Adapter(network, _output(predicts, reads), clock, _product(_SCALES[reads], scale), learns, rule)


def _product(first: Coefficient, second: Coefficient) -> Coefficient:
    if not callable(first) and not callable(second):
        return first * second
    return lambda gamma: value_at(first, gamma) * value_at(second, gamma)


def _output(predicts: str | tuple[Coefficient, Coefficient], reads: Reads) -> Output:
    if not isinstance(predicts, str):
        return Output(*predicts)
    plain = {"velocity to noise": "velocity", "flow_prediction": "velocity"}.get(predicts, predicts)
    word = plain if plain in _PREDICTS else our_word("predicts", plain, _PREDICTS)
    outputs = {
        "noise": NOISE,
        "data": DATA,
        "v": V,
        # In what the network reads, the noise has the standard deviation c σ.
        "score": Output(0.0, lambda gamma: -1 / (value_at(_SCALES[reads], gamma) * sigma(gamma))),
        "velocity": VELOCITY,
        "velocity to data": Output(1.0, -1.0),
    }
    return outputs[word]


class Wrap:
    """The function `df.wrap`, with the named cases as its methods."""

    def __call__(
        self,
        network: Callable[..., Tensor],
        *,
        predicts: str | tuple[Coefficient, Coefficient] = "noise",
        time: str | Schedule | Callable[[Tensor], Tensor],
        reads: Reads = "vp",
        scale: Coefficient = 1.0,
        learns: Literal["range"] | VarianceOutput | None = None,
        clip: tuple[float, float] | None = None,
    ) -> Adapter:
        """Wrap a network as a denoiser: `network(z, time)`, or `network(z, time, condition)`.

        Args:
            network: any function or module; a network of diffusers as it is.
            predicts: "noise" (ε), "data" (x), "v" (α ε − σ x), "score" (of what it reads), "velocity" (ε − x, of a flow), "velocity to data"
                (x − ε), a word of diffusers for one of these, or (A, B): the output is A x + B ε, each a number or a function of γ.
            time: its time input: "log_snr", "gamma" (−log SNR), "sigma" (σ/α), "log_sigma" (its logarithm), "t" (of a flow, 1 at pure
                noise), "1-t", a schedule, of which it reads the number of the level from 0, or a function of log SNR (B,), float64.
            reads: its input before `scale`: "vp", z = α x + σ ε with α² + σ² = 1; "ve", x + σ ε; or "flow", (1 − t) x + t ε.
            scale: a further factor of the input, a number or a function of γ, such as EDM's c_in.
            learns: "range" if a second half of its outputs is the variance of improved DDPM; use it with variance="learned".
            clip: clip x̂ to (low, high), which defines another p.

        Raises DiffusionalError for unknown words, and, when it is called, for outputs of the wrong shape.

        >>> from diffusional import schedule
        >>> denoiser = wrap(lambda z, t: 0 * z, predicts="epsilon", time=schedule.linear(steps=10))
        >>> denoiser.predicts
        'noise'
        """
        return _adapted(network, predicts=predicts, time=time, reads=reads, scale=scale, learns=learns, clip=clip)

    def edm(
        self,
        network: Callable[..., Tensor],
        *,
        sigma_data: float = 0.5,
        time: str | Callable[[Tensor], Tensor] | None = None,
    ) -> Adapter:
        """Wrap the raw network F of EDM: x̂ = c_skip z + c_out F(c_in z, ¼ ln σ) with z = x + σ ε (Karras et al. 2022).

        Args:
            network: F(c_in z, c_noise), without its preconditioning. The whole, D(z, σ), goes to `denoised`.
            sigma_data: σ_data of the preconditioning.
            time: instead of ¼ ln σ.

        >>> import torch
        >>> denoiser = wrap.edm(lambda z, t: 0 * z, sigma_data=1.0)
        >>> denoiser(torch.ones(1, 1), torch.zeros(1)).data             # c_skip z, with z = √2 at σ = 1
        tensor([[0.7071]])
        """
        if not sigma_data > 0:
            raise DiffusionalError(f"expected sigma_data to be positive, got {sigma_data}")
        output, scale = edm_output(sigma_data), edm_scale(sigma_data)
        return _adapted(network, predicts=(output.of_data, output.of_noise), time=time or SigmaTime("log"), scale=scale)

    def denoised(self, network: Callable[..., Tensor], *, time: str | Callable[[Tensor], Tensor] = "sigma") -> Adapter:
        """Wrap a denoiser D(z, σ) of z = x + σ ε, such as an EDM network with its preconditioning: its output is x̂.

        >>> import torch
        >>> wrap.denoised(lambda z, s: z / (1 + s**2)[:, None])(torch.ones(1, 1), torch.zeros(1)).data
        tensor([[0.7071]])
        """
        return _adapted(network, predicts="data", time=time, reads="ve")

    def score(
        self,
        network: Callable[..., Tensor],
        *,
        reads: Reads = "ve",
        time: str | Schedule | Callable[[Tensor], Tensor] = "sigma",
    ) -> Adapter:
        """Wrap a score network, s(z, σ) ≈ ∇ ln q(z) of z = x + σ ε; with reads="vp", of α x + σ ε.

        >>> import torch
        >>> wrap.score(lambda z, s: -z / s[:, None] ** 2)(torch.ones(1, 1), torch.zeros(1)).noise   # z/σ with z = √2
        tensor([[1.4142]])
        """
        return _adapted(network, predicts="score", time=time, reads=reads)

    def flow(
        self,
        network: Callable[..., Tensor],
        *,
        counts: Literal["noise", "data"] = "noise",
        scale: float = 1.0,
        coupling: Literal["independent", "optimal transport"] = "independent",
    ) -> Adapter:
        """Wrap the velocity of a flow between data and N(0, I) on straight lines (Lipman et al. 2023), dz/dt in its own time.

        Args:
            network: `network(z, t)`.
            counts: what its t counts. "noise": z = (1 − t) x + t ε, and its output is ε − x. "data": z = t x + (1 − t) ε, and x − ε.
            scale: a factor of t, such as 1000 for networks of diffusers.
            coupling: how x and ε were paired in training. The bound is for independent pairs: with those of optimal transport it is valid
                but loose, and a warning points to the probability flow.

        >>> import torch
        >>> wrap.flow(lambda z, t: 0 * z)(torch.ones(1, 1), torch.zeros(1)).data
        tensor([[0.7071]])
        """
        if counts not in ("noise", "data"):
            raise DiffusionalError(f'expected counts to be "noise" or "data", got {counts!r}')
        if coupling != "independent":
            warnings.warn(
                "the bound is for independent pairs of x and ε; with those of optimal transport the network is not a posterior mean, and the "
                "bound is valid but loose. The likelihood of such a flow is that of its probability flow",
                stacklevel=2,
            )
        predicts = "velocity" if counts == "noise" else "velocity to data"
        return _adapted(network, predicts=predicts, time=FlowTime(scale, counts == "data"), reads="flow")

    def openai(
        self,
        network: Callable[..., Tensor],
        diffusion: Any,
        space: Space,
        *,
        clipped: bool = True,
        likelihood: Likelihood | None = None,
    ) -> DiffusionModel:
        """Return the model of a network of OpenAI's improved or guided diffusion, by its GaussianDiffusion or SpacedDiffusion.

        Betas, prediction (EPSILON, START_X), variance (all four kinds) and time input, also of respaced levels, are read from the object's
        attributes. The decoder is theirs: a discretised Gaussian with the variance of q(z_1|z_2, x), with the exact normal CDF for their
        approximation by tanh, and without their floor of ln 1e-12 for the mass of a bin.

        Args:
            network: `network(z, time)`, or `network(z, time, labels)`.
            diffusion: their object.
            space: what x is, such as Discrete((3, 32, 32), 256).
            clipped: whether x̂ is clipped to [−1, 1] (clip_denoised=True of `calc_bpd_loop` and of its samplers).
            likelihood: another p(x|z_1).

        Raises DiffusionalError for an object without these attributes, and for ModelMeanType.PREVIOUS_X.

        >>> from types import SimpleNamespace
        >>> from diffusional import Discrete
        >>> theirs = SimpleNamespace(betas=[0.1, 0.5], model_mean_type="EPSILON", model_var_type="FIXED_LARGE", rescale_timesteps=False)
        >>> model = wrap.openai(lambda z, t: 0 * z, theirs, Discrete((1, 8, 8), 256))
        >>> model.steps, model.variance
        (2, 'transition')
        """
        from diffusional.interop.processes import openai

        return openai(network, diffusion, space, clipped=clipped, likelihood=likelihood)

    def lucidrains(
        self,
        diffusion: Any,
        *,
        levels: int | None = 256,
        clipped: bool = True,
        likelihood: Likelihood | None = None,
    ) -> DiffusionModel:
        """Return the model of a GaussianDiffusion of lucidrains' denoising-diffusion-pytorch, with its network.

        Betas, objective (pred_noise, pred_x0, pred_v), normalisation and shape are read from the object's attributes; DDIM is left out. Load
        the weights of the moving average first, if there are any: its Trainer samples with these.

        Args:
            diffusion: their object, for images or sequences.
            levels: number of levels of the data.
            clipped: whether x̂ is clipped to [−1, 1], as its only sampler does.
            likelihood: p(x|z_1), which the object does not determine; by default a discretised Gaussian with variance σ_1².

        Raises DiffusionalError for an object without these attributes, a self-conditioned network, and one with a learned variance. Warns
        of training with offset noise or an assignment of noise to items, whose networks are not posterior means.

        >>> from types import SimpleNamespace
        >>> theirs = SimpleNamespace(betas=[0.1, 0.5], objective="pred_v", model=lambda z, t: 0 * z, channels=3, image_size=8,
        ...                          normalize=lambda x: 2 * x - 1)
        >>> wrap.lucidrains(theirs).space
        Discrete(shape=(3, 8, 8), levels=256, low=-1.0, high=1.0)
        """
        from diffusional.interop.processes import lucidrains

        return lucidrains(diffusion, levels=levels, clipped=clipped, likelihood=likelihood)


wrap = Wrap()
