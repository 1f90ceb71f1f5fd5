"""Configs of systems from the literature, as their authors defined them; docs/presets.md has the tables.

The source of each value is beside it, and *Deviates* lists differences from the original. The data set is CIFAR-10
(`hf:uoft-cs/cifar10`, from the Hub) or another one given by --data. We have trained none of them to the end. All of them have this
deviation: a tenth of the training images is held out, and the weights with the best bound on it are kept. Does not import torch.
"""

from diffusional.training.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig

_CIFAR10 = DataConfig(name="hf:uoft-cs/cifar10", levels=256)
# No clipping, as in systems whose authors do not clip.
_UNCLIPPED = 1e9


def ddpm() -> Config:
    """Return the system of Ho, Jain & Abbeel 2020: linear β, ε-prediction, L_simple, fixed variances. CIFAR-10, test NELBO ≤ 3.75 bits/dim (Table 1).

    Deviates: no horizontal flips (App. B); x̂ is not clipped to −1 … 1, unlike in the chains of the published bounds (released code);
    the decoder of z_1 has σ_1² = β_1 (§3.3), where the released code has the variance of q(z_1|z_2, x); the decay of the weight average warms up
    (min(0.9999, (1 + i)/(10 + i))).

    >>> ddpm().schedule.steps
    1000
    """
    return Config(
        data=_CIFAR10,
        # §4: T = 1000, β from 1e-4 to 0.02.
        schedule=ScheduleConfig(kind="linear", steps=1000, beta_start=1e-4, beta_end=0.02),
        model=ModelConfig(
            # App. B: 35.7 M parameters; four resolutions, two residual blocks at each, attention at 16×16; dropout 0.1.
            network="ddpm",
            widths=(128, 256, 256, 256),
            blocks=2,
            attention=(16,),
            dropout=0.1,
            # §3.2: ε, and σ_t² = β_t; the other choice, "posterior", gave similar results.
            predicts="noise",
            variance="transition",
            # §3.3, eq. 13: N(x̂, σ_1²) between the bins' edges.
            likelihood="discretized-gaussian",
        ),
        # App. B: Adam at 2e-4, decay of the average 0.9999; released code: 5,000 steps of warm-up, clipping at 1.
        optimizer=OptimizerConfig(
            lr=2e-4, beta1=0.9, beta2=0.999, weight_decay=0.0, warmup=5000, flat=1.0, clip=1.0, ema=0.9999
        ),
        # Eq. 14: L_simple, t uniform.
        objective="simple",
        sampler="uniform",
        # App. B: 800,000 steps of 128.
        steps=800_000,
        batch=128,
        validate_every=10_000,
        checkpoint_every=10_000,
    )


def iddpm() -> Config:
    """Return the system of Nichol & Dhariwal 2021: cosine schedule, learned interpolated variances, L_hybrid. CIFAR-10, T = 4000: 3.17 bits/dim (Table 2).

    `--objective elbo --sampler second-moment` is their L_vlb with its resampler: 2.94 bits/dim.

    Deviates: x̂ is not clipped, unlike in the chains of the published bounds; the time input of the network is t, not 1000 t/T, with DDPM's
    sines and cosines, whose lowest frequency is 1e-4 and whose order is reversed; norms have ε = 1e-6 as in DDPM, not 1e-5; L_vlb visits z_1
    with a fixed 1/32 of the items, and the resampler only chooses the other levels; the decay of the average warms up.

    >>> iddpm().objective
    'hybrid'
    """
    return Config(
        data=_CIFAR10,
        # §3.2, eq. 17; Table 2: T = 4000.
        schedule=ScheduleConfig(kind="cosine", steps=4000),
        model=ModelConfig(
            # App. A: 128 channels, multipliers 1, 2, 2, 2, three residual blocks, attention of four heads at 16×16 and 8×8, norms scaled and
            # shifted by the noise level; released flags: dropout 0.3 with the cosine schedule.
            network="ddpm",
            widths=(128, 256, 256, 256),
            blocks=3,
            attention=(16, 8),
            heads=4,
            scale_shift=True,
            dropout=0.3,
            predicts="noise",
            # §3.1, eq. 15.
            variance="learned",
            likelihood="discretized-gaussian",
        ),
        # App. A: Adam at 1e-4 and batches of 128, 500,000 steps, decay of the average 0.9999; neither warm-up nor clipping.
        optimizer=OptimizerConfig(
            lr=1e-4, beta1=0.9, beta2=0.999, weight_decay=0.0, warmup=0, flat=1.0, clip=_UNCLIPPED, ema=0.9999
        ),
        # §3.1, eq. 16: λ = 0.001, the mean held fixed in L_vlb; t uniform.
        objective="hybrid",
        sampler="uniform",
        steps=500_000,
        batch=128,
        validate_every=10_000,
        checkpoint_every=10_000,
    )


def vdm() -> Config:
    """Return the system of Kingma, Salimans, Poole & Ho 2021: continuous time, learned monotone γ with its end points. CIFAR-10: 2.65 bits/dim (Table 1).

    Deviates: data are in [−1, 1], not half a bin inside (a factor of 255/256; the Fourier features are scaled with the levels and have the
    same values at them); t is stratified over the batch and assigned to its items at random, not a shifted grid in their order; the units of
    γ are initially spread over [0, 1], and equal in the original; scales of norms and γ have no weight decay; the decay of the average warms
    up.

    >>> vdm().schedule.kind, vdm().schedule.steps
    ('learned', None)
    """
    return Config(
        data=_CIFAR10,
        # App. H: a monotone network of 1024 units, whose end points are learned by the bound (from −13.3 and 5) and whose shape by the
        # variance of its draw (App. I.2). (The released config has a straight line with learned end points.)
        schedule=ScheduleConfig(kind="learned", ends="learned", gamma_min=-13.3, gamma_max=5.0),
        model=ModelConfig(
            # App. B: depth 32, 128 channels, Fourier features, nothing downsampled, attention only in the middle; dropout 0.1.
            network="vdm",
            widths=(128,),
            blocks=32,
            dropout=0.1,
            predicts="noise",
            # §3.3: p(x|z_0) ∝ q(z_0|x).
            likelihood="level-posterior",
        ),
        # App. B: AdamW at 2e-4, β_2 = 0.99, decay 0.01, average 0.9999; released config: 100 steps of warm-up, no clipping.
        optimizer=OptimizerConfig(
            lr=2e-4, beta1=0.9, beta2=0.99, weight_decay=0.01, warmup=100, flat=1.0, clip=_UNCLIPPED, ema=0.9999
        ),
        # App. I.1: low-discrepancy t.
        sampler="stratified",
        # App. B: 10 million steps of 128.
        steps=10_000_000,
        batch=128,
        validate_every=50_000,
        checkpoint_every=10_000,
    )


def sohl_dickstein_2015() -> Config:
    """Return the system of Sohl-Dickstein et al. 2015: Gaussian diffusion whose rates β_2 … β_T are learned with frozen noise.

    CIFAR-10: ln p(x) ≥ 5.4 ± 0.2 bits per pixel of three colours, of data scaled to variance 1 (Table 1). Ho et al. 2020 list the same number
    as ≤ 5.40 bits/dim; in that unit it is −5.4/3 + log₂ 64.4 ≈ 4.2, where 64.4 levels are the data's standard deviation.

    Deviates: a small U-Net instead of convolutions at several scales with dense layers (App. D.2); ε̂ as its output, which gives the same
    family of means; a variance between that of the posterior and that of the transition (Nichol & Dhariwal), instead of
    sigmoid(Σ̂ + logit β_t); every β_t is free, as in §2.4.1, where the released code has ten fixed bumps over t; data are in [−1, 1] with a
    variance of 0.25 instead of 1, so that β_1 is a quarter of theirs for the same noise; Adam with clipping, a weight average and a constant
    rate instead of RMSProp with a decay; a decoder p(x|z_1) over the levels, where the original adds uniform noise to the data and evaluates
    the density of z_1.

    >>> sohl_dickstein_2015().schedule.kind
    'learned_betas'
    """
    return Config(
        data=_CIFAR10,
        # §2.4.1: β_1 fixed, "to prevent overfitting"; the others by gradient ascent on the bound. Released code: T = 1000, and β_1 = 0.002 (a
        # floor of 0.001, and the baseline above it) on data of four times this variance.
        schedule=ScheduleConfig(kind="learned_betas", steps=1000, beta_start=5e-4),
        model=ModelConfig(
            network="unet",
            widths=(64, 128),
            blocks=4,
            dropout=0.0,
            predicts="noise",
            variance="learned",
            likelihood="discretized-gaussian",
        ),
        # Released code: learning rate 1e-3; its command for CIFAR-10: 1,700 epochs in batches of 200.
        optimizer=OptimizerConfig(
            lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.0, warmup=100, flat=1.0, clip=1.0, ema=0.999
        ),
        # Eq. 13–14; the released code draws one uniform t for every batch, and this config one for every item.
        objective="elbo",
        sampler="uniform",
        steps=425_000,
        batch=200,
        validate_every=5000,
        checkpoint_every=5000,
    )


def sohl_dickstein_2015_binary() -> Config:
    """Return the system of Sohl-Dickstein et al. 2015 for binary data: binomial diffusion, β_t = 1/(T − t + 1), which erases 1/T per step.

    It is for any data of two levels (--data); theirs are sequences of 20 bits (heartbeats).

    Deviates: the network predicts x, and the reverse chain follows from Bayes' rule (docs/presets.md); it is a small U-Net, or an MLP for data
    that are not images, where theirs is an MLP of three layers of 50 with a readout for every step; T = 100, not 2000; the chain begins with
    fair coins, theirs with bits of the data's mean; Adam; the lengths and rates of training are ours.

    >>> sohl_dickstein_2015_binary().model.kind
    'binomial-diffusion'
    """
    return Config(
        data=DataConfig(levels=2),
        # §2.4.1 and Table App.1.
        schedule=ScheduleConfig(steps=100),
        model=ModelConfig(kind="binomial-diffusion", widths=(32, 64), blocks=2, dropout=0.0),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.0, warmup=100),
        sampler="uniform",
        steps=20_000,
        validate_every=1000,
        checkpoint_every=1000,
    )
