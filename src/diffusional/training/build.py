"""The data of a config, and its model over their space."""

import dataclasses
import math
import re
from typing import Any

import torch
from torch import nn

from diffusional import schedule as schedules
from diffusional.absorbing import Absorbing
from diffusional.binomial import BinomialDiffusion
from diffusional.condition_form import ConditionForm
from diffusional.conditions import repeated
from diffusional.data import Dataset, load
from diffusional.data.classes import LABEL
from diffusional.data.dataset import SPLITS, Source, Stream
from diffusional.data.derived import is_derived, with_derived
from diffusional.data.derived_stream import mapped
from diffusional.data.joint import split_condition, with_derived_first
from diffusional.data.texts import text_source, with_texts, written
from diffusional.data.warp import warped
from diffusional.errors import DiffusionalError
from diffusional.forward import GaussianDiffusion
from diffusional.models import likelihood as likelihoods
from diffusional.models.base import LatentVariableModel
from diffusional.models.binomial import BinomialDiffusionModel
from diffusional.models.composite import Downscale
from diffusional.models.contrastive import ContrastiveEncoder
from diffusional.models.denoiser import Denoiser, output_channels
from diffusional.models.diffusion import DiffusionModel
from diffusional.models.gaussian_chain import GaussianChain
from diffusional.models.hvae import HierarchicalVAE
from diffusional.models.masked import MaskedDiffusion
from diffusional.models.parameterization import Predicts
from diffusional.models.redrawn import UniformDiffusion
from diffusional.models.renoised import Renoised
from diffusional.models.time import Affine, TrainedIndex
from diffusional.models.vae import VAE, Autoencoder, decoder_output
from diffusional.networks import (
    MLP,
    ConditionAdapter,
    ConditionTower,
    Decoder,
    JointAdapter,
    Ladder,
    ResidualMLP,
    SequenceTransformer,
    UNet,
    VDMUNet,
    ddpm_unet,
)
from diffusional.redrawn import UniformNoise
from diffusional.space import Categorical, Continuous, Discrete, Space
from diffusional.timesteps import Adaptive, SecondMoment, Stratified, TimestepSampler, Uniform
from diffusional.training.config import (
    SEQUENCES,
    Config,
    DataConfig,
    LatentConfig,
    ModelConfig,
    ScheduleConfig,
    SystemConfig,
)

# Kinds of models of residual layers that are not diffusions of x.
_AUTOENCODERS = ("vae", "hierarchical-vae", "vae-diffusion-prior")


def build_dataset(config: DataConfig) -> Dataset:
    """Return the data of a config, including warped copies in the train split.

    >>> len(build_dataset(DataConfig(warps=1)).train)
    2000
    """
    first, other = split_condition(config.condition)
    if first is not None:
        assert config.condition is not None
        dataset = build_dataset(dataclasses.replace(config, condition=other))
        return with_derived_first(dataset, config.condition)
    derived = config.condition if config.downscale and is_derived(config.condition) else None
    text = text_source(config.condition, config.text_encoder)
    own: dict[str, Any] = {
        "condition": config.condition,
        "text_encoder": config.text_encoder,
        "text_form": config.text_form,
    }
    if derived is not None:
        own = {"condition": None}
    elif text is not None and config.warps:
        own = {"condition": LABEL}
    dataset = load(
        config.name,
        levels=config.levels,
        split=config.split,
        seed=config.split_seed,
        size=config.size,
        fit=config.fit,
        grey={"auto": None, "yes": True, "no": False}[config.grey],
        columns=config.columns,
        decimal=config.decimal,
        column=config.column,
        streaming=config.streaming,
        holdout=config.holdout,
        **own,
        alphabet=config.alphabet,
        length=config.length,
    )
    if config.warps:
        dataset = _warped(dataset, config)
        if text is not None:
            # After warping, since captions are written from what is measured on each image.
            dataset = with_texts(
                written(dataset), text[1], config.text_form, dict(dataset.arguments or {}) | _chosen(config)
            )
    if config.downscale:
        dataset = _downscaled(dataset, config.downscale)
    return dataset if derived is None else with_derived(dataset, derived)


def _chosen(config: DataConfig) -> dict[str, Any]:
    """Return the arguments of `load` for a condition of texts."""
    chosen = {"condition": config.condition, "text_encoder": config.text_encoder, "text_form": config.text_form}
    return {name: value for name, value in chosen.items() if value not in (None, "pooled")}


def _downscaled(dataset: Dataset, factors: tuple[int, ...]) -> Dataset:
    """Return the data set of images whose sides are divided by some factors, one after the other."""
    downs, train = successive(dataset.space, factors), dataset.train
    space, streamed = downs[-1].low, isinstance(train, Stream)
    splits: dict[str, Any] = {
        split: torch.cat([_down(downs, block) for block in dataset.blocks(split, 4096)])
        for split in (SPLITS[1:] if streamed else SPLITS)
    }
    if isinstance(train, Stream):
        whole, conditional = dataset.space, dataset.condition is not None

        def low(raw: torch.Tensor, epoch: int, first: int) -> torch.Tensor:
            return _down(downs, whole.encode(raw))

        splits["train"] = mapped(train, low, space.shape, torch.int64, ["downscale", *factors], conditional)
    source = dataset.source
    if source is not None:
        origins = {split: (splits[split], source.splits[split][1]) for split in SPLITS}
        if streamed:
            origins["train"] = source.splits["train"]
        arguments = None if source.arguments is None else dict(source.arguments) | {"downscale": factors}
        source = Source(origins, arguments, source.condition)
    return dataclasses.replace(dataset, space=space, **splits, source=source)


def successive(space: Space, factors: tuple[int, ...]) -> list[Downscale]:
    """Return the functions that divide the sides of images by some factors, one after the other."""
    downs: list[Downscale] = []
    for factor in factors:
        downs.append(Downscale(downs[-1].low if downs else space, factor))
    return downs


def _down(downs: list[Downscale], x: torch.Tensor) -> torch.Tensor:
    """Return raw values of encoded images x, downscaled."""
    for down in downs:
        x = down(x)
    return downs[-1].low.decode(x)


def _warped(dataset: Dataset, config: DataConfig) -> Dataset:
    """Return the data set with warped copies in the train split."""
    originals = dataset.tensor("train")
    copies = warped(originals, config.warps, config.split_seed).to(originals)
    train = torch.cat([originals.repeat(config.warps, 1, 1, 1), copies])
    assert dataset.source is not None
    splits = {split: kept for split, kept in dataset.source.splits.items() if split != "train"} | {
        "train": (train, None)
    }
    arguments = dict(dataset.arguments or {}) | {"seed": config.split_seed, "warps": config.warps}
    condition = dataset.condition
    if condition is not None:  # the labels of the originals, repeated like the originals
        condition = dict(condition) | {"train": repeated(condition["train"], 2 * config.warps)}
    source = Source(splits, arguments, condition)
    return dataclasses.replace(dataset, train=train, condition=condition, source=source)


def build_schedule(config: ScheduleConfig) -> schedules.Schedule:
    """Return the schedule of a config.

    >>> build_schedule(ScheduleConfig(kind="cosine", steps=100)).steps
    100
    """
    if config.kind == "log_snr_linear":
        return schedules.log_snr_linear(config.gamma_min, config.gamma_max, config.steps)
    if config.kind == "learned":
        return schedules.learned(config.gamma_min, config.gamma_max, config.steps, ends=config.ends)
    assert config.steps is not None  # checked by Config
    if config.kind == "linear":
        return schedules.linear(config.steps, config.beta_start, config.beta_end)
    if config.kind == "learned_betas":
        return schedules.learned_betas(config.steps, config.beta_start)
    return schedules.cosine(config.steps)


def build_model(
    config: Config, space: Space, classes: tuple[str, ...] = (), form: ConditionForm | None = None
) -> LatentVariableModel:
    """Build the untrained model of a config over a space.

    Args:
        classes: the names of the classes of the data, if `config.data.condition` is given: the networks then require a condition
            of labels (B,), their numbers. They are the `classes` of the model.
        form: the form of a condition other than labels.

    Raises DiffusionalError if config, space and classes do not fit each other.

    >>> model = build_model(Config(), Discrete((1, 8, 8), 17))
    >>> type(model).__name__, model.denoiser.predicts
    ('DiffusionModel', 'levels')
    >>> build_model(Config(data=DataConfig(condition="label")), Discrete((1, 8, 8), 17), ("cat", "dog")).classes
    ('cat', 'dog')
    """
    if form is not None and form.kind == "labels":
        form = None
    if (config.data.condition is None) != (not classes and form is None):
        raise DiffusionalError(
            f"data.condition={config.data.condition!r} and {len(classes)} classes were given; expected a condition and the classes "
            "of the data, or neither"
        )
    if config.model.kind == "contrastive":
        return _contrastive(config, space, classes, form)
    if form is not None and config.model.kind not in ("diffusion", *_AUTOENCODERS):
        raise DiffusionalError(
            f'model.kind="{config.model.kind}" takes class labels as condition, got {form}; use model.kind="diffusion", '
            f'{", ".join(_AUTOENCODERS)}, or data.condition="label"'
        )
    if config.condition_dropout and config.data.condition is None:
        raise DiffusionalError(
            f"condition_dropout={config.condition_dropout:g} was given for data without a condition; give the condition of the data, such as "
            'data.condition="label", or leave it out'
        )
    noise = config.model.condition_noise
    if noise is not None and config.model.kind != "diffusion":
        raise DiffusionalError(
            f'model.condition_noise is for model.kind="diffusion", got {noise:g} for "{config.model.kind}"; leave it out'
        )
    if noise is not None and (form is None or form.kind not in ("numbers", "image", "joint")):
        raise DiffusionalError(
            f"expected a condition of images or numbers for model.condition_noise={noise:g}, got {form or 'none'}; leave it out"
        )
    if form is not None:
        model = (_diffusion if config.model.kind == "diffusion" else _autoencoder)(config, space, 0, form)
        model.condition_form = form
        if noise is None:
            return model
        key, first = form.parts[0] if form.kind == "joint" else ("low", form)
        return Renoised(model, noise, first.shape, key)
    makers = {"diffusion": _diffusion, "binomial-diffusion": _binomial, "gaussian-chain": _gaussian_chain}
    makers |= dict.fromkeys(SEQUENCES, _sequences)
    model = makers.get(config.model.kind, _autoencoder)(config, space, len(classes))
    model.classes = classes
    return model


def _contrastive(
    config: Config, space: Space, classes: tuple[str, ...], form: ConditionForm | None
) -> ContrastiveEncoder:
    """Build an encoder of items and one of their conditions, each of residual layers."""
    if not classes and form is None:
        raise DiffusionalError(
            'expected a condition for model.kind="contrastive", whose encoder is trained on pairs of items and conditions, got none; give '
            'data.condition, such as "label"'
        )
    chosen = config.model
    (n,) = config.latent.sizes
    sizes = (n, chosen.hidden, chosen.blocks, chosen.dropout)
    tower = ConditionTower(form or ConditionForm("labels", classes=len(classes)), *sizes)
    model = ContrastiveEncoder(ResidualMLP(space.shape, *sizes), tower, space, config.batch)
    model.classes, model.condition_form = classes, form
    return model


def _diffusion(config: Config, space: Space, classes: int, form: ConditionForm | None = None) -> DiffusionModel:
    chosen = config.model
    discrete = isinstance(space, Discrete)
    predicts = chosen.predicts or ("levels" if discrete else "v")
    likelihood = chosen.likelihood or (
        "gaussian" if not discrete else "network-levels" if predicts == "levels" else "level-posterior"
    )
    # Tables of the schedule are numbers on the CPU also where the networks are built on the meta device, without memory.
    with torch.device("cpu"):
        forward, learns = GaussianDiffusion(build_schedule(config.schedule)), chosen.variance == "learned"
        least = _least_variance(forward) if learns else None
    kinds = {
        "network-levels": likelihoods.NetworkLevels,
        "level-posterior": likelihoods.LevelPosterior,
        # The decoder of Nichol & Dhariwal learns its variance like the chain, starting from that of q(z_1|z_2, x).
        "discretized-gaussian": lambda space: likelihoods.DiscretizedGaussian(space, least=least),
        "gaussian": likelihoods.GaussianLikelihood,
        "bernoulli": likelihoods.Bernoulli,
    }
    if likelihood == "network-levels" and predicts != "levels":
        raise DiffusionalError(
            f'expected model.predicts="levels" for model.likelihood="network-levels", got "{predicts}"'
        )
    channels = space.shape[0]
    outputs = output_channels(predicts, chosen.head, channels, space.levels, learns) // channels
    denoiser = Denoiser(
        _network(config, space, outputs, predicts, forward, classes, form),
        predicts,
        space if isinstance(space, Discrete) else None,
        chosen.head,
        _time(config.schedule, forward) if chosen.network == "ddpm" else None,
        learns,
    )
    return DiffusionModel(forward, denoiser, kinds[likelihood](space), chosen.variance)


def _binomial(config: Config, space: Space, classes: int) -> BinomialDiffusionModel:
    """Build a binomial diffusion with the rates of Sohl-Dickstein et al., whose network returns the log-odds of each bit."""
    chosen, plain = config.model, ModelConfig()
    if (chosen.predicts, chosen.likelihood, chosen.variance) != (plain.predicts, plain.likelihood, plain.variance):
        raise DiffusionalError(
            'model.predicts, likelihood and variance do not apply to model.kind="binomial-diffusion", whose network returns the '
            f'log-odds of every bit, got {chosen.predicts}, {chosen.likelihood} and "{chosen.variance}": leave them out'
        )
    if space.levels != 2:
        raise DiffusionalError(
            f'expected data of 2 levels for model.kind="binomial-diffusion", got {space.levels or "no"} levels: give binary data '
            '(--data.levels 2), or use kind="diffusion"'
        )
    assert config.schedule.steps is not None  # checked by Config
    network = _network(config, space, 1, None, None, classes)
    return BinomialDiffusionModel(BinomialDiffusion.constant(config.schedule.steps), network, space)


def _sequences(config: Config, space: Space, classes: int) -> MaskedDiffusion | UniformDiffusion:
    """Build a masked or a uniform diffusion of sequences, with a transformer."""
    chosen, steps = config.model, config.schedule.steps
    if not isinstance(space, Categorical):
        raise DiffusionalError(
            f'expected sequences of tokens for model.kind="{chosen.kind}", got {space}: give a text (--data text, or a .txt file), or '
            'data.alphabet="tokens" for a .npy of tokens'
        )
    uniform, (length, k) = chosen.kind == "uniform", (space.shape[0], space.levels)
    network = SequenceTransformer(k, length, chosen.hidden, chosen.blocks, chosen.heads, chosen.dropout, timed=uniform)
    if uniform:
        return UniformDiffusion(network, space, UniformNoise(k, steps))
    return MaskedDiffusion(network, space, None if steps is None else Absorbing(k, steps))


def _gaussian_chain(config: Config, space: Space, classes: int) -> GaussianChain:
    """Build a chain with a network for every step, or one that they share, and a decoder network of the same size."""
    chosen, plain = config.model, LatentConfig()
    discrete, variance = isinstance(space, Discrete), config.latent.decoder_variance
    name = chosen.likelihood or ("network-levels" if discrete else "gaussian")
    kinds = {
        "network-levels": lambda: likelihoods.NetworkLevels(space),
        "discretized-gaussian": lambda: likelihoods.DiscretizedGaussian(space, variance),
        "gaussian": lambda: likelihoods.GaussianLikelihood(space, variance),
    }
    if name not in kinds:
        raise DiffusionalError(
            f'expected model.likelihood to be one of {", ".join(kinds)} for model.kind="{chosen.kind}", got "{name}"'
        )
    if name == "network-levels" and variance != plain.decoder_variance:
        raise DiffusionalError(
            f'latent.decoder_variance={variance} does not apply to model.likelihood="{name}", whose network returns the probability of '
            "every level; leave it out"
        )
    config = dataclasses.replace(config, model=dataclasses.replace(chosen, network=chosen.network or "mlp"))
    predicts: Predicts = "levels" if name == "network-levels" else "data"
    outputs = output_channels(predicts, chosen.head, space.shape[0], space.levels) // space.shape[0]
    decoder = Denoiser(
        _network(config, space, outputs, predicts, None, classes),
        predicts,
        space if isinstance(space, Discrete) else None,
        chosen.head,
    )
    assert config.schedule.steps is not None  # checked by Config
    n = 1 if chosen.shared else config.schedule.steps - 1
    networks = [_network(config, space, 2, None, None, classes) for _ in range(n)]
    return GaussianChain(GaussianDiffusion(build_schedule(config.schedule)), networks, decoder, kinds[name]())


def _least_variance(forward: GaussianDiffusion) -> float:
    """Return the variance of q(z_1|z_2, x)."""
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    return float(forward.posterior(nothing, nothing, 1).variance.detach())


def _time(config: ScheduleConfig, forward: GaussianDiffusion) -> Affine | TrainedIndex:
    """Return the time input of ddpm's U-Net: the number of the latent, from 0 on; in continuous time, 0 to 1000, linear in γ."""
    if config.steps is not None:
        return TrainedIndex(forward.schedule)
    low, high = forward.schedule.ends().detach().tolist()
    return Affine(-1000 / (high - low), -1000 * low / (high - low))


def _autoencoder(config: Config, space: Space, classes: int, form: ConditionForm | None = None) -> Autoencoder:
    """Build a VAE, with or without a diffusion prior, or a hierarchical VAE, of residual layers."""
    chosen, latent = config.model, config.latent
    name = chosen.likelihood or ("network-levels" if isinstance(space, Discrete) else "gaussian")
    kinds = {
        "network-levels": lambda: likelihoods.NetworkLevels(space),
        "discretized-gaussian": lambda: likelihoods.DiscretizedGaussian(space, latent.decoder_variance),
        "gaussian": lambda: likelihoods.GaussianLikelihood(space, latent.decoder_variance),
    }
    if name not in kinds or chosen.predicts is not None or chosen.network not in (None, "mlp"):
        raise DiffusionalError(
            f'expected model.likelihood to be one of {", ".join(kinds)}, and no predicts and network, for model.kind="{chosen.kind}", got '
            f'"{name}", {chosen.predicts} and {chosen.network}'
        )
    if form is not None and (form.kind == "joint" or (form.kind == "image" and chosen.kind == "vae-diffusion-prior")):
        raise DiffusionalError(
            f'model.kind="{chosen.kind}" does not take a condition of {form}; use model.kind="diffusion"'
            + (', "vae" or "hierarchical-vae"' if form.kind == "image" else ", or one condition")
        )
    likelihood = kinds[name]()
    channels = output_channels(decoder_output(likelihood), chosen.head, space.shape[0], space.levels)
    out_shape = (channels, *space.shape[1:])
    sizes = (chosen.hidden, chosen.blocks, chosen.dropout)
    if chosen.kind == "hierarchical-vae":
        ladder = Ladder(space.shape, out_shape, latent.sizes, *sizes, classes=classes, form=form)
        return HierarchicalVAE(ladder, likelihood, head=chosen.head)
    (n,) = latent.sizes
    encoder = ResidualMLP(space.shape, 2 * n, *sizes, classes=classes, form=form)
    decoder = Decoder(n, out_shape, *sizes, classes=classes, form=form)
    chain = None
    if chosen.kind == "vae-diffusion-prior":
        over = Continuous((n,))
        width = 0 if form is None else form.shape[-1]
        network: nn.Module = MLP((n,), 1, *sizes, condition_dim=width, classes=classes)
        denoiser = Denoiser(network if form is None else ConditionAdapter(network, form), "v")
        chain = DiffusionModel(
            GaussianDiffusion(build_schedule(config.schedule)),
            denoiser,
            likelihoods.GaussianLikelihood(over, assisted=False),
        )
    return VAE(encoder, decoder, likelihood, n, head=chosen.head, prior=chain)


def _network(
    config: Config,
    space: Space,
    outputs: int,
    predicts: Predicts | None,
    forward: GaussianDiffusion | None,
    classes: int,
    form: ConditionForm | None = None,
) -> nn.Module:
    if form is None:
        return _backbone(config, space, outputs, predicts, forward, classes, config.condition_dropout > 0)
    null = config.condition_dropout > 0
    image = len(space.shape) == 3
    if form.kind == "image" and (not image or config.model.network == "mlp"):
        raise DiffusionalError(
            f"an image as condition needs a U-Net over images, got items of shape {space.shape} and model.network="
            f"{config.model.network or 'mlp'}; use unet, vdm or ddpm, or flatten the condition to numbers"
        )
    if form.kind == "joint":
        return _joint_network(config, space, outputs, predicts, forward, form)
    attention = form.kind == "tokens" and config.model.network == "ddpm"
    if form.kind == "numbers" and config.model.network == "ddpm":
        raise DiffusionalError(
            'model.network="ddpm" takes labels, images and tokens as condition, got numbers; use unet, vdm or mlp, or for texts '
            'data.text_form="tokens"'
        )
    network = _backbone(
        config,
        space,
        outputs,
        predicts,
        forward,
        null=null and form.kind != "image" and not attention,
        condition_dim=0 if form.kind == "image" or attention else form.shape[-1],
        extra=ConditionAdapter.channels(form, null),
        tokens=form.shape[-1] if attention else 0,
    )
    return ConditionAdapter(network, form, null, attention)


def _joint_network(
    config: Config,
    space: Space,
    outputs: int,
    predicts: Predicts | None,
    forward: GaussianDiffusion | None,
    form: ConditionForm,
) -> nn.Module:
    """Build a network for the variable of the stage before and another condition."""
    null, (_, first) = config.condition_dropout > 0, form.parts[0]
    if config.model.network == "ddpm" or (
        first.kind == "image" and (len(space.shape) != 3 or config.model.network == "mlp")
    ):
        raise DiffusionalError(
            f"expected model.network to be unet or vdm, or mlp without images, for a condition of {form}, got {config.model.network}"
        )
    width, extra = JointAdapter.numbers(form, null), JointAdapter.channels(form)
    network = _backbone(config, space, outputs, predicts, forward, condition_dim=width, extra=extra)
    return JointAdapter(network, form, null)


def _backbone(
    config: Config,
    space: Space,
    outputs: int,
    predicts: Predicts | None,
    forward: GaussianDiffusion | None,
    classes: int = 0,
    null: bool = False,
    condition_dim: int = 0,
    extra: int = 0,
    tokens: int = 0,
) -> nn.Module:
    """Build the network of a config: for labels of `classes`, `condition_dim` numbers, `extra` input channels, or tokens of a width."""
    chosen = config.model
    image = len(space.shape) == 3
    kind = chosen.network or ("unet" if image else "mlp")
    if kind == "mlp":
        return MLP(
            space.shape,
            outputs,
            chosen.hidden,
            chosen.blocks,
            chosen.dropout,
            condition_dim,
            classes=classes,
            null=null,
        )
    if not image:
        raise DiffusionalError(f'model.network="{kind}" expects items of shape (C, H, W), got {space.shape}: use mlp')
    if kind != "unet" and forward is None:
        raise DiffusionalError(
            f'model.network="{kind}" is for Gaussian diffusion models, got model.kind="{chosen.kind}": use unet or mlp'
        )
    if kind == "unet" and max(space.shape[1:]) == 1 and chosen.widths[0] == 8:
        raise DiffusionalError(
            f'network="unet" needs model.widths of at least 16 for items of shape {space.shape}, got {chosen.widths[0]}: the norm of a '
            'single pixel of a single channel is constant. Use wider layers, or model.network="mlp"'
        )
    if kind == "ddpm":
        c, h, w = space.shape
        return ddpm_unet(
            c,
            (h, w),
            outputs,
            chosen.widths,
            chosen.blocks,
            chosen.attention,
            chosen.heads,
            chosen.dropout,
            chosen.scale_shift,
            classes,
            null,
            extra,
            tokens,
        )
    if kind == "vdm":
        assert forward is not None
        width, *others = chosen.widths
        if others:
            raise DiffusionalError(
                f'expected one width for model.network="vdm", which has one resolution, got model.widths={chosen.widths}'
            )
        # Neighbouring levels differ by half a turn and a full turn, as in the paper, where they are 2/256 apart, for n = 6 and 7.
        turn = -math.log2(space.width) if isinstance(space, Discrete) else 7
        low, high = forward.schedule.ends().detach().tolist()
        return VDMUNet(
            space.shape[0],
            outputs,
            width,
            chosen.blocks,
            dropout=chosen.dropout,
            gamma_min=low,
            gamma_max=high,
            fourier=(turn - 1, turn),
            adds_input=predicts == "noise",
            condition_dim=condition_dim,
            classes=classes,
            null=null,
            extra=extra,
        )
    return UNet(
        space.shape[0], outputs, chosen.widths, chosen.blocks, chosen.dropout, condition_dim, classes, null, extra
    )


def build_sampler(config: Config) -> TimestepSampler:
    """Return the sampler of noise levels of a config."""
    kinds = {"uniform": Uniform, "stratified": Stratified, "adaptive": Adaptive, "second-moment": SecondMoment}
    return kinds[config.sampler]()


def prepare_networks(model: LatentVariableModel, system: SystemConfig, device: torch.device) -> None:
    """Prepare the networks of a model for the options of `system`, which do not change their results.

    >>> model = build_model(Config(), Discrete((1, 8, 8), 17))
    >>> prepare_networks(model, SystemConfig(recompute=True), torch.device("cpu"))
    >>> model.denoiser.module.recompute
    True
    """
    networks = [
        module
        for name, module in model.named_modules()
        if _NETWORKS.fullmatch(name) and not isinstance(module, Denoiser)
    ]
    for network in networks:
        if system.recompute:
            if not hasattr(network, "recompute"):
                raise DiffusionalError(
                    f"system.recompute is not available for a {type(network).__name__}; leave it out"
                )
            setattr(network, "recompute", True)  # noqa: B010
        if system.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if system.compile:
            network.compile(dynamic=False if device.type == "cuda" else None)


# Attributes of models that are their networks.
_NETWORKS = re.compile(r"((chain|model)\.)?denoiser\.module|network|networks\.\d+|encoder|decoder(\.module)?|ladder")
