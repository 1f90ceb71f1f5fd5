"""Networks for conditions that are numbers, images or tokens, and the forms of conditions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusional.condition_form import ConditionForm
from diffusional.conditions import dropped
from diffusional.errors import DiffusionalError
from diffusional.networks import MLP, ConditionAdapter, UNet, VDMUNet, ddpm_unet
from diffusional.networks.conditioning import ConditionVectors

NUMBERS = ConditionForm("numbers", (2,), mean=(50.0, -1.0), scale=(10.0, 0.5))
IMAGE = ConditionForm("image", (2, 4, 4))
TOKENS = ConditionForm("tokens", (5, 3), masked=True)


def adapter(name: str, null: bool = True) -> ConditionAdapter:
    if name == "numbers":
        return ConditionAdapter(MLP((1, 8, 8), hidden=8, condition_dim=2, null=null), NUMBERS, null)
    if name == "numbers, unet":
        return ConditionAdapter(UNet(1, widths=(8, 16), condition_dim=2, null=null), NUMBERS, null)
    extra = ConditionAdapter.channels(IMAGE, null)
    if name == "image, unet":
        return ConditionAdapter(UNet(1, widths=(8, 16), extra=extra), IMAGE, null)
    if name == "image, vdm":
        return ConditionAdapter(VDMUNet(1, width=8, blocks=1, extra=extra), IMAGE, null)
    if name == "image, ddpm":
        return ConditionAdapter(ddpm_unet(1, (8, 8), widths=(8, 16), blocks=1, attention=(), extra=extra), IMAGE, null)
    if name == "tokens, pooled":
        return ConditionAdapter(MLP((1, 8, 8), hidden=8, condition_dim=3, null=null), TOKENS, null)
    network = ddpm_unet(1, (8, 8), widths=(8, 16), blocks=1, attention=(), tokens=3)
    return ConditionAdapter(network, TOKENS, null, attention=True)


NAMES = [
    *("numbers", "numbers, unet", "image, unet", "image, vdm", "image, ddpm", "tokens, pooled", "tokens, attention"),
]


def randomised(network: nn.Module) -> nn.Module:
    """Give every parameter random values: output layers start with zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


def condition(form: ConditionForm, n: int = 3) -> Any:
    generator = torch.Generator().manual_seed(2)
    value = torch.randn(n, *form.shape, generator=generator)
    if form.kind == "numbers":
        return value * torch.tensor(form.scale) + torch.tensor(form.mean)
    if not form.masked:
        return value
    mask = torch.arange(form.shape[0]) < torch.tensor([[5], [2], [3]])[:n]
    return {"tokens": value, "mask": mask}


@pytest.mark.parametrize("name", NAMES)
def test_each_item_gets_its_own_condition_which_may_be_missing(name: str) -> None:
    network = randomised(adapter(name))
    c = condition(network.form)
    z, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.0, 1.0, 2.0])
    some = dropped(c, torch.tensor([False, True, False]))
    with torch.no_grad():
        given, mixed, without, none = (network(z, t, one) for one in (c, some, None, dropped(c)))
        single = network(z[2:], t[2:], {k: v[2:] for k, v in c.items()} if isinstance(c, dict) else c[2:])
    assert given.shape == z.shape
    assert single == pytest.approx(given[2:], abs=1e-4)
    assert mixed[[0, 2]] == pytest.approx(given[[0, 2]], abs=1e-5)
    assert mixed[1] == pytest.approx(without[1], abs=1e-5)
    assert none == pytest.approx(without, abs=1e-5)
    assert float((without - given).abs().amax((1, 2, 3)).min()) > 1e-6
    network(z, t, some).square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("name", ["tokens, pooled", "tokens, attention"])
def test_padding_has_no_effect(name: str) -> None:
    network = randomised(adapter(name, null=False))
    c = condition(TOKENS)
    other = {"tokens": torch.where(c["mask"][:, :, None], c["tokens"], 7.0), "mask": c["mask"]}
    z, t = torch.zeros(3, 1, 8, 8), torch.zeros(3)
    with torch.no_grad():
        assert network(z, t, c) == pytest.approx(network(z, t, other), abs=1e-6)
        all_of_it = {"tokens": c["tokens"], "mask": torch.ones_like(c["mask"])}
        assert float((network(z, t, c) - network(z, t, all_of_it))[1:].abs().max()) > 1e-6


def test_vectors_of_a_condition_are_linear_in_it() -> None:
    numbers = torch.tensor([[1000.0, 2.0], [1100.0, 4.0], [1200.0, 9.0]])
    form = ConditionForm.of(numbers)
    vectors = ConditionVectors(form, 8)
    assert vectors(numbers, 3).mean(0).detach() == pytest.approx(torch.zeros(8), abs=1e-5)
    assert float(vectors(numbers, 3).detach().std()) < 10
    tokens = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    some = ConditionVectors(ConditionForm.of({"tokens": tokens, "mask": mask}), 8)
    assert some({"tokens": tokens, "mask": mask}, 2)[0].detach() == pytest.approx(
        some.linear(tokens[0, 0]).detach(), abs=1e-6
    )
    image = torch.randn(2, 1, 4, 4)
    other = ConditionVectors(ConditionForm.of(image), 8)
    assert other(2 * image, 2).detach() == pytest.approx(2 * other(image, 2).detach(), abs=1e-5)
    with pytest.raises(DiffusionalError, match="condition"):
        other(None, 2)
    with pytest.raises(DiffusionalError, match="images"):
        other(torch.zeros(2, 1, 3, 3), 2)
    with pytest.raises(DiffusionalError, match=r"labels|classes"):
        ConditionVectors(ConditionForm("labels", classes=3), 8)


def test_numbers_are_standardised_and_an_image_is_scaled() -> None:
    seen: list[Any] = []

    class Spy(nn.Module):
        recompute = False

        def forward(self, z: Tensor, log_snr: Tensor, c: Tensor | None = None) -> Tensor:
            seen.append((z, c))
            return z[:, :1]

    z, t = torch.zeros(1, 1, 8, 8), torch.zeros(1)
    ConditionAdapter(Spy(), NUMBERS)(z, t, torch.tensor([[60.0, -2.0]]))
    assert seen[0][1].tolist() == [[1.0, -2.0]]
    image = torch.arange(32.0).view(1, 2, 4, 4)
    ConditionAdapter(Spy(), IMAGE, null=True)(z, t, image)
    channels = seen[1][0]
    assert channels.shape == (1, 4, 8, 8)
    assert channels[:, 1:3].equal(image.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert channels[:, 3].abs().max() == 0
    ConditionAdapter(Spy(), IMAGE, null=True)(z, t)
    assert seen[2][0][:, 3].min() == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_condition_that_is_missing_or_of_another_shape_is_refused(name: str) -> None:
    network = adapter(name, null=False)
    z, t = torch.zeros(3, 1, 8, 8), torch.zeros(3)
    with pytest.raises(DiffusionalError, match="requires a condition"):
        network(z, t)
    for wrong in (torch.zeros(3, 7), torch.zeros(2, *network.form.shape), {"text": torch.zeros(3, 2)}):
        with pytest.raises(DiffusionalError, match=r"condition"):
            network(z, t, wrong)


@pytest.mark.parametrize(
    ("given", "kind", "shape"),
    [
        (torch.zeros(4, 2), "numbers", (2,)),
        (torch.zeros(4, 5, 3), "tokens", (5, 3)),
        (torch.zeros(4, 1, 6, 6), "image", (1, 6, 6)),
        ({"tokens": torch.zeros(4, 5, 3), "mask": torch.ones(4, 5).bool()}, "tokens", (5, 3)),
    ],
)
def test_the_form_of_a_condition(given: Any, kind: str, shape: tuple[int, ...]) -> None:
    form = ConditionForm.of(given)
    assert (form.kind, form.shape, form.masked) == (kind, shape, isinstance(given, dict))
    assert ConditionForm.from_dict(form.to_dict()) == form
    form.check(given, 4)
    with pytest.raises(DiffusionalError, match="4 rows for 5 items"):
        form.check(given, 5)
    with pytest.raises(DiffusionalError, match=r"expected a condition"):
        form.check(torch.zeros(4, 9), 4)


@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(4),
        torch.zeros(4, 2, dtype=torch.long),
        {"text": torch.zeros(4, 2)},
        {"tokens": torch.zeros(4, 2), "mask": torch.ones(4).bool()},
        {"tokens": torch.zeros(4, 5, 3), "mask": torch.ones(4, 5)},
        {"tokens": torch.zeros(4, 5, 3), "mask": torch.ones(4, 6).bool()},
    ],
)
def test_a_condition_of_no_form_is_refused(given: Any) -> None:
    with pytest.raises(DiffusionalError):
        ConditionForm.of(given)


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"kind": "sound"},
        {"kind": "numbers", "shape": [2]},
        {"kind": "image", "shape": [1]},
        {"kind": "image", "shape": [1, 0, 2]},
    ],
)
def test_an_edited_form_is_refused(record: Any) -> None:
    with pytest.raises(DiffusionalError, match="edited by hand"):
        ConditionForm.from_dict(record)


def test_constant_numbers_are_only_shifted() -> None:
    form = ConditionForm.of(torch.full((4, 1), 3.0))
    assert (form.mean, form.scale) == ((3.0,), (1.0,))


class Spy(nn.Module):
    """A network that keeps its inputs."""

    recompute = False

    def forward(self, z: Tensor, log_snr: Tensor, c: Any = None) -> Tensor:
        self.seen = (z, c)
        return z[:, :1]


def test_the_mean_of_tokens_is_that_of_those_present() -> None:
    spy = Spy()
    tokens = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0], [9.0, 9.0, 9.0]]])
    form = ConditionForm("tokens", (3, 3), masked=True)
    ConditionAdapter(spy, form)(
        torch.zeros(1, 1), torch.zeros(1), {"tokens": tokens, "mask": torch.tensor([[True, True, False]])}
    )
    assert spy.seen[1].tolist() == [[2.0, 3.0, 4.0]]
    # A text without words has the mean 0; it is not missing.
    ConditionAdapter(spy, form)(torch.zeros(1, 1), torch.zeros(1), {"tokens": tokens, "mask": torch.zeros(1, 3).bool()})
    assert spy.seen[1].tolist() == [[0.0, 0.0, 0.0]]


def test_the_data_s_channels_come_first() -> None:
    """The Fourier features of VDM's network are those of z, and not of an image as condition."""
    seen: list[Tensor] = []
    network = VDMUNet(1, width=8, blocks=1, extra=2)
    network.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    z = torch.full((1, 1, 4, 4), 0.3)
    network(torch.cat([z, torch.zeros(1, 2, 4, 4)], 1), torch.zeros(1))
    assert seen[0].shape[1] == 3 + 4
    assert float(seen[0][:, 3:5].abs().max()) > 0.1
