"""The typed configuration of a run, saved with it as config.json. Imports no torch, so that `--help` is instant."""

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
        raise DiffusionalError(f"{section}{'.' if section else ''}{name}={value} came; expected {expected}")


@dataclass(frozen=True)
class DataConfig:
    """Which data, and what they are."""

    name: str = "digits"
    """"digits" (embedded); a path: .npy, .npz, IDX, .csv, .parquet, a folder of images or tables; or hf:owner/name."""
    levels: int | None = None
    """How many integer levels arrays and tables have (256 for 8-bit images); real-valued data have none."""
    split_seed: int = 0
    """Seed of the split, where the file has none of its own."""
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Fractions of train, validation and test, if the file has no splits of its own."""
    warps: int = 0
    """Train on this many warped copies of each image and as many of the image itself (digits only)."""
    size: int | None = None
    """Side of images in pixels; without it all must be of one size."""
    fit: Literal["crop", "resize"] = "crop"
    """To this size: the centre square of an image, or all of it, whatever its aspect."""
    grey: Literal["auto", "yes", "no"] = "auto"
    """Make images greyscale, or RGB; auto takes them as they are, and refuses a mixture."""
    columns: tuple[str, ...] | None = None
    """Columns of a table, by name; None takes all."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of the numbers in a .csv or .tsv; None decides by the values, and refuses ambiguous ones."""
    column: str | None = None
    """The column of a Hub data set that holds the items; None takes the only one that can."""
    streaming: bool = False
    """Read a Hub data set while training, rather than download it first."""
    holdout: int = 1000
    """Items of a streamed data set's validation and test splits (taken off train where it has none)."""
    condition: str | None = None
    """Train a model of each class: "label" for the labels beside the data, or the name of a column or key that holds them."""

    def __post_init__(self) -> None:
        _check_words("data", self)
        _require("data", self, "warps", lambda v: v >= 0, "0 or more")
        check_seed(self.split_seed, "data.split_seed")
        _require("data", self, "size", lambda v: v is None or v >= 1, "at least 1 pixel")
        _require("data", self, "columns", lambda v: v is None or len(v) > 0, "one name or more")
        _require("data", self, "holdout", lambda v: v >= 1, "at least 1")
        _require("data", self, "condition", lambda v: v != "", "a name")
        if self.condition is not None and self.streaming:
            raise DiffusionalError(
                f"data.condition={self.condition!r} was given with data.streaming, but the labels of a stream are not read. Leave "
                "data.streaming out, so that the data are downloaded once, or leave data.condition out"
            )
        if self.warps and self.name != "digits":
            raise DiffusionalError(
                f"data.warps={self.warps} came for {self.name}; only the embedded digits can be warped"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """γ(u), and T."""

    kind: Literal["log_snr_linear", "linear", "cosine", "learned", "learned_betas"] = "log_snr_linear"
    """log-SNR-linear, or betas: DDPM's linear, improved DDPM's cosine; or learned: VDM's monotone network, or every β but the first."""
    steps: int | None = None
    """T latents; None trains in continuous time (log_snr_linear and learned only)."""
    gamma_min: float = -9.21
    """γ_1 = −log SNR of the cleanest latent (log_snr_linear, learned)."""
    gamma_max: float = 10.12
    """γ_T (log_snr_linear, learned)."""
    ends: Literal["fixed", "learned"] = "fixed"
    """Of a learned schedule: whether γ_1 and γ_T are learned as well, by the bound."""
    beta_start: float = 1e-4
    """β_1 (linear, learned_betas)."""
    beta_end: float = 0.02
    """β_T (linear)."""

    def __post_init__(self) -> None:
        _check_words("schedule", self)


@dataclass(frozen=True)
class ModelConfig:
    """The network and what it means."""

    kind: Literal[
        "diffusion", "binomial-diffusion", "gaussian-chain", "vae", "hierarchical-vae", "vae-diffusion-prior"
    ] = "diffusion"
    """binomial-diffusion flips bits (binary data). gaussian-chain has few steps with a free mean and variance each (schedule.steps).
    vae-diffusion-prior has a learned first latent, and a diffusion over it."""
    network: Literal["unet", "mlp", "ddpm", "vdm"] | None = None
    """None picks unet for images and mlp for anything else; always mlp for a gaussian-chain. ddpm: the U-Net of DDPM, by diffusers; vdm: one that never shrinks the image."""
    predicts: Literal["noise", "data", "v", "score", "levels"] | None = None
    """None picks levels for discrete data, v for real-valued data."""
    head: Literal["categorical", "logistic"] = "logistic"
    """Output parameterisation of a `levels` network."""
    likelihood: Literal["network-levels", "level-posterior", "discretized-gaussian", "gaussian", "bernoulli"] | None = (
        None
    )
    """p(x|z_1); None picks network-levels with a levels head, level-posterior for other discrete data, else gaussian."""
    variance: Literal["posterior", "transition", "learned"] = "posterior"
    """Of the backward chain: fixed at the posterior's or the transition's, or learned between the two."""
    widths: tuple[int, ...] = (32, 64)
    """U-Net channels at each resolution (one for vdm)."""
    blocks: int = 2
    """Residual blocks at the lowest resolution (unet), at each (ddpm), on the way in (vdm), or in all (mlp)."""
    hidden: int = 256
    """Width of the mlp."""
    attention: tuple[int, ...] = ()
    """Sides of the images at which ddpm's U-Net has self-attention."""
    heads: int = 1
    """Of that attention."""
    scale_shift: bool = False
    """ddpm's U-Net hears the noise level as a scale and a shift of its norms, not as a shift alone."""
    dropout: float = 0.2
    """Part of the activations set to 0 in training."""
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
    """Dimensions of z_1 … z_L, the one next to the data first; several for kind="hierarchical-vae" only."""
    warmup: float = 0.0
    """Part of the run in which the KL's weight rises from 0 to 1, as (step/end)²."""
    free_bits: float = 0.0
    """Nats for each layer that cost nothing in training (never in a bound)."""
    decoder_variance: float = 0.1
    """Of p(x|z) for real-valued data, and of likelihood="discretized-gaussian"; of p(x|z_1) for a gaussian-chain."""

    def __post_init__(self) -> None:
        _require("latent", self, "sizes", lambda v: v and all(n >= 1 for n in v), "one or more positive integers")
        _require("latent", self, "warmup", lambda v: 0 <= v <= 1, "0 to 1")
        _require("latent", self, "free_bits", lambda v: v >= 0, "0 or more")
        _require("latent", self, "decoder_variance", lambda v: 0 < v < math.inf, "a positive number")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, a plateau, and a cosine to zero."""

    lr: float = 2e-3
    """The largest learning rate."""
    beta1: float = 0.9
    """Decay of the gradients' mean."""
    beta2: float = 0.99
    """Decay of their squares' mean."""
    weight_decay: float = 0.01
    """Decoupled, per unit of learning rate."""
    warmup: int = 200
    """Steps from 0 to lr."""
    flat: float = 0.3
    """Part of the run after which the cosine begins."""
    clip: float = 1.0
    """Norm that gradients are clipped to."""
    ema: float = 0.999
    """Weight average: decay min(ema, (1 + i)/(10 + i)) at step i."""

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
    """How the machine does it: changes speed and memory, results to rounding only, so that a run may be resumed with others."""

    accumulate: int = 1
    """Parts that each process cuts its share of the batch into, one after the other, for want of memory."""
    compile: bool = False
    """torch.compile of the networks. Pays on a GPU; on a CPU it has not."""
    channels_last: bool = False
    """Image tensors in memory as N×H×W×C. Pays on a GPU with bf16."""
    recompute: bool = False
    """Activation checkpointing: blocks are computed again in the backward pass in place of being kept; a third more time."""

    def __post_init__(self) -> None:
        _require("system", self, "accumulate", lambda v: v >= 1, "at least 1")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    objective: Literal["elbo", "simple", "hybrid"] = "elbo"
    """"simple" is DDPM's L_simple, "hybrid" improved DDPM's L_hybrid, for a learned variance; neither is a bound."""
    sampler: Literal["stratified", "adaptive", "uniform", "second-moment"] = "adaptive"
    """Of the noise levels, MATH (22): changes the variance alone. second-moment is improved DDPM's resampler."""
    steps: int = 2000
    """Optimiser steps."""
    max_seconds: float | None = None
    """May only stop the run early."""
    batch: int = 128
    """Items of a step, over all processes and parts of it."""
    seed: int = 0
    """Of weights, batches, levels and noise."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the network; schedules and costs stay float64."""
    validate_every: int = 250
    """Steps from one validation bound to the next."""
    patience: int = 0
    """Stop after this many validations without a better bound; 0 never stops. The best weights are kept either way."""
    checkpoint_every: int = 500
    """Steps from one checkpoint to the next."""
    keep_checkpoints: int = 2
    """How many of the newest stay."""
    skip_nonfinite: int = 0
    """Leave out up to so many steps whose loss or gradient is not finite, and count them; 0 stops at the first."""
    init_from: str | None = None
    """Start from the trained (averaged) weights of this run folder rather than from random weights."""
    init_sha256: str | None = None
    """SHA-256 of those weights, recorded when the run begins; if given, the weights must have it."""

    def __post_init__(self) -> None:
        _check_words("", self)
        for name in ("steps", "batch", "validate_every", "checkpoint_every", "keep_checkpoints"):
            _require("", self, name, lambda v: v >= 1, "at least 1")
        for name in ("patience", "skip_nonfinite"):
            _require("", self, name, lambda v: v >= 0, "0 or more")
        check_seed(self.seed, below=2**32)
        _require("", self, "max_seconds", lambda v: v is None or v >= 0, "0 or more")
        if self.init_sha256 is not None and self.init_from is None:
            raise DiffusionalError(
                f"init_sha256={self.init_sha256} was given without init_from, the run folder whose weights it is the hash of; give both, or "
                "init_from only"
            )
        chain, model = self.schedule, self.model
        if chain.kind not in ("log_snr_linear", "learned") and chain.steps is None:
            raise DiffusionalError(
                f"schedule.kind={chain.kind!r} came without schedule.steps; betas need a T, such as 1000"
            )
        if chain.steps is None and (model.variance == "learned" or self.sampler == "second-moment"):
            raise DiffusionalError(
                f'model.variance="{model.variance}" and sampler="{self.sampler}" came in continuous time, which has neither steps of a '
                "variance of their own nor levels to keep costs of: give schedule.steps, such as 1000"
            )
        if chain.ends == "learned" and chain.kind != "learned":
            raise DiffusionalError(
                f'schedule.ends="learned" came with schedule.kind="{chain.kind}"; it is of kind "learned"'
            )
        if self.objective == "simple" and model.variance == "learned":
            raise DiffusionalError(
                'objective="simple" came with model.variance="learned", which it says nothing of: use "hybrid" or "elbo"'
            )
        if self.objective == "hybrid" and model.variance != "learned":
            raise DiffusionalError(
                f'objective="hybrid" came with model.variance="{model.variance}"; its bound trains a learned variance alone'
            )
        if self.objective != "elbo" and chain.kind.startswith("learned"):
            raise DiffusionalError(
                f'objective="{self.objective}" came with schedule.kind="{chain.kind}"; a schedule is learned by the bound alone, and no '
                'bound would go to where the noise is easiest to tell: use objective="elbo"'
            )
        kind = model.kind
        if not kind.endswith("diffusion") and model.variance != "posterior":
            raise DiffusionalError(
                f'model.variance="{model.variance}" came with model.kind="{kind}"; it is a diffusion model\'s: leave it out'
            )
        own = (model.attention, model.heads, model.scale_shift)
        if model.network != "ddpm" and own != ((), 1, False):
            raise DiffusionalError(
                f'model.attention={own[0]}, heads={own[1]} and scale_shift={own[2]} came with network="{model.network}"; they are of '
                'network="ddpm": give attention=(), heads=1 and scale_shift=False (--model.attention, and no more, is ())'
            )
        if kind == "binomial-diffusion" and (chain.steps is None or replace(chain, steps=None) != ScheduleConfig()):
            raise DiffusionalError(
                f'schedule={chain} came with model.kind="{kind}"; it has rates of its own, which erase 1/T of the signal a step, and wants '
                "schedule.steps alone, such as 100"
            )
        if kind == "vae-diffusion-prior" and (self.schedule.steps is None or self.latent.free_bits):
            raise DiffusionalError(
                f'schedule.steps={self.schedule.steps} and latent.free_bits={self.latent.free_bits} came with model.kind="{kind}"; it '
                "is evaluated at a T, such as 500, and its KL is known to one level's draw only: no free bits"
            )
        if kind == "gaussian-chain":
            _check_gaussian_chain(self)
        elif model.shared:
            raise DiffusionalError(
                f'model.shared applies to model.kind="gaussian-chain", got model.kind="{kind}"; leave it out'
            )
        if kind.endswith("diffusion") and self.latent != LatentConfig():
            raise DiffusionalError(f'latent={self.latent} came with model.kind="{kind}", which has no learned latent')
        if len(self.latent.sizes) > 1 and kind != "hierarchical-vae":
            raise DiffusionalError(
                f'latent.sizes={self.latent.sizes} came with model.kind="{kind}"; several layers are a "hierarchical-vae"'
            )
        if kind != "diffusion" and self.objective != "elbo":
            raise DiffusionalError(
                f'objective="{self.objective}" came with model.kind="{kind}"; it is a (Gaussian) diffusion model\'s'
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


# What may differ when a run is resumed: when it ends, what it leaves, how the machine does it.
_FREE = ("steps:", "max_seconds", "patience", "checkpoint_every", "keep_checkpoints", "skip_nonfinite", "system.")


def beside_data(found: list[str]) -> list[str]:
    """Return the `differences` outside the data's name and options: the data themselves are compared by their fingerprints.

    Whether there is a condition makes another model, whatever the data.

    >>> beside_data(["data.name: a.npy → b.npy", "steps: 2000 → 7"])
    ['steps: 2000 → 7']
    """
    return [line for line in found if not line.startswith("data.") or line.startswith("data.condition:")]


def matter(found: list[str]) -> list[str]:
    """Return those of `differences` that would make it another run.

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
