"""diffusers' AutoencoderKL as the frozen encoder and decoder of a latent diffusion, against its own methods."""

import pytest
import torch
from torch import nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.networks import KLDecoder, KLEncoder

diffusers = pytest.importorskip("diffusers")

DIGITS = df.Discrete((1, 8, 8), 17)


@pytest.fixture(scope="module", params=[(0.3, None), (2.0, 0.7)], ids=["scale", "scale and shift"])
def autoencoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    scale, shift = request.param
    model = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=2,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )
    return model.eval().requires_grad_(False)


def prior(steps: int = 5) -> df.DiffusionModel:
    process = df.GaussianDiffusion(schedule.log_snr_linear(-3.0, 3.0, steps))
    space = df.Continuous((2, 4, 4))
    decoder = likelihood.GaussianLikelihood(space, variance=0.1, assisted=False)
    return df.DiffusionModel(process, df.Denoiser(lambda z, log_snr: 0 * z, "v"), decoder)


def test_its_latents_are_those_of_pipelines(autoencoder: nn.Module) -> None:
    """A pipeline of diffusers gives its network (z − shift) · scale, and decodes y / scale + shift."""
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    config, its = autoencoder.config, autoencoder.encode(x).latent_dist
    shift = config.shift_factor or 0.0
    mean, log_std = KLEncoder(autoencoder)(x).chunk(2, 1)
    torch.testing.assert_close(mean, (its.mean - shift) * config.scaling_factor)
    torch.testing.assert_close(log_std.exp(), its.std * config.scaling_factor)
    assert KLEncoder(autoencoder, mean=True)(x).equal(mean)
    torch.testing.assert_close(KLDecoder(autoencoder)(mean), autoencoder.decode(its.mean).sample)


def test_the_bound_of_a_latent_diffusion(autoencoder: nn.Module) -> None:
    """Stochastic: the VAE with the same parts. Deterministic: finite, and without the entropy."""
    decoder = likelihood.DiscretizedGaussian(DIGITS, 0.1)
    direct = df.DirectModel(KLDecoder(autoencoder), decoder)
    latent = df.FrozenPosterior(KLEncoder(autoencoder), prior(), direct)
    vae = df.VAE(KLEncoder(autoencoder), KLDecoder(autoencoder), decoder, (2, 4, 4), prior=prior())
    x = DIGITS.encode(torch.randint(17, (4, 1, 8, 8), generator=torch.Generator().manual_seed(2)))
    noise = torch.randn(4, 32 + 5 * 32, generator=torch.Generator().manual_seed(3))
    ours, its = latent.terms(x, noise), vae.terms(x, noise)
    torch.testing.assert_close(ours.nelbo, its.nelbo)
    torch.testing.assert_close(ours.totals()["prior.encoder_entropy"], its.extra["encoder_entropy"])
    torch.testing.assert_close(ours.totals()["decoder.reconstruction"], its.reconstruction)
    fixed = df.FrozenEncoder(KLEncoder(autoencoder, mean=True), prior(), direct)
    result = df.evaluate(fixed, x, visits=3, plan=df.Plan.uniform(fixed), audit=False)
    assert "prior.encoder_entropy" not in result.terms
    assert fixed.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, 8, 8)


def test_another_network_is_refused() -> None:
    for kind in (KLEncoder, KLDecoder):
        with pytest.raises(df.DiffusionalError, match=r"AutoencoderKL.*Linear"):
            kind(nn.Linear(2, 2))
