"""Two faults of a chain of five latents with a network for each step, as the essay's author published it for the digits."""

import math
from typing import Any

import torch
from record import LN2, Value, case, mean
from torch import Tensor, nn
from trained import images

import diffusional as df

T, BETA, WIDTH = 5, 0.9, 256


def perceptron(d: int, outputs: int, last: nn.Module) -> nn.Sequential:
    """Return three hidden layers."""
    sizes = [(d, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH)]
    hidden = [part for a, b in sizes for part in (nn.Linear(a, b), nn.LeakyReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, outputs), last)


def log_normal(z: Tensor, mean: Tensor, log_variance: Tensor | float) -> Tensor:
    """Return ln N(z; mean, e^log_variance) (B,)."""
    log_variance = torch.as_tensor(log_variance)
    return -0.5 * (math.log(2 * math.pi) + log_variance + torch.exp(-log_variance) * (z - mean).square()).sum(-1)


class Chain(df.Chain):
    """T latents, a network for each step with a free mean and variance, and a decoder N(μ(z_1), I)."""

    decoder_uses_network = True

    def __init__(self, d: int) -> None:
        super().__init__()
        self.process = df.GaussianDiffusion(df.schedule.linear(T, BETA, BETA))
        self.steps_of_p = nn.ModuleList(perceptron(d, 2 * d, nn.Identity()) for _ in range(T - 1))
        self.decoder, self.d = perceptron(d, d, nn.Tanh()), d

    @property
    def space(self) -> df.Continuous:
        """Real numbers."""
        return df.Continuous((self.d,))

    def step(self, z_next: Tensor, t: Tensor) -> df.Gaussian:
        """Return p(z_t | z_{t+1})."""
        every = torch.stack([network(z_next) for network in self.steps_of_p])
        return df.Gaussian(*every[t - 1, torch.arange(len(t))].chunk(2, 1))

    def last(self, n: int) -> df.Gaussian:
        """Return N(0, I)."""
        return df.Gaussian(torch.zeros(n, self.d), torch.zeros(n, self.d))

    def decode(self, z_1: Tensor) -> df.Gaussian:
        """Return N(μ(z_1), I)."""
        mean = self.decoder(z_1)
        return df.Gaussian(mean, torch.zeros_like(mean))

    def path(self, x: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Return x, z_1, …, z_T."""
        path = [x]
        for _ in range(T):
            noise = torch.randn(x.shape, generator=generator)
            path.append((1 - BETA) ** 0.5 * path[-1] + BETA**0.5 * noise)
        return path

    def cost(self, path: list[Tensor], own_level: bool = False, reversed_networks: bool = False) -> Tensor:
        """Return ln q(z_{1:T}|x) − ln p(x, z_{1:T}) (B,) of a path, nats.

        Args:
            own_level: score ln q(z_t | z_{t−1}) with z_t as its own condition.
            reversed_networks: list the networks' outputs from the last level to the first, and compare them with the
                latents from the first to the last.
        """
        keep, z = (1 - BETA) ** 0.5, path[1:]
        cost = -log_normal(path[0], self.decoder(z[0]), 0.0) - log_normal(z[-1], torch.zeros_like(z[-1]), 0.0)
        for i in range(T):
            cost = cost + log_normal(z[i], keep * (z[i] if own_level else path[i]), math.log(BETA))
        for i in range(T - 1):
            j = T - 2 - i if reversed_networks else i
            cost = cost - log_normal(z[i], *self.steps_of_p[j](z[j + 1]).chunk(2, 1))
        return cost


def trained(x: Tensor, faulty: bool, epochs: int) -> Chain:
    """Return a chain that was trained on 1,000 images, on the faulty objective or on the bound."""
    torch.manual_seed(0)
    model = Chain(x.shape[1])
    optimizer = torch.optim.Adamax(model.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            model.cost(model.path(x[rows]), own_level=faulty, reversed_networks=faulty).mean().backward()
            optimizer.step()
    return model.eval()


def run(name: str, mnist: str, epochs: int) -> list[dict[str, Any]]:
    """Return the cases of both faults on a data set."""
    test, space = images(name, mnist)
    assert isinstance(space, df.Discrete)
    train = images(name, mnist, "train")[0]
    # The notebook's scale: levels k/L · 2 − 1.
    x, held = ((space.decode(part).flatten(1).float() / space.levels * 2 - 1) for part in (train[:1000], test[:400]))
    d = x.shape[1]
    per = 1 / (d * LN2)
    right, faulty = trained(x, False, epochs), trained(x, True, epochs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        paths = [right.path(held, generator) for _ in range(8)]
        bound = torch.stack([right.cost(path) for path in paths]).mean(0)
        own = torch.stack([right.cost(path, own_level=True) for path in paths]).mean(0)
        reported = torch.stack([faulty.cost(path, True, True) for path in paths]).mean(0)
        bound_of_faulty = torch.stack([faulty.cost(path) for path in paths]).mean(0)
        library = torch.stack([faulty.elbo(held, generator=generator).nelbo for _ in range(8)]).mean(0)
    keep = (1 - BETA) ** 0.5
    square = mean(held.square().sum(1)).value / d
    moments = [keep ** (2 * t) * square + 1 - keep ** (2 * t) for t in range(1, T + 1)]
    exact = sum(0.5 - (1 - keep) ** 2 * moment / (2 * BETA) for moment in moments) / LN2
    return [
        case(
            "own-level", name, "", mean(own - bound, per), Value(exact), "E z_t² of the forward process in closed form",
            nats=mean(own - bound), bound_nats=mean(bound),
        ),
        case(
            "wrong-networks", name, "", mean(reported - bound_of_faulty, per),
            mean(reported, per) - mean(library, per), "the library's bound of the same weights, with other noise",
            reported_nats=mean(reported), bound_nats=mean(bound_of_faulty), trained_on_the_bound_nats=mean(bound),
        ),
    ]  # fmt: skip
