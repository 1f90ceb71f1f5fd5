"""VDM's U-Net against its formulas, written here with plain convolutions and softmaxes, in float64."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, silu

from battery import generator
from diffusional.errors import DiffusionalError
from diffusional.networks import VDMUNet
from diffusional.networks.vdm import fourier_features, sinusoids

SHAPES: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "plain": ({"channels": 1, "width": 8, "blocks": 1}, (1, 6, 6), 1),
    "odd and oblong, two outputs": ({"channels": 2, "outputs": 2, "width": 16, "blocks": 2}, (2, 5, 7), 4),
    "levels head": ({"channels": 1, "outputs": 17, "width": 8, "blocks": 1, "adds_input": False}, (1, 4, 4), 17),
    "attention": ({"channels": 3, "width": 32, "blocks": 2, "attention": True}, (3, 4, 3), 3),
    "no features, no blocks": ({"channels": 1, "width": 40, "blocks": 0, "fourier": ()}, (1, 3, 3), 1),
}
every = pytest.mark.parametrize("name", SHAPES)


def made(name: str, perturb: bool = True, **more: Any) -> VDMUNet:
    torch.manual_seed(0)
    network = VDMUNet(**SHAPES[name][0], **more).double()
    if perturb:
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=generator(2), dtype=p.dtype))
    return network


def inputs(name: str, batch: int = 3) -> tuple[Tensor, Tensor]:
    shape = SHAPES[name][1]
    return torch.randn(batch, *shape, generator=generator(1), dtype=torch.float64), torch.linspace(
        -4, 12, batch
    ).double()


# The formulas.


def features_of(z: np.ndarray, exponents: tuple[int, ...]) -> np.ndarray:
    """Channel by channel, the exponents of each together; sines, then cosines."""
    waves = [[z[:, c] * 2.0**n * 2 * math.pi for n in exponents] for c in range(z.shape[1])]
    flat = [angle for of_channel in waves for angle in of_channel]
    return np.stack([np.sin(a) for a in flat] + [np.cos(a) for a in flat], axis=1)


def embedding_of(t: np.ndarray, width: int) -> np.ndarray:
    """Of 1000 t, with half as many frequencies as channels from 1 down to 1e-4."""
    half = width // 2
    rows = [[1000 * float(s) * math.exp(-i * math.log(10_000) / (half - 1)) for i in range(half)] for s in t]
    return np.array([[math.sin(a) for a in row] + [math.cos(a) for a in row] for row in rows])


def said_by(
    network: VDMUNet, z: Tensor, log_snr: Tensor, condition: Tensor | None = None, **wrong: Any
) -> tuple[Tensor, int]:
    """What VDM's ScoreUNet says with these weights, and how many skips were used; `wrong` departs from it."""
    w = network.state_dict()
    settings = {"exponents": network.fourier, "reverse": True, "attention": True, "scale": 1000.0, **wrong}

    def convolved(h: Tensor, name: str) -> Tensor:
        weight = w[f"{name}.weight"]
        return conv2d(h, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def normed(h: Tensor, name: str) -> Tensor:
        groups = max(g for g in (1, 2, 4, 8, 16, 32) if h.shape[1] % g == 0 and g < h.shape[1])
        return group_norm(h, groups, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def dense(h: Tensor, name: str) -> Tensor:
        return h @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    def attended(h: Tensor, name: str) -> Tensor:
        x = normed(h, f"{name}.norm").flatten(2).transpose(1, 2)
        q, k, v = (dense(x, f"{name}.{part}") for part in "qkv")
        weights = (q @ k.transpose(1, 2) / math.sqrt(h.shape[1])).softmax(-1)
        return h + dense(weights @ v, f"{name}.out").transpose(1, 2).reshape(h.shape)

    def block(h: Tensor, name: str) -> Tensor:
        inner = convolved(silu(normed(h, f"{name}.norm1")), f"{name}.conv1")
        inner = inner + dense(level, f"{name}.level")[:, :, None, None]
        inner = convolved(silu(normed(inner, f"{name}.norm2")), f"{name}.conv2")
        out = inner + (convolved(h, f"{name}.skip") if f"{name}.skip.weight" in w else h)
        has = f"{name}.attention.q.weight" in w and settings["attention"]
        return attended(out, f"{name}.attention") if has else out

    t = (-log_snr - network.gamma_min) / (network.gamma_max - network.gamma_min)
    level = torch.from_numpy(embedding_of(t.numpy() * settings["scale"] / 1000, network.width))
    if condition is not None:
        level = torch.cat([level, condition], 1)
    level = silu(dense(silu(dense(level, "dense0")), "dense1"))
    x = (
        z
        if not settings["exponents"]
        else torch.cat([z, torch.from_numpy(features_of(z.numpy(), settings["exponents"]))], 1)
    )
    outs = [convolved(x, "conv_in")]
    for i in range(len(network.down)):
        outs.append(block(outs[-1], f"down.{i}"))
    h = block(block(outs[-1], "middle.0"), "middle.1")
    used = list(reversed(outs)) if settings["reverse"] else outs
    for i, skip in enumerate(used):
        h = block(torch.cat([h, skip], 1), f"up.{i}")
    h = convolved(silu(normed(h, "norm")), "conv_out")
    if network.adds_input:
        h = h + torch.cat([z, torch.zeros_like(h[:, z.shape[1] :])], 1)
    return h, len(used)


@every
def test_it_is_the_formula(name: str) -> None:
    network, (z, log_snr) = made(name), inputs(name)
    expected, used = said_by(network, z, log_snr)
    assert used == SHAPES[name][0]["blocks"] + 1
    torch.testing.assert_close(network(z, log_snr), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "wrong", [{"reverse": False}, {"exponents": (5, 6)}, {"exponents": (7, 6)}, {"attention": False}, {"scale": 1.0}]
)
def test_another_formula_is_not_it(wrong: dict[str, Any]) -> None:
    name = "attention"
    network, (z, log_snr) = made(name), inputs(name)
    expected, _ = said_by(network, z, log_snr, **wrong)
    assert float((network(z, log_snr) - expected).detach().abs().max()) > 1e-3


def test_a_condition_joins_the_noise_level() -> None:
    name = "plain"
    network, (z, log_snr) = made(name, condition_dim=5), inputs(name)
    condition = torch.randn(3, 5, generator=generator(3), dtype=torch.float64)
    out = network(z, log_snr, condition)
    torch.testing.assert_close(out, said_by(network, z, log_snr, condition)[0], rtol=1e-10, atol=1e-10)
    moved = network(z, log_snr, condition + torch.tensor([[0.0], [1.0], [0.0]]))
    assert ((moved - out).abs().flatten(1).amax(1) > 1e-6).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="requires a condition"):
        network(z, log_snr)
    with pytest.raises(ValueError, match="unconditional network"):
        made(name)(z, log_snr, condition)


def test_fourier_features() -> None:
    z = torch.rand(2, 3, 4, 5, generator=generator(0), dtype=torch.float64) * 2 - 1
    found = fourier_features(z, (6, 7)).numpy()
    assert found.shape == (2, 12, 4, 5)
    np.testing.assert_allclose(found, features_of(z.numpy(), (6, 7)), rtol=0, atol=1e-12)


def test_neighbouring_levels_are_far_apart_in_the_features() -> None:
    """8-bit data, k ↦ (2k + 1)/256 − 1: n = 7 is one turn for each level, n = 6 half a turn."""
    levels = ((2 * torch.arange(256, dtype=torch.float64) + 1) / 256 - 1)[:, None, None, None]
    sin6, sin7, cos6, cos7 = fourier_features(levels, (6, 7))[:, :, 0, 0].T
    np.testing.assert_allclose(sin6.abs(), 1, atol=1e-9)
    assert bool((sin6[1:] * sin6[:-1] < 0).all())
    np.testing.assert_allclose(cos7, -1, atol=1e-9)
    np.testing.assert_allclose(torch.stack([cos6, sin7]), 0, atol=1e-9)


def test_the_embedding_of_the_noise_level() -> None:
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(sinusoids(1000 * t, 16), embedding_of(t.numpy(), 16), rtol=0, atol=1e-10)


def test_end_points_are_0_and_1() -> None:
    heard: list[Tensor] = []
    network = VDMUNet(1, width=8, blocks=0, gamma_min=-3.0, gamma_max=2.0).double()
    network.dense0.register_forward_pre_hook(lambda _, arguments: heard.append(arguments[0]))
    network(torch.zeros(3, 1, 2, 2).double(), -torch.tensor([-3.0, -0.5, 2.0]).double())
    np.testing.assert_allclose(heard[0], embedding_of(np.array([0, 0.5, 1]), 8), rtol=0, atol=1e-10)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("condition_dim", [0, 1])
def test_parameters_by_count(attention: bool, condition_dim: int) -> None:
    channels, outputs, n, blocks = 3, 2, 16, 4

    def conv(i: int, o: int, side: int = 3) -> int:
        return i * o * side * side + o

    def block(i: int) -> int:
        norms = 2 * i + 2 * n
        return norms + conv(i, n) + 4 * n * n + conv(n, n) + (conv(i, n, 1) if i != n else 0)

    attended = 2 * n + 4 * conv(n, n, 1)
    expected = (n + condition_dim) * 4 * n + 4 * n + 16 * n * n + 4 * n
    expected += conv(channels * 5, n) + 2 * n + conv(n, outputs * channels)
    expected += (blocks + 2) * block(n) + (blocks + 1) * block(2 * n) + attended
    expected += attended * (2 * blocks + 1) if attention else 0
    network = VDMUNet(channels, outputs, n, blocks, attention, condition_dim=condition_dim)
    assert sum(p.numel() for p in network.parameters()) == expected


@every
def test_a_new_network_says_z_or_nothing_and_learns_from_there(name: str) -> None:
    network, (z, log_snr) = made(name, perturb=False), inputs(name, batch=8)
    out = network(z, log_snr)
    assert out.shape == (8, SHAPES[name][2], *z.shape[2:])
    if network.adds_input:
        assert torch.equal(out[:, : z.shape[1]], z)
        assert not out[:, z.shape[1] :].any()
    else:
        assert not out.any()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(z, log_snr) - 1).square().mean().backward()
        optimizer.step()
    assert bool(network.conv_in.weight.grad.any())  # type: ignore[union-attr]
    zero = [
        c for m in network.modules() for c in (getattr(m, "conv2", None), getattr(m, "level", None)) if c is not None
    ]
    assert len(zero) == 2 * (2 * SHAPES[name][0]["blocks"] + 3)
    assert all(bool(c.weight.any()) for c in zero)


def test_new_blocks_say_what_they_hear() -> None:
    """Attention included: with the first convolution of the way in, a new network is a sum of shortcuts."""
    network = made("attention", perturb=False)
    h = torch.randn(2, 32, 4, 3, generator=generator(4), dtype=torch.float64)
    level = torch.randn(2, 128, generator=generator(5), dtype=torch.float64)
    for block in [*network.down, *network.middle]:
        assert torch.equal(block(h, level), h)
    pair = torch.cat([h, 2 * h], 1)
    for block in network.up:
        assert torch.equal(block(pair, level), conv2d(pair, block.skip.weight, block.skip.bias))


@every
def test_every_parameter_takes_part_and_items_are_apart(name: str) -> None:
    network, (z, log_snr) = made(name), inputs(name)
    z.requires_grad_()
    log_snr.requires_grad_()
    by_z, by_level = torch.autograd.grad(network(z, log_snr)[1].square().sum(), [z, log_snr])
    assert bool((by_z[1] != 0).all())
    assert by_level[1] != 0
    assert not by_z[[0, 2]].any()
    assert not by_level[[0, 2]].any()
    (network(z, log_snr) - 1).square().sum().backward()
    # A constant in the keys moves all of a query's weights alike, and softmax does not see it.
    silent = [n for n, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-9]
    assert all(n.endswith("attention.k.bias") for n in silent), silent


def test_weights_begin_as_flax_s_do() -> None:
    """LeCun's normal: variance 1/inputs, nothing beyond two standard deviations of the normal that was cut; biases zero."""
    torch.manual_seed(0)
    network = VDMUNet(1, width=64, blocks=1)
    for layer, inputs_of in ((network.up[0].conv1, 128 * 9), (network.dense1, 256)):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert layer.bias is not None
        weight = layer.weight.detach() * math.sqrt(inputs_of)
        assert float(weight.mean()) == pytest.approx(0, abs=4 / math.sqrt(weight.numel()))
        assert float(weight.var()) == pytest.approx(1, abs=0.02)
        assert 2.2 < float(weight.abs().max()) <= 2 / 0.8796
        assert not layer.bias.any()


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_recomputing_changes_nothing(name: str) -> None:
    z, log_snr = inputs(name)

    def gradients(recompute: bool) -> list[Tensor]:
        network = made(name, dropout=0.5)
        network.recompute = recompute
        torch.manual_seed(1)
        return list(torch.autograd.grad(network(z, log_snr).square().sum(), list(network.parameters())))

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_recomputing_keeps_less() -> None:
    def kept(recompute: bool) -> int:
        network, total = made("plain"), 0
        network.recompute = recompute

        def pack(t: Tensor) -> Tensor:
            nonlocal total
            total += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            network(*inputs("plain"))
        return total

    assert kept(True) < 0.5 * kept(False)


def test_dropout_is_for_training_only() -> None:
    network, (z, log_snr) = made("plain", dropout=0.5), inputs("plain")
    assert not torch.equal(network(z, log_snr), network(z, log_snr))
    network.eval()
    assert torch.equal(network(z, log_snr), network(z, log_snr))


@pytest.mark.parametrize("width", [0, 4, 12])
def test_widths_that_norms_can_t_divide(width: int) -> None:
    with pytest.raises(DiffusionalError, match=f"multiple of 8 .* got {width}"):
        VDMUNet(1, width=width)


def test_end_points_the_wrong_way_round() -> None:
    with pytest.raises(DiffusionalError, match=r"gamma_min < gamma_max, got 5\.0 and -13\.3"):
        VDMUNet(1, width=8, gamma_min=5.0, gamma_max=-13.3)


FIXTURE = Path(__file__).parents[1] / "fixtures" / "vdm.npz"
# Their names of the parts of a block and of attention, after `tools/vdm_fixtures.py`.
BLOCK = {"GroupNorm_0": "norm1", "conv1": "conv1", "cond_proj": "level", "GroupNorm_1": "norm2", "conv2": "conv2"}
BLOCK |= {"nin_shortcut": "skip"}
ATTENTION = {"GroupNorm_0": "norm", "q": "q", "k": "k", "v": "v", "proj_out": "out"}


def ours(path: str) -> str:
    """The name here of a weight of their ScoreUNet."""
    *parts, kind = path.split("/")
    head, *tail = parts
    place, _, index = head.partition(".")
    if place == "mid":
        head, names = ("middle.0.attention", ATTENTION) if "attn" in index else (f"middle.{int(index[-1]) - 1}", BLOCK)
        parts = [head, names[tail[0]]]
    elif place in ("down", "up"):
        parts = [f"{place}.{index.removeprefix('block_')}", BLOCK[tail[0]]]
    elif head == "GroupNorm_0":
        parts = ["norm"]
    return ".".join([*parts, "bias" if kind == "bias" else "weight"])


def torch_s(weight: np.ndarray, like: Tensor) -> Tensor:
    """flax keeps (…, in, out), torch (out, in, …); what flax does by a dense layer may be a 1 × 1 convolution here."""
    moved = weight if weight.ndim < 2 else np.moveaxis(weight, (-1, -2), (0, 1))
    return torch.from_numpy(np.ascontiguousarray(moved)).double().reshape(like.shape)


@pytest.fixture
def theirs() -> tuple[VDMUNet, dict[str, np.ndarray]]:
    """Our network with the weights of theirs, and what theirs said."""
    with np.load(FIXTURE) as file:
        record = {name: file[name] for name in file.files}
    config = json.loads(str(record["config"]))
    network = VDMUNet(
        3,
        width=config["sm_n_embd"],
        blocks=config["sm_n_layer"],
        condition_dim=1,
        gamma_min=config["gamma_min"],
        gamma_max=config["gamma_max"],
    )
    own = network.state_dict()
    given = {ours(k.removeprefix("score/")): w / 16 for k, w in record.items() if k.startswith("score/")}
    assert given.keys() == own.keys()
    network.double().load_state_dict({name: torch_s(w, own[name]) for name, w in given.items()})
    return network, record


def said(network: VDMUNet, record: dict[str, np.ndarray]) -> np.ndarray:
    z = torch.from_numpy(record["unet/z"]).permute(0, 3, 1, 2)
    out = network(z, -torch.from_numpy(record["unet/g_t"]), torch.zeros(2, 1).double())
    return out.detach().permute(0, 2, 3, 1).numpy()


def test_it_says_what_google_s_says(theirs: tuple[VDMUNet, dict[str, np.ndarray]]) -> None:
    network, record = theirs
    np.testing.assert_allclose(said(network, record), record["unet/output"], rtol=0, atol=1e-9)


def test_what_differs_from_google_s_is_seen(theirs: tuple[VDMUNet, dict[str, np.ndarray]]) -> None:
    network, record = theirs
    for name, other in {
        "fourier": (7, 6),
        "adds_input": False,
        "up": network.up[::-1],
        "middle": network.middle[::-1],
    }.items():
        before = getattr(network, name)
        setattr(network, name, other)
        assert np.abs(said(network, record) - record["unet/output"]).max() > 1e-2, name
        setattr(network, name, before)
    np.testing.assert_allclose(said(network, record), record["unet/output"], rtol=0, atol=1e-9)


def test_its_embedding_and_features_are_google_s() -> None:
    with np.load(FIXTURE) as record:
        config = json.loads(str(record["config"]))
        t = (record["unet/g_t"] - config["gamma_min"]) / (config["gamma_max"] - config["gamma_min"])
        embedding = sinusoids(torch.from_numpy(1000 * t), config["sm_n_embd"])
        np.testing.assert_allclose(embedding, record["unet/embedding"], rtol=0, atol=1e-9)
        z = torch.from_numpy(record["fourier/z"])
        for start, stop in ((6, 8), (0, 8)):
            found = fourier_features(z, tuple(range(start, stop)))
            np.testing.assert_allclose(found, record[f"fourier/{start}-{stop}"], rtol=0, atol=1e-11)
