"""DDPM's U-Nets through diffusers: built as the papers say, for images of any size, zero at the start."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from battery import generator
from diffusional.errors import DiffusionalError
from diffusional.networks import FromDiffusers, ddpm_unet

SMALL: dict[str, Any] = {"widths": (8, 16, 16), "blocks": 1, "attention": (8,)}


def perturbed(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(2)))
    return network


def inputs(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(3, *shape, generator=generator(1)), torch.tensor([0, 500, 999])


def expected_count(
    channels: int, outputs: int, widths: tuple[int, ...], blocks: int, attends: tuple[bool, ...], scale_shift: bool
) -> int:
    """Parameters, by the paper's description."""
    level, last = 4 * widths[0], len(widths) - 1

    def conv(i: int, o: int, side: int = 3) -> int:
        return i * o * side * side + o

    def block(i: int, o: int) -> int:
        project = (level + 1) * o * (2 if scale_shift else 1)
        return 2 * i + conv(i, o) + project + 2 * o + conv(o, o) + (conv(i, o, 1) if i != o else 0)

    def attention(w: int) -> int:
        return 2 * w + 4 * (w * w + w)

    total = (widths[0] + 1) * level + (level + 1) * level + conv(channels, widths[0])
    skips, now = [widths[0]], widths[0]
    for i, w in enumerate(widths):
        for _ in range(blocks):
            total += block(now, w) + attends[i] * attention(w)
            now = w
            skips.append(w)
        if i < last:
            total += conv(w, w)
            skips.append(w)
    total += 2 * block(now, now) + attention(now)
    for i in reversed(range(len(widths))):
        for _ in range(blocks + 1):
            total += block(now + skips.pop(), widths[i]) + attends[i] * attention(widths[i])
            now = widths[i]
        total += conv(now, now) if i else 0
    assert not skips
    return total + 2 * now + conv(now, outputs)


@pytest.mark.parametrize(
    ("options", "attends", "millions"),
    [
        ({}, (False, True, False, False), 35.7),  # Ho et al. 2020, App. B: 35.7 million parameters
        (
            {"outputs": 2, "blocks": 3, "attention": (16, 8), "heads": 4, "scale_shift": True},
            (False, True, True, False),
            0,
        ),
    ],
    ids=["DDPM", "improved DDPM"],
)
def test_cifar10_networks_have_the_papers_sizes(
    options: dict[str, Any], attends: tuple[bool, ...], millions: float
) -> None:
    with torch.device("meta"):
        network = ddpm_unet(3, (32, 32), **options)
    count = sum(p.numel() for p in network.parameters())
    outputs, blocks = 3 * options.get("outputs", 1), options.get("blocks", 2)
    assert count == expected_count(3, outputs, (128, 256, 256, 256), blocks, attends, options.get("scale_shift", False))
    if millions:
        assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("scale_shift", [False, True], ids=["ddpm", "improved"])
def test_weights_begin_and_strides_pad_as_their_authors(scale_shift: bool) -> None:
    """DDPM: U(−a, a), a² = 6/(inputs + outputs), biases 0, padding below and right (TensorFlow); improved DDPM: torch's."""
    torch.manual_seed(0)
    network = ddpm_unet(3, (32, 32), widths=(32, 64), attention=(), scale_shift=scale_shift).network
    strided = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert [m.padding for m in strided] == [(1, 1) if scale_shift else (0, 0)]
    for layer in (network.down_blocks[0].resnets[0].conv1, network.down_blocks[1].resnets[0].conv_shortcut):
        inside = layer.kernel_size[0] * layer.kernel_size[1]
        ddpm = 6 / (inside * (layer.in_channels + layer.out_channels))
        # torch's kaiming_uniform_ with a = √5.
        improved = 1 / (inside * layer.in_channels)
        bound = (improved if scale_shift else ddpm) ** 0.5
        assert 0.98 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert bool(layer.bias.any()) == scale_shift


def test_heads_norms_and_blocks_are_as_asked() -> None:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    network = ddpm_unet(1, (32, 32), heads=2, attention=(16, 8), scale_shift=True, dropout=0.3, widths=(8, 16, 16, 16))
    attentions = [m for m in network.modules() if isinstance(m, Attention)]
    assert [m.heads for m in attentions] == [2] * (2 + 2 + 3 + 3 + 1)
    assert all(m.group_norm is not None for m in attentions)
    resnets = [m for m in network.modules() if isinstance(m, ResnetBlock2D)]
    assert len(resnets) == 4 * 2 + 2 + 4 * 3
    assert {m.time_embedding_norm for m in resnets} == {"scale_shift"}
    assert {m.dropout.p for m in resnets} == {0.3}
    alone = ddpm_unet(1, (32, 32), attention=(), widths=(8, 16, 24))
    assert [(m.heads, m.to_q.out_features) for m in alone.modules() if isinstance(m, Attention)] == [(1, 24)]


def test_the_noise_level_is_told_as_in_ddpm() -> None:
    """sin, then cos, of t · 10⁻⁴ⁱᐟ⁽ʰ⁻¹⁾, i = 0 … h − 1, h half the first width; and images are halved from their first pixel on."""
    network = ddpm_unet(1, (16, 16), widths=(8, 16), blocks=1, attention=()).double()
    heard: list[tuple[Tensor, ...]] = []
    network.network.time_embedding.register_forward_pre_hook(lambda _, arguments: heard.append(arguments))  # type: ignore[union-attr, operator]
    halved: list[tuple[nn.Module, Tensor, Tensor]] = []
    from diffusers.models.downsampling import Downsample2D

    for module in network.modules():
        if isinstance(module, Downsample2D):
            module.register_forward_hook(lambda m, arguments, out: halved.append((m, arguments[0], out)))
    t = torch.tensor([0.0, 3.0, 999.0]).double()
    network(torch.randn(3, 1, 16, 16, generator=generator(1)).double(), t)
    angles = t[:, None] * torch.tensor([1.0, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4]).double()
    torch.testing.assert_close(heard[0][0], torch.cat([angles.sin(), angles.cos()], dim=1), rtol=0, atol=1e-4)
    ((module, h, out),) = halved
    by_hand = nn.functional.conv2d(nn.functional.pad(h, (0, 1, 0, 1)), module.conv.weight, module.conv.bias, stride=2)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(out, by_hand)
    assert {m.eps for m in network.modules() if isinstance(m, nn.GroupNorm)} == {1e-6}


def test_attention_is_at_the_same_resolutions_on_both_ways() -> None:
    network = ddpm_unet(1, (32, 32), attention=(16,), widths=(8, 16, 16, 16)).network
    where = [["Attn" in type(block).__name__ for block in way] for way in (network.down_blocks, network.up_blocks)]
    assert where == [[False, True, False, False], [False, False, True, False]]  # sides 32, 16, 8, 4, and back


@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_noise_level_is_heard_in_narrow_networks_too(scale_shift: bool) -> None:
    network = perturbed(ddpm_unet(1, (16, 16), **SMALL, scale_shift=scale_shift)).eval()
    z, time = inputs(1, 16, 16)
    moved = (network(z, time + torch.tensor([0, 7, 0])) - network(z, time)).abs().flatten(1).amax(1)
    assert (moved > 1e-4).tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 14, 14), (2, 13, 7), (1, 3, 16)])
def test_images_of_any_size(shape: tuple[int, ...]) -> None:
    network = perturbed(ddpm_unet(shape[0], (16, 16), 2, **SMALL))
    z, time = inputs(*shape)
    z.requires_grad_()
    out = network(z, time)
    assert out.shape == (3, 2 * shape[0], *shape[1:])
    (by_z,) = torch.autograd.grad(out[1].square().sum(), [z])
    assert bool((by_z[1] != 0).all())
    assert not by_z[[0, 2]].any()


def test_padding_is_even_zero_and_cropped() -> None:
    class Recorder(nn.Module):
        def forward(self, z: Tensor, time: Tensor) -> SimpleNamespace:
            self.seen = z
            return SimpleNamespace(sample=2 * z)

    z = torch.rand(3, 1, 13, 16, generator=generator(3)) + 1
    for multiple, sides, place in (
        (8, (16, 16), (1, 0)),
        (4, (16, 16), (1, 0)),
        (1, (13, 16), (0, 0)),
        (20, (20, 20), (3, 2)),
    ):
        recorder = Recorder()
        out = FromDiffusers(recorder, multiple=multiple)(z, torch.zeros(3))
        assert torch.equal(out, 2 * z)
        assert recorder.seen.shape == (3, 1, *sides)
        inside = recorder.seen[..., place[0] : place[0] + 13, place[1] : place[1] + 16]
        assert torch.equal(inside, z)
        assert float(recorder.seen.sum()) == pytest.approx(float(z.sum()))


def test_padded_or_not_is_the_same_network() -> None:
    """What is padded by hand, and cropped by hand."""
    network = perturbed(ddpm_unet(1, (14, 14), **SMALL)).eval()
    z, time = inputs(1, 14, 14)
    by_hand = network(nn.functional.pad(z, (1, 1, 1, 1)), time)
    torch.testing.assert_close(network(z, time), by_hand[..., 1:-1, 1:-1])


def test_a_new_network_says_zero_and_every_weight_learns() -> None:
    network = ddpm_unet(1, (16, 16), **SMALL)
    z, time = inputs(1, 16, 16)
    assert not network(z, time).any()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(z, time) - 1).square().mean().backward()
        optimizer.step()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_new_blocks_say_what_they_hear() -> None:
    """Residual blocks and attention begin as their shortcuts: the last layers inside start at zero."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    network = ddpm_unet(1, (16, 16), **SMALL)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            h = torch.randn(2, module.in_channels, 4, 4, generator=generator(4))
            shortcut = h if module.conv_shortcut is None else module.conv_shortcut(h)
            assert torch.equal(module(h, torch.randn(2, 32, generator=generator(5))), shortcut)
        elif isinstance(module, Attention):
            h = torch.randn(2, module.to_q.in_features, 4, 4, generator=generator(4))
            assert torch.equal(module(h), h)


def test_recomputing_changes_nothing_and_keeps_less() -> None:
    z, time = inputs(1, 16, 16)

    def run(recompute: bool) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        network, kept = perturbed(ddpm_unet(1, (16, 16), **SMALL, dropout=0.5)), 0
        assert isinstance(network, FromDiffusers)
        network.recompute = recompute
        assert network.recompute is recompute

        def pack(t: Tensor) -> Tensor:
            nonlocal kept
            kept += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = network(z, time).square().sum()
        return list(torch.autograd.grad(loss, list(network.parameters()))), kept

    (plain, kept), (recomputed, less) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert less < 0.8 * kept
    network = ddpm_unet(1, (16, 16), **SMALL)
    network.recompute = True
    network.recompute = False
    assert not network.recompute


def test_networks_that_can_t_recompute() -> None:
    from diffusers import UNet1DModel

    assert not hasattr(FromDiffusers(nn.Identity()), "recompute")
    network = UNet1DModel(16, block_out_channels=(8,), down_block_types=("DownBlock1D",), up_block_types=("UpBlock1D",))
    with pytest.raises(DiffusionalError, match="recompute is not available for a UNet1DModel"):
        FromDiffusers(network).recompute = True


def test_dropout_is_for_training_only() -> None:
    network = perturbed(ddpm_unet(1, (16, 16), **SMALL, dropout=0.5))
    z, time = inputs(1, 16, 16)
    assert not torch.equal(network(z, time), network(z, time))
    network.eval()
    assert torch.equal(network(z, time), network(z, time))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attention": (14, 16)},
            "attention .* 3 resolutions of images of 28×28, which are 28, 14, 7, got 16",
        ),
        (
            {"widths": (8, 16, 16, 16)},
            "attention .* 4 resolutions of images of 28×28, which are 32, 16, 8, 4, got 14",
        ),
        ({"heads": 3}, "got heads=3 with attention at widths of 16"),
        ({"heads": 2, "attention": (28,)}, "got heads=2 with attention at widths of 8, 16"),
        ({"widths": (8, 12)}, r"multiples of 8.* got \(8, 12\)"),
        ({"widths": ()}, r"multiples of 8.* got \(\)"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffusionalError, match=message):
        ddpm_unet(1, (28, 28), **SMALL | {"attention": (14,)} | options)
