"""Backbones: any size in, the promised shape out, silent at the start, and every weight takes part."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from battery import generator
from diffusional.errors import DiffusionalError
from diffusional.networks import MLP, FromDiffusers, Ladder, ResidualMLP, UNet, VDMUNet, ddpm_unet
from diffusional.networks.embedding import LogSNREmbedding
from diffusional.networks.norms import GroupNorm
from diffusional.space import Discrete
from diffusional.training.build import build_model
from diffusional.training.config import Config, ModelConfig


def inputs(*shape: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, *shape, generator=generator(1)), torch.linspace(-10, 10, batch)


# name: (network, shape of an item, output channels for each data channel)
NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], int]] = {
    "unet": (lambda **k: UNet(1, widths=(8, 16), **k), (1, 8, 8), 1),
    "unet, odd and oblong": (lambda **k: UNet(2, 3, widths=(8, 8, 16), blocks=1, **k), (2, 7, 13), 3),
    "unet, one resolution": (lambda **k: UNet(1, 2, widths=(8,), **k), (1, 4, 4), 2),
    "unet, tiny": (lambda **k: UNet(3, 1, widths=(16, 16), **k), (3, 2, 2), 1),
    "unet, deep": (lambda **k: UNet(1, 5, widths=(8, 8, 8, 8), blocks=3, **k), (1, 9, 9), 5),
    "mlp": (lambda **k: MLP((20,), hidden=16, **k), (20,), 1),
    "mlp, images": (lambda **k: MLP((2, 3, 5), outputs=4, hidden=16, depth=1, **k), (2, 3, 5), 4),
    "mlp, sequences": (lambda **k: MLP((4, 6), outputs=2, hidden=16, **k), (4, 6), 2),
}
every = pytest.mark.parametrize("name", NETWORKS)


def perturbed(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(2)))
    return network


@every
def test_shapes(name: str) -> None:
    make, shape, outputs = NETWORKS[name]
    network = make()
    for batch in (1, 4):
        out = network(*inputs(*shape, batch=batch))
        assert out.shape == (batch, outputs * shape[0], *shape[1:])
        assert bool(out.isfinite().all())


@every
def test_conditions(name: str) -> None:
    make, shape, outputs = NETWORKS[name]
    network = perturbed(make(condition_dim=5)).eval()
    z, log_snr = inputs(*shape)
    condition = torch.randn(3, 5, generator=generator(3))
    out = network(z, log_snr, condition)
    assert out.shape == (3, outputs * shape[0], *shape[1:])
    moved = network(z, log_snr, condition + torch.tensor([[0.0], [1.0], [0.0]]))
    changed = (moved - out).abs().flatten(1).amax(1) > 1e-6
    assert changed.tolist() == [False, True, False]
    with pytest.raises(ValueError, match="requires a condition"):
        network(z, log_snr)
    with pytest.raises(ValueError, match="unconditional network"):
        make()(z, log_snr, condition)


@every
def test_every_input_matters_and_items_are_apart(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    network = perturbed(make()).eval()
    z, log_snr = inputs(*shape)
    z.requires_grad_()
    log_snr.requires_grad_()
    by_z, by_time = torch.autograd.grad(network(z, log_snr)[1].square().sum(), [z, log_snr])
    assert bool((by_z[1] != 0).all())
    assert by_time[1] != 0
    assert not by_z[[0, 2]].any()
    assert not by_time[[0, 2]].any()


@every
def test_every_parameter_gets_a_gradient(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    network = make()
    z, log_snr = inputs(*shape, batch=8)
    # One step off the zero initialisation, where the gradients of what lies before a zero layer vanish.
    perturbed(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (network(z, log_snr) - 1).square().mean().backward()
        optimizer.step()
    gradients = {n: p.grad for n, p in network.named_parameters()}
    silent = [n for n, g in gradients.items() if g is None or not g.any()]
    # Scale and shift are two halves of one layer.
    silent += [n for n, g in gradients.items() if "film" in n and not g.reshape(len(g), -1).any(1).all()]  # type: ignore[union-attr]
    assert silent == []


@pytest.mark.parametrize("name", [n for n in NETWORKS if "unet" in n])
def test_a_new_unet_says_zero_and_learns_from_there(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    network = make()
    z, log_snr = inputs(*shape, batch=8)
    assert not network(z, log_snr).any()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(z, log_snr) - 1).square().mean().backward()
        optimizer.step()
    assert network(z, log_snr).any()
    # By the third step the gradient has passed the zero layers.
    assert bool(network.first.weight.grad.any())  # type: ignore[union-attr]
    convolutions = [block.conv2 for block in network.modules() if hasattr(block, "conv2")]
    assert all(bool(c.weight.any()) for c in convolutions)


def test_a_new_unet_s_blocks_say_zero() -> None:
    network = UNet(1, widths=(8, 16))
    blocks = [block for block in network.modules() if hasattr(block, "conv2")]
    assert len(blocks) == 1 + 2 + 2
    for block in blocks:
        h = torch.randn(3, block.conv1.in_channels, 5, 5, generator=generator(4))
        assert torch.equal(block(h, torch.randn(3, 128, generator=generator(5))), block.skip(h))


def test_a_new_mlp_s_blocks_say_zero() -> None:
    network = MLP((4,), hidden=16, depth=2)
    assert len(network.blocks) == 2
    for block in network.blocks:
        h = torch.randn(3, 16, generator=generator(4))
        assert torch.equal(block(h, torch.randn(3, 128, generator=generator(5))), h)


@pytest.mark.parametrize("name", ["unet", "mlp"])
def test_dropout_is_for_training_only(name: str) -> None:
    make, shape, _ = NETWORKS[name]
    network = perturbed(make(dropout=0.5))
    z, log_snr = inputs(*shape)
    assert not torch.equal(network(z, log_snr), network(z, log_snr))
    network.eval()
    assert torch.equal(network(z, log_snr), network(z, log_snr))


def test_the_size_follows_the_arguments() -> None:
    def count(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    small, wide, deep = UNet(1, widths=(8, 8)), UNet(1, widths=(8, 16)), UNet(1, widths=(8, 8), blocks=3)
    assert count(small) < min(count(wide), count(deep))
    assert len(deep.middle) == 3
    assert count(MLP((4,), hidden=8)) < count(MLP((4,), hidden=16))


def test_a_unet_knows_where_it_is() -> None:
    """Two coordinate channels: a constant image does not give a constant answer, even away from the border."""
    network = perturbed(UNet(1, widths=(8,), blocks=1))
    out = network(torch.zeros(1, 1, 16, 16), torch.zeros(1))[0, 0, 5:-5, 5:-5]
    assert out.detach().std() > 1e-3
    rows, columns = out.mean(1), out.mean(0)
    assert rows.detach().std() > 1e-3
    assert columns.detach().std() > 1e-3


ONE_PIXEL: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNet(1, widths=(8, 8, 8, 8)),
    "unet, wider": lambda: UNet(1, widths=(16, 16, 16, 16)),
    "vdm": lambda: VDMUNet(1, width=8, blocks=1),
    "ddpm": lambda: ddpm_unet(1, (5, 5), widths=(8, 8, 8, 8), blocks=1, attention=()),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ONE_PIXEL)
def test_one_item_of_one_pixel_gets_what_it_gets_in_a_batch(name: str, training: bool) -> None:
    """A norm then has a single value in each of its groups; the U-Nets shrink 5 × 5 pixels to one."""
    network = perturbed(ONE_PIXEL[name]()).train(training)
    shape = (1, 1, 1) if name == "vdm" else (1, 5, 5)
    z, log_snr = inputs(*shape, batch=2)
    together = network(z, log_snr)
    for i in range(2):
        torch.testing.assert_close(network(z[i : i + 1], log_snr[i : i + 1]), together[i : i + 1])
    one = network(z[:1], log_snr[:1])
    assert not torch.equal(one, network(z[:1] + 1, log_snr[:1]))
    one.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_the_norm_is_torch_s() -> None:
    ours, theirs = GroupNorm(2, 6), nn.GroupNorm(2, 6)
    ours.load_state_dict({"weight": torch.randn(6), "bias": torch.randn(6)})
    theirs.load_state_dict(ours.state_dict())
    z = torch.randn(3, 6, 4, 5)
    assert torch.equal(ours(z), theirs(z))
    assert torch.equal(ours(z[:1]), theirs(z[:1]))


@pytest.mark.parametrize(
    "make",
    [lambda: MLP((4,), hidden=1), lambda: ResidualMLP((4,), 2, hidden=1), lambda: Ladder((4,), (4,), (2,), hidden=1)],
)
def test_a_width_whose_norm_is_constant_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(DiffusionalError, match=r"hidden.*at least 2.*got 1"):
        make()


def test_a_unet_that_would_ignore_its_input_is_refused() -> None:
    space = Discrete((3, 1, 1), 5)
    with pytest.raises(DiffusionalError, match=r"at least 16 .*\(3, 1, 1\), got 8.*mlp"):
        build_model(Config(model=ModelConfig(network="unet", widths=(8,))), space)
    build_model(Config(model=ModelConfig(network="unet", widths=(16,))), space)


@pytest.mark.parametrize("widths", [(), (8, 12), (4,)])
def test_widths_that_norms_can_t_divide(widths: tuple[int, ...]) -> None:
    with pytest.raises(DiffusionalError, match=r"multiples of 8.*got \("):
        UNet(1, widths=widths)


def test_the_embedding_tells_all_levels_apart() -> None:
    embedding = LogSNREmbedding(32)
    levels = torch.linspace(-13, 13, 2001)
    out = embedding(levels).detach()
    assert out.shape == (2001, 32)
    distance = torch.cdist(out, out) + torch.eye(2001) * 1e9
    assert float(distance.min()) > 1e-4
    angles = levels[:, None] * embedding.frequencies
    assert embedding.frequencies[[0, -1]].tolist() == pytest.approx([0.1, 10.0])
    expected = embedding.mlp(torch.cat([torch.sin(angles), torch.cos(angles)], 1))
    torch.testing.assert_close(out, expected.detach())


def test_a_diffusers_network_as_it_is() -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    small: dict[str, Any] = {
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    network = UNet2DModel(8, 2, 3, num_class_embeds=4, class_embed_type=None, **small).eval()
    z, time = inputs(2, 8, 8)
    labels = torch.tensor([0, 1, 2])
    wrapped = FromDiffusers(network)
    out = wrapped(z, time, labels)
    assert out.shape == (3, 3, 8, 8)
    assert torch.equal(out, network(z, time, class_labels=labels).sample)
    assert not torch.equal(out, wrapped(z, time, labels.flip(0)))
    assert not torch.equal(out, wrapped(z, time + 1, labels))


def test_conditions_go_by_the_name_given() -> None:
    class Recorder(nn.Module):
        def forward(self, z: Tensor, time: Tensor, **more: Tensor) -> SimpleNamespace:
            self.more = more
            return SimpleNamespace(sample=z)

    network = Recorder()
    z, time = inputs(1, 4, 4)
    FromDiffusers(network, condition_as="encoder_hidden_states")(z, time, torch.ones(3))
    assert list(network.more) == ["encoder_hidden_states"]
    FromDiffusers(network)(z, time)
    assert network.more == {}
