"""The typed configuration of a run, saved with it as config.json. Does not import torch, so that `--help` is fast."""

import dataclasses
import functools
import json
import math
import reprlib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from diffusional.errors import DiffusionalError
from diffusional.files import load_json, load_toml
from diffusional.seeds import check_seed
from diffusional.words import hint as word_hint

# Kinds of models of sequences of tokens.
SEQUENCES = ("masked", "uniform")


def _check_words(section: str, config: Any) -> None:
    """Raise DiffusionalError for a value that is not one of the choices of its field."""
    for name, hint in _word_fields(type(config)).items():
        _checked(hint, getattr(config, name), f"{section}{'.' if section else ''}{name}")


@functools.cache
def _word_fields(kind: type[Any]) -> dict[str, Any]:
    """Return the fields of a config that take one of a few words, with their types."""
    hints = typing.get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if _is_words(hint)}


def _is_words(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal or any(
        typing.get_origin(part) is Literal for part in typing.get_args(hint)
    )


def _require(section: str, config: Any, name: str, holds: Callable[[Any], Any], expected: str) -> None:
    value = getattr(config, name)
    if not holds(value):
        raise DiffusionalError(f"expected {section}{'.' if section else ''}{name} to be {expected}, got {value}")


@dataclass(frozen=True)
class DataConfig:
    """The data."""

    name: str = "digits"
    """"digits" or "text" (embedded); a path: .txt, .npy, .npz, IDX, .csv, .parquet, a folder of images or tables; or hf:owner/name."""
    levels: int | None = None
    """Number of integer levels of arrays and tables (256 for 8-bit images). Leave it out for real-valued data."""
    split_seed: int = 0
    """The seed of the split, if the file has no splits of its own."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Fractions of train, validation and test, if the file has no splits of its own."""
    warps: int = 0
    """Number of warped copies of each training image, in addition to the same number of the image itself (only for digits)."""
    size: int | None = None
    """The side of images in pixels. By default, all images must have the same size."""
    fit: Literal["crop", "resize"] = "crop"
    """The part of an image that is scaled to this size: the centre square, or the whole image regardless of its aspect ratio."""
    grey: Literal["auto", "yes", "no"] = "auto"
    """Convert images to greyscale or RGB. auto keeps them, and refuses a mixture of both."""
    columns: tuple[str, ...] | None = None
    """Columns of a table, by name. None means all columns."""
    decimal: Literal[".", ","] | None = None
    """The decimal mark of numbers in a .csv or .tsv. By default it is found from the values, and ambiguous values are refused."""
    column: str | None = None
    """The column of a Hub data set with the items. Defaults to the only column of images or of arrays of one shape."""
    streaming: bool = False
    """Read a Hub data set during training instead of downloading it first."""
    holdout: int = 1000
    """Number of items in each of the validation and test splits of a streamed data set (taken from train if it has no such split)."""
    condition: str | None = None
    """Condition the model: "label" for the class labels that belong to the data, or the name of their column or key; "caption" for texts, or
    caption:NAME for those of a column or key; text:ENCODER for texts with another encoder."""
    text_encoder: str | None = None
    """The frozen encoder of texts: hashed (the default, which needs no download), minilm, or the name or folder of a model of transformers."""
    text_form: Literal["pooled", "tokens"] = "pooled"
    """Whether the condition of a text is one vector, or a vector for each of its tokens, for the cross-attention of network="ddpm"."""

    alphabet: str | None = None
    """The tokens of a text: text8, bytes, tokenizer:NAME, or tokens for a .npy. Defaults to text8 for "text" and to bytes for a file."""
    length: int | None = None
    """The number of tokens of an item of text. Defaults to 128."""

    downscale: tuple[int, ...] = ()
    """Train on images whose sides are divided by these factors, one after the other, and whose levels are rounded: a stage of a cascade."""
    encoder: str | None = None
    """Train on the latents of the VAE in this run folder, instead of the items; clip:NAME for the features of a CLIP of transformers."""
    encoder_draws: int = 0
    """Number of draws of each training item's latent from the VAE's q(z|x). With 0 the latents are the means of q(z|x)."""
    encoder_sha256: str | None = None
    """SHA-256 of the VAE's weights, or of the files of the CLIP; if given, they must have it."""

    def __post_init__(self) -> None:
        _check_words("data", self)
        _require("data", self, "warps", lambda v: v >= 0, "0 or more")
        check_seed(self.split_seed, "data.split_seed")
        _require("data", self, "size", lambda v: v is None or v >= 1, "at least 1 pixel")
        _require("data", self, "columns", lambda v: v is None or len(v) > 0, "one or more names")
        _require("data", self, "length", lambda v: v is None or v >= 2, "at least 2")
        _require("data", self, "holdout", lambda v: v >= 1, "at least 1")
        _require("data", self, "condition", lambda v: v != "", "a name")
        _require("data", self, "text_encoder", lambda v: v != "", "a name")
        _require("data", self, "downscale", lambda v: all(f >= 2 for f in v), "factors of at least 2")
        _require("data", self, "encoder", lambda v: v != "", "a run folder")
        _require("data", self, "encoder_draws", lambda v: v >= 0, "0 or more")
        if self.encoder_draws and self.encoder is None:
            raise DiffusionalError(
                f"data.encoder_draws={self.encoder_draws} was given without data.encoder, the run of the VAE; give both, or leave it out"
            )
        if self.warps and self.name != "digits":
            raise DiffusionalError(
                f"data.warps is only for the embedded digits, got data.warps={self.warps} for {self.name}: leave it out"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule γ(u), and T."""

    kind: Literal["log_snr_linear", "linear", "cosine", "learned", "learned_betas"] = "log_snr_linear"
    """The schedule: linear in log-SNR, betas that are linear (DDPM) or cosine (improved DDPM), a learned monotone network (VDM), or
    learned betas except for the first."""
    steps: int | None = None
    """The number of latents T. None trains in continuous time (only log_snr_linear and learned)."""
    gamma_min: float = -9.21
    """γ_1 = −log SNR of the least noisy latent (log_snr_linear, learned)."""
    gamma_max: float = 10.12
    """γ_T = −log SNR of the noisiest latent (log_snr_linear, learned)."""
    ends: Literal["fixed", "learned"] = "fixed"
    """Whether γ_1 and γ_T of a learned schedule are fixed, or learned as well by the bound."""
    beta_start: float = 1e-4
    """The first β (linear, learned_betas)."""
    beta_end: float = 0.02
    """The last β (linear)."""

    def __post_init__(self) -> None:
        _check_words("schedule", self)


@dataclass(frozen=True)
class ModelConfig:
    """The model and its network."""

    kind: Literal[
        "diffusion",
        "binomial-diffusion",
        "gaussian-chain",
        "vae",
        "hierarchical-vae",
        "vae-diffusion-prior",
        "contrastive",
        "masked",
        "uniform",
    ] = "diffusion"
    """The kind of model. binomial-diffusion is a diffusion of binary data. gaussian-chain has few steps (schedule.steps), each with a free
    mean and variance. vae-diffusion-prior is a VAE with a diffusion model as the prior of its latent. contrastive is not a model of x but an encoder for one: it is
    trained on items and their conditions by the loss of CLIP, with latent.sizes as its dimensions. masked and uniform are diffusions of sequences of tokens (data.alphabet)."""
    network: Literal["unet", "mlp", "ddpm", "vdm", "transformer"] | None = None
    """The network. Defaults to unet for images and mlp for other data, to mlp for a gaussian-chain, and to transformer for sequences. ddpm is the U-Net of DDPM, from
    diffusers; vdm is a U-Net without downsampling."""
    predicts: Literal["noise", "data", "v", "score", "levels"] | None = None
    """The output of the network. Defaults to levels for discrete data and to v for real-valued data."""
    head: Literal["categorical", "logistic"] = "logistic"
    """Output parameterisation of a `levels` network."""
    likelihood: Literal["network-levels", "level-posterior", "discretized-gaussian", "gaussian", "bernoulli"] | None = (
        None
    )
    """The decoder p(x|z_1). Defaults to network-levels with a levels head, to level-posterior for other discrete data, otherwise to
    gaussian."""
    variance: Literal["posterior", "transition", "learned"] = "posterior"
    """The variance of the reverse chain: that of the posterior, that of the transition, or learned between the two."""
    widths: tuple[int, ...] = (32, 64)
    """Number of channels of a U-Net at each resolution (one number for vdm)."""
    blocks: int = 2
    """Number of residual blocks: at the lowest resolution (unet), at each resolution (ddpm), in the first half (vdm), or in all (mlp, transformer)."""
    hidden: int = 256
    """The width of the mlp or the transformer."""
    attention: tuple[int, ...] = ()
    """Sides of the images at which ddpm's U-Net has self-attention."""
    heads: int = 1
    """The number of heads of ddpm's attention, or of the transformer's."""
    scale_shift: bool = False
    """Whether the noise level scales and shifts the norms of ddpm's U-Net, instead of only shifting them."""
    dropout: float = 0.2
    """The fraction of activations that are set to 0 in training."""
    condition_noise: float | None = None
    """γ = −log SNR of noise that is added to a condition of images or numbers, drawn anew at every step: the next stage of a system is
    trained with what the stage before it hands over."""
    shared: bool = False
    """Use a single network for all steps of a gaussian-chain. By default each step has its own."""

    def __post_init__(self) -> None:
        _check_words("model", self)
        _require("model", self, "dropout", lambda v: 0 <= v < 1, "0 to below 1")
        _require("model", self, "widths", lambda v: v and all(w > 0 and w % 8 == 0 for w in v), "multiples of 8")
        _require("model", self, "attention", lambda v: all(side > 0 for side in v), "sides of images in pixels")
        for name in ("blocks", "hidden", "heads"):
            _require("model", self, name, lambda v: v >= 1, "at least 1")


@dataclass(frozen=True)
class LatentConfig:
    """The learned latents of a VAE."""

    sizes: tuple[int, ...] = (32,)
    """The dimensions of z_1 … z_L, where z_1 is next to the data; several only for kind="hierarchical-vae"."""
    warmup: float = 0.0
    """The fraction of the run in which the weight of the KL divergence rises from 0 to 1, as (step/end)²."""
    free_bits: float = 0.0
    """Free bits: nats for each layer that are not penalised in training. They do not affect bounds."""
    decoder_variance: float = 0.1
    """The variance of p(x|z) for real-valued data and for likelihood="discretized-gaussian", and of p(x|z_1) for a gaussian-chain."""

    def __post_init__(self) -> None:
        _require("latent", self, "sizes", lambda v: v and all(n >= 1 for n in v), "one or more positive integers")
        _require("latent", self, "warmup", lambda v: 0 <= v <= 1, "0 to 1")
        _require("latent", self, "free_bits", lambda v: v >= 0, "0 or more")
        _require("latent", self, "decoder_variance", lambda v: 0 < v < math.inf, "a positive number")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a learning rate that has a warm-up, a plateau, and a cosine decay to zero."""

    lr: float = 2e-3
    """The maximum learning rate."""
    beta1: float = 0.9
    """The decay of the mean of gradients."""
    beta2: float = 0.99
    """The decay of the mean of squared gradients."""
    weight_decay: float = 0.01
    """Decoupled weight decay, per unit of the learning rate."""
    warmup: int = 200
    """Number of steps in which the learning rate rises from 0 to lr."""
    flat: float = 0.3
    """The fraction of the run after which the cosine decay begins."""
    clip: float = 1.0
    """The norm to which gradients are clipped."""
    ema: float = 0.999
    """The decay of the average of weights, which is min(ema, (1 + i)/(10 + i)) at step i."""

    def __post_init__(self) -> None:
        _require("optimizer", self, "lr", lambda v: 0 < v < math.inf, "a positive number")
        for name in ("beta1", "beta2", "ema"):
            _require("optimizer", self, name, lambda v: 0 <= v < 1, "0 to below 1")
        _require("optimizer", self, "weight_decay", lambda v: 0 <= v < math.inf, "0 or more")
        _require("optimizer", self, "warmup", lambda v: v >= 0, "0 or more")
        _require("optimizer", self, "flat", lambda v: 0 <= v <= 1, "0 to 1")
        _require("optimizer", self, "clip", lambda v: v > 0, "a positive number")


@dataclass(frozen=True)
class SystemConfig:
    """Options for speed and memory. They change results only by rounding, so that a run may be resumed with other ones."""

    accumulate: int = 1
    """Number of parts into which each process divides its share of a batch to save memory; they are processed one after the other."""
    compile: bool = False
    """Compile the networks with torch.compile. This is faster on a GPU; on a CPU it has not been."""
    channels_last: bool = False
    """Store image tensors as N×H×W×C. This is faster on a GPU with bf16."""
    recompute: bool = False
    """Activation checkpointing: compute blocks again in the backward pass instead of storing their activations. Takes a third more time."""

    def __post_init__(self) -> None:
        _require("system", self, "accumulate", lambda v: v >= 1, "at least 1")


@dataclass(frozen=True)
class Config:
    """All options that determine a run, in six groups and single options; `diffusional train --help` describes each.

    Raises DiffusionalError for values out of range, with the name of the option, and for options that contradict each other.

    >>> config = Config(steps=300, model=ModelConfig(widths=(16, 32)), optimizer=OptimizerConfig(lr=1e-3))
    >>> config.schedule.kind, config.objective
    ('log_snr_linear', 'elbo')
    """

    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    objective: Literal["elbo", "simple", "hybrid"] = "elbo"
    """The training objective. "simple" is L_simple of DDPM, and "hybrid" is L_hybrid of improved DDPM, for a learned variance; neither is a
    bound."""
    sampler: Literal["stratified", "adaptive", "uniform", "second-moment"] = "adaptive"
    """The sampler of noise levels in training, which affects only the variance of the loss. second-moment is the resampler of improved
    DDPM."""
    condition_dropout: float = 0.0
    """The fraction of items whose condition is dropped in training, such as 0.1. With it, the network also learns to predict without a
    condition, which guidance needs."""
    steps: int = 2000
    """Number of optimiser steps."""
    max_seconds: float | None = None
    """Stop the run early after this number of seconds."""
    batch: int = 128
    """Number of items in a step, over all processes and parts."""
    seed: int = 0
    """The seed of weights, batches, levels and noise."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the network. Schedules and costs are float64 in any case."""
    validate_every: int = 250
    """Number of steps between validations."""
    patience: int = 0
    """Stop after this number of validations without a better bound. With 0 the run is never stopped. The best weights are always kept."""
    checkpoint_every: int = 500
    """Number of steps between checkpoints."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep, the newest ones."""
    skip_nonfinite: int = 0
    """The maximum number of steps to skip because the loss or gradient is not finite. With 0 the run stops at the first."""
    init_from: str | None = None
    """Start from the trained (averaged) weights of this run folder instead of random weights."""
    init_sha256: str | None = None
    """SHA-256 of those weights, recorded when the run begins; if given, the weights must have it."""

    def __post_init__(self) -> None:
        _check_words("", self)
        for name in ("steps", "batch", "validate_every", "checkpoint_every", "keep_checkpoints"):
            _require("", self, name, lambda v: v >= 1, "at least 1")
        for name in ("patience", "skip_nonfinite"):
            _require("", self, name, lambda v: v >= 0, "0 or more")
        check_seed(self.seed, below=2**32)
        _require("", self, "condition_dropout", lambda v: 0 <= v < 1, "0 to below 1")
        if self.condition_dropout and self.model.kind not in ("diffusion", "binomial-diffusion", "gaussian-chain"):
            raise DiffusionalError(
                f"condition_dropout is for networks that take no condition as well, of a diffusion or a gaussian-chain, got condition_dropout="
                f'{self.condition_dropout:g} for model.kind="{self.model.kind}"; leave it out'
            )
        _require("", self, "max_seconds", lambda v: v is None or v >= 0, "0 or more")
        if self.init_sha256 is not None and self.init_from is None:
            raise DiffusionalError(
                f"init_sha256={self.init_sha256} was given without init_from, the run folder whose weights it is the hash of; give both, or "
                "init_from only"
            )
        chain, model = self.schedule, self.model
        if chain.kind not in ("log_snr_linear", "learned") and chain.steps is None:
            raise DiffusionalError(
                f"expected schedule.steps, such as 1000, for schedule.kind={chain.kind!r}, which has betas, got none"
            )
        if chain.steps is None and (model.variance == "learned" or self.sampler == "second-moment"):
            raise DiffusionalError(
                f'expected schedule.steps, such as 1000, for model.variance="{model.variance}" and sampler="{self.sampler}", got continuous '
                "time, which has neither steps with a variance nor levels with costs"
            )
        if chain.ends == "learned" and chain.kind != "learned":
            raise DiffusionalError(f'expected schedule.kind="learned" for schedule.ends="learned", got "{chain.kind}"')
        if self.objective == "simple" and model.variance == "learned":
            raise DiffusionalError(
                'objective="simple" does not train the variance, but model.variance="learned" was given: use "hybrid" or "elbo"'
            )
        if self.objective == "hybrid" and model.variance != "learned":
            raise DiffusionalError(f'expected model.variance="learned" for objective="hybrid", got "{model.variance}"')
        if self.objective != "elbo" and chain.kind.startswith("learned"):
            raise DiffusionalError(
                f'expected objective="elbo" for schedule.kind="{chain.kind}", got "{self.objective}": a schedule must be trained by the bound, '
                "since other objectives favour the levels at which the noise is easiest to predict"
            )
        kind = model.kind
        if not kind.endswith("diffusion") and model.variance != "posterior":
            raise DiffusionalError(
                f'model.variance is for diffusion models, got "{model.variance}" for model.kind="{kind}": leave it out'
            )
        own = (model.attention, model.heads, model.scale_shift)
        sequences = kind in SEQUENCES
        if sequences:
            _check_sequences(self)
        elif model.network == "transformer":
            raise DiffusionalError(
                f'model.network="transformer" is for model.kind="masked" and "uniform", got "{kind}": leave it out'
            )
        if model.network != "ddpm" and own != ((), own[1] if sequences else 1, False):
            raise DiffusionalError(
                f'model.attention={own[0]}, heads={own[1]} and scale_shift={own[2]} are for network="ddpm", got network="{model.network}": use '
                "attention=(), heads=1 and scale_shift=False (--model.attention without a value is ())"
            )
        if kind == "binomial-diffusion" and (chain.steps is None or replace(chain, steps=None) != ScheduleConfig()):
            raise DiffusionalError(
                f'expected only schedule.steps, such as 100, for model.kind="{kind}", whose fixed rates erase 1/T of the signal in each step, '
                f"got schedule={chain}"
            )
        if kind == "vae-diffusion-prior" and (self.schedule.steps is None or self.latent.free_bits):
            raise DiffusionalError(
                f'expected schedule.steps, such as 500, and no latent.free_bits for model.kind="{kind}", whose KL divergence is estimated at '
                f"one level, got schedule.steps={self.schedule.steps} and latent.free_bits={self.latent.free_bits}"
            )
        if kind == "contrastive":
            _check_contrastive(self)
        if kind == "gaussian-chain":
            _check_gaussian_chain(self)
        elif model.shared:
            raise DiffusionalError(
                f'model.shared applies to model.kind="gaussian-chain", got model.kind="{kind}"; leave it out'
            )
        if kind.endswith("diffusion") and self.latent != LatentConfig():
            raise DiffusionalError(
                f'the latent options do not apply to model.kind="{kind}", which has no learned latent, got latent={self.latent}: leave them out'
            )
        if len(self.latent.sizes) > 1 and kind != "hierarchical-vae":
            raise DiffusionalError(
                f'expected one number as latent.sizes for model.kind="{kind}", got {self.latent.sizes}: several layers need "hierarchical-vae"'
            )
        if kind != "diffusion" and self.objective != "elbo":
            raise DiffusionalError(
                f'expected objective="elbo" for model.kind="{kind}", got "{self.objective}", which is for Gaussian diffusion models'
            )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready record; `from_dict` reads it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_dict(record: dict[str, Any]) -> "Config":
        """Return the config that `to_dict` described. Unknown keys and values of the wrong type are refused.

        >>> Config.from_dict({"steps": 10}).steps
        10
        >>> Config.from_dict({"stepz": 10})
        Traceback (most recent call last):
            ...
        diffusional.errors.DiffusionalError: unknown config key 'stepz'; did you mean 'steps'?
        """
        return _build(Config, record, "")

    @staticmethod
    def load(path: str | Path) -> "Config":
        """Read a config from a JSON file, such as the config.json of a run, or from a TOML file (.toml).

        Values that the file does not have are the defaults. Raises DiffusionalError, with the name of the file, if it cannot be read,
        and for unknown keys and wrong values.

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "vae.toml"
        >>> _ = path.write_text('steps = 500\\n[model]\\nkind = "vae"')
        >>> config = Config.load(path)
        >>> config.steps, config.model.kind
        (500, 'vae')
        """
        path = Path(path)
        if not path.exists() and not path.is_symlink():
            raise DiffusionalError(
                f"{path} does not exist; expected a config file, such as the config.json of a run folder"
            )
        record = load_toml(path) if path.suffix == ".toml" else load_json(path)
        try:
            return Config.from_dict(record)
        except DiffusionalError as error:
            raise DiffusionalError(f"{path}: {error}") from error


def _check_gaussian_chain(config: Config) -> None:
    """Raise DiffusionalError for options that a chain with free Gaussians does not have."""
    kind, model, latent = config.model.kind, config.model, config.latent
    if config.schedule.steps is None or config.schedule.steps < 2:
        raise DiffusionalError(
            f'model.kind="{kind}" needs at least 2 latents, got schedule.steps={config.schedule.steps}; give a small number, such as 5'
        )
    if model.predicts is not None or model.network not in (None, "mlp", "unet"):
        raise DiffusionalError(
            f'model.kind="{kind}" has networks that return a mean and a variance, of type mlp or unet, but model.predicts='
            f"{model.predicts} and model.network={model.network} were given; leave them out"
        )
    if latent != LatentConfig(decoder_variance=latent.decoder_variance):
        raise DiffusionalError(
            f'of the latent options, only latent.decoder_variance applies to model.kind="{kind}", got latent={latent}; leave the others '
            "out: the latents of a chain have the shape of the data"
        )


def _check_sequences(config: Config) -> None:
    """Raise DiffusionalError for options that a diffusion of sequences does not have."""
    model = config.model
    if model.network not in (None, "transformer") or (model.predicts, model.likelihood) != (None, None):
        raise DiffusionalError(
            f'expected no model.predicts and likelihood, and model.network="transformer", for model.kind="{model.kind}", got '
            f"{model.predicts}, {model.likelihood} and {model.network}; leave them out"
        )
    if replace(config.schedule, steps=None) != ScheduleConfig():
        raise DiffusionalError(
            f'expected only schedule.steps for model.kind="{model.kind}", got schedule={config.schedule}'
        )
    if config.latent != LatentConfig() or config.data.condition is not None:
        raise DiffusionalError(
            f'latent options and a condition do not apply to model.kind="{model.kind}", got latent={config.latent} and '
            f"data.condition={config.data.condition!r}; leave them out"
        )


def _check_contrastive(config: Config) -> None:
    """Raise DiffusionalError for options that a contrastive encoder does not have."""
    model, latent = config.model, config.latent
    if latent != LatentConfig(latent.sizes) or config.batch < 2:
        raise DiffusionalError(
            f'expected only latent.sizes of the latent options and a batch of at least 2 for model.kind="contrastive", got latent={latent} and '
            f"batch={config.batch}"
        )
    if (model.network, model.predicts, model.likelihood) != (None, None, None):
        raise DiffusionalError(
            'model.network, predicts and likelihood do not apply to model.kind="contrastive", got '
            f"{model.network}, {model.predicts} and {model.likelihood}; leave them out"
        )


def differences(a: Config, b: Config) -> list[str]:
    """Return lines "key: a → b" for every value that differs.

    >>> differences(Config(), Config(steps=7))
    ['steps: 2000 → 7']
    """

    def flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in record.items():
            out.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
        return out

    left, right = flat(a.to_dict()), flat(b.to_dict())
    return [f"{key}: {left[key]} → {right[key]}" for key in left if left[key] != right[key]]


# Options that may differ when a run is resumed: its end, its outputs, and its speed and memory.
_FREE = ("steps:", "max_seconds", "patience", "checkpoint_every", "keep_checkpoints", "skip_nonfinite", "system.")


def beside_data(found: list[str]) -> list[str]:
    """Return the `differences` outside the data's name and options: the data themselves are compared by their fingerprints.

    The presence of a condition is included, since it changes the model.

    >>> beside_data(["data.name: a.npy → b.npy", "steps: 2000 → 7"])
    ['steps: 2000 → 7']
    """
    return [line for line in found if not line.startswith("data.") or line.startswith("data.condition:")]


def matter(found: list[str]) -> list[str]:
    """Return those of `differences` that would change the run.

    >>> matter(["batch: 128 → 64", "steps: 2000 → 4000", "max_seconds: None → 60.0"])
    ['batch: 128 → 64']
    """
    return [line for line in found if not line.startswith(_FREE)]


def _build(kind: type[Any], record: dict[str, Any], prefix: str) -> Any:
    import difflib

    hints = typing.get_type_hints(kind)
    for key in record:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean '{prefix}{close[0]}'?" if close else f"known are {', '.join(hints)}"
            raise DiffusionalError(f"unknown config key {reprlib.repr(prefix + key)}; {hint}")
    values = {}
    for key, value in record.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise DiffusionalError(f"config key '{prefix}{key}' is {reprlib.repr(value)}; expected an object")
            values[key] = _build(typing.cast(type[Any], hint), value, f"{prefix}{key}.")
        else:
            values[key] = _checked(hint, value, prefix + key)
    return kind(**values)


def _checked(hint: Any, value: Any, name: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        (hint,) = [o for o in options if o is not type(None)]
        return _checked(hint, value, name)
    if origin is Literal:
        if value not in options:
            meant = word_hint(name, value)
            raise DiffusionalError(
                f"config key '{name}' is {reprlib.repr(value)}; expected one of {', '.join(map(repr, options))}"
                + ("" if meant is None else f". {meant}")
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise DiffusionalError(f"config key '{name}' is {reprlib.repr(value)}; expected a list")
        return tuple(_checked(options[0], v, name) for v in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):  # JSON has no such number, so that a run could not be saved with it
            raise DiffusionalError(f"config key '{name}' is {reprlib.repr(value)}; expected a finite number")
        return number
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise DiffusionalError(f"config key '{name}' is {reprlib.repr(value)}; expected {hint.__name__}")
    return value
