"""Configs of systems of several stages at the size of their papers, for `--composite unclip` and `--composite imagen`. Does not import torch.

The source of each value is beside it, and *Deviates* lists differences from the original. We have trained neither: `reduced` returns the
same system in small, which takes a step in seconds.
"""

from dataclasses import replace

from diffusional.training.composite_config import CompositeConfig
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, OptimizerConfig, ScheduleConfig

# No clipping of gradients.
_UNCLIPPED = 1e9


def unclip() -> CompositeConfig:
    """Return unCLIP (Ramesh et al. 2022) for 64×64 images with captions: CLIP, a diffusion prior of its embedding, and a diffusion decoder.

    --data.name is a data set with captions (docs/conditions.md). Values of the prior and the decoder are those of its Table 3 (App. C).

    Deviates: residual layers instead of transformers in the encoder and the prior (228 M and 216 M parameters, the latter instead of 1 B), and
    captions that are embedded by CLIP's frozen encoder of texts; the decoder has neither attention nor captions (564 M parameters instead
    of 3.5 B), gets z_1 of the prior instead of z_i, so that the system has a bound, MATH (28), and has no upsamplers to 256×256 and
    1024×1024; 319 learned dimensions instead of as many principal components; no gradient noise, no L2 penalty on the text's similarity
    when sampling; a warm-up.

    >>> unclip().stages["prior"].optimizer.lr
    0.00011
    """
    encoder = Config(
        # §2.1: ViT-H/16, whose width is 1280 and depth 32; §2.2: 319 principal components.
        model=ModelConfig(kind="contrastive", hidden=1280, blocks=32, dropout=0.0),
        latent=LatentConfig(sizes=(319,)),
        # Radford et al. 2021, Tables 18 and 19: Adam, β_2 0.98 and 4e-4 for the largest transformer, 2,000 steps of warm-up, weight decay 0.2,
        # cosine decay from the beginning.
        optimizer=OptimizerConfig(
            lr=4e-4, beta1=0.9, beta2=0.98, weight_decay=0.2, warmup=2000, flat=0.0, clip=_UNCLIPPED, ema=0.0
        ),
        # Radford et al. 2021, §2.5: 32 epochs of 400 M pairs in batches of 32,768.
        steps=390_000,
        batch=32_768,
        validate_every=10_000,
        checkpoint_every=10_000,
    )
    cosine = ScheduleConfig(kind="cosine", steps=1000)
    prior = Config(
        schedule=cosine,
        # Width 2048, depth 24; §2.2: predicts z_i, by squared error.
        model=ModelConfig(network="mlp", predicts="data", hidden=2048, blocks=24, dropout=0.0),
        objective="simple",
        sampler="uniform",
        optimizer=OptimizerConfig(
            lr=1.1e-4, beta1=0.9, beta2=0.96, weight_decay=6e-2, warmup=1000, flat=1.0, clip=_UNCLIPPED, ema=0.9999
        ),
        # §2.2: the text is dropped in 10 % of training.
        condition_dropout=0.1,
        steps=600_000,
        batch=4096,
        validate_every=10_000,
        checkpoint_every=10_000,
    )
    decoder = Config(
        schedule=cosine,
        # Channels 512 × (1, 2, 3, 4), depth 3; GLIDE's network (§2.1) learns the variance, with L_hybrid.
        model=ModelConfig(
            network="unet",
            widths=(512, 1024, 1536, 2048),
            blocks=3,
            dropout=0.0,
            predicts="noise",
            variance="learned",
            likelihood="discretized-gaussian",
        ),
        objective="hybrid",
        sampler="uniform",
        optimizer=OptimizerConfig(
            lr=1.2e-4, beta1=0.9, beta2=0.999, weight_decay=0.0, warmup=1000, flat=1.0, clip=_UNCLIPPED, ema=0.9999
        ),
        # §2.1: CLIP's embedding is dropped in 10 % of training.
        condition_dropout=0.1,
        steps=800_000,
        batch=2048,
        validate_every=10_000,
        checkpoint_every=10_000,
    )
    data = DataConfig(levels=256, size=64, condition="caption", text_encoder="openai/clip-vit-large-patch14")
    return CompositeConfig("unclip", {"encoder": encoder, "prior": prior, "decoder": decoder}, data)


def imagen() -> CompositeConfig:
    """Return Imagen (Saharia et al. 2022): captions → 64×64 → 256×256 → 1024×1024.

    --data.name is a data set with captions (docs/conditions.md). The networks are those of §4.1 and App. B and F.

    Deviates: 3.1 B, 475 M and 429 M parameters instead of 2 B, 600 M and 400 M; only the first stage gets the caption; heads of attention as wide as the layer instead of 64; AdamW instead of Adafactor for the
    first stage; the numbers of blocks of Efficient U-Nets, (2, 4, 8, 8), are 5 at each resolution, and all attention of the last stage is in
    the middle of its network; the last stage sees whole images, not crops of 256×256; noise-conditioning augmentation of one level in training
    and in sampling, whose bound is MATH (29a); the mean of blocks, rounded to 256 levels, instead of bilinear downscaling; no dynamic
    thresholding or guidance in the config (`sample --guidance`).

    >>> imagen().factors, list(imagen().stages)
    ((4, 4), ['base', 'middle', 'last'])
    """

    def stage(
        widths: tuple[int, ...], blocks: int, attention: tuple[int, ...], schedule: str, dropout: float
    ) -> Config:
        return Config(
            # App. F: cosine for the first two, linear for the last.
            schedule=ScheduleConfig(kind="cosine" if schedule == "cosine" else "linear", steps=1000),
            # §2.2: ε, in a squared error.
            model=ModelConfig(
                network="ddpm",
                widths=widths,
                blocks=blocks,
                attention=attention,
                dropout=0.0,
                predicts="noise",
                variance="posterior",
                likelihood="discretized-gaussian",
            ),
            objective="simple",
            sampler="uniform",
            # App. F: 1e-4 after 10,000 steps of linear warm-up; decay of the average 0.9999.
            optimizer=OptimizerConfig(
                lr=1e-4, beta1=0.9, beta2=0.999, weight_decay=0.0, warmup=10_000, flat=1.0, clip=1.0, ema=0.9999
            ),
            condition_dropout=dropout,
            # §4.1: 2.5 M steps of 2,048.
            steps=2_500_000,
            batch=2048,
            validate_every=10_000,
            checkpoint_every=10_000,
        )

    return CompositeConfig(
        "cascade",
        {
            # App. F.1: 512 × (1, 2, 3, 4), three blocks, attention at 32, 16 and 8; §4.1: the text is dropped in 10 % of training.
            "base": stage((512, 1024, 1536, 2048), 3, (32, 16, 8), "cosine", 0.1),
            # App. F.1: 128 × (1, 2, 4, 8), blocks (2, 4, 8, 8), attention at 32.
            "middle": stage((128, 256, 512, 1024), 5, (32,), "cosine", 0.0),
            "last": stage((128, 256, 512, 1024), 5, (), "linear", 0.0),
        },
        # §4.1: T5-XXL, frozen, with a sequence of vectors.
        DataConfig(levels=256, size=1024, condition="caption", text_encoder="google/t5-v1_1-xxl", text_form="tokens"),
        (4, 4),
        # §A.1: an augmentation level of 0.1 of the cosine schedule, α² = cos²(0.05 π), γ = ln((1 − α²)/α²).
        renoise=-3.69,
    )


def reduced(config: CompositeConfig, data: DataConfig) -> CompositeConfig:
    """Return a system with narrow networks, T = 10 and two steps of eight items for each stage, for other data, such as small images.

    What a stage is (its kind, network, prediction, variance, objective and condition) stays; a cascade's factors become 2.

    >>> small = reduced(imagen(), DataConfig(condition="caption", text_form="tokens"))
    >>> small.stages["base"].model.widths, small.stages["base"].model.network, small.factors
    ((8, 16), 'ddpm', (2, 2))
    """
    stages = {}
    for name, stage in config.stages.items():
        model = replace(stage.model, widths=(8, 16), blocks=1, attention=(), hidden=16)
        steps = None if stage.schedule.steps is None else 10
        own = replace(stage, model=model, schedule=replace(stage.schedule, steps=steps), steps=2, batch=8)
        latent = replace(stage.latent, sizes=(4,)) if stage.model.kind == "contrastive" else stage.latent
        stages[name] = replace(own, latent=latent, validate_every=2, checkpoint_every=2)
    return replace(config, stages=stages, data=data, factors=tuple(2 for _ in config.factors))
