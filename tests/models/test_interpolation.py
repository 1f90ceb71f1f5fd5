"""Interpolation between the embeddings of two items by a system with a frozen encoder."""

import math

import pytest
import torch
from torch import nn

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.models.composite.frozen import arc
from diffusional.models.direct import DirectModel


def system() -> df.FrozenEncoder:
    torch.manual_seed(0)
    process = df.GaussianDiffusion(schedule.log_snr_linear(-2.0, 3.0, 4))
    network = df.Denoiser(lambda z, log_snr: 0 * z, "data")
    prior = df.DiffusionModel(process, network, likelihood.GaussianLikelihood(df.Continuous((2,))))
    decoder = DirectModel(nn.Linear(2, 3), likelihood.GaussianLikelihood(df.Continuous((3,)), variance=0.5))
    return df.FrozenEncoder(nn.Linear(3, 2), prior, decoder).double()


def test_points_of_an_arc_are_at_even_angles_with_norms_between() -> None:
    points = arc(
        torch.tensor([3.0, 0.0]).double(), torch.tensor([-1.0, math.sqrt(3)]).double(), 4
    )  # 120°, norms 3 and 2
    angles = torch.atan2(points[:, 1], points[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, 2 * math.pi / 3, 4).double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(points.norm(dim=1), torch.linspace(3, 2, 4).double())


@pytest.mark.parametrize("other", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
def test_without_an_arc_points_are_on_a_line(other: list[float]) -> None:
    one, last = torch.tensor([1.0, 2.0]).double(), torch.tensor(other).double()
    torch.testing.assert_close(arc(one, last, 3), torch.stack([one, 0.5 * (one + last), last]))


def test_only_the_embedding_changes_along_an_interpolation() -> None:
    model = system()
    one, other = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 3.0, 0.5]]).double()
    found = model.interpolate(one, other, n=5, seed=3)
    embedding = arc(*model.encoder(torch.stack([one, other])), 5)
    # A linear decoder with common noise: the samples differ by its weights times the differences of α f.
    scale = torch.sigmoid(torch.tensor(2.0).double()).sqrt()
    weight = model.last.model.decoder.weight
    moved = scale * (embedding - embedding[:1]) @ weight.T
    torch.testing.assert_close(found - found[:1], moved)
    assert found.equal(model.interpolate(one, other, n=5, seed=3))
    assert not torch.allclose(found, model.interpolate(one, other, n=5, seed=4))


def test_an_interpolation_has_two_ends() -> None:
    with pytest.raises(df.DiffusionalError, match=r"at least 2.*got 1"):
        system().interpolate(torch.zeros(3).double(), torch.ones(3).double(), n=1)
    with pytest.raises(df.DiffusionalError, match="shape"):
        system().interpolate(torch.zeros(4).double(), torch.ones(4).double())
