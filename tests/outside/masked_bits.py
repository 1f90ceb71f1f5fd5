"""Masked bits, by public names only: z_t shows each bit of x with probability 1 − t/T, and is 0, a mask, elsewhere."""

import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.special import ndtr, xlogy

import diffusional as df


class States:  # independent positions, each −1, 0 or 1 with probabilities p (B, D, 3)
    def __init__(self, p):
        self.p = p

    def sample(self, generator=None, noise=None):
        noise = torch.empty(self.p.shape[:2]).normal_(generator=generator) if noise is None else noise
        return (ndtr(noise.double())[..., None] > self.p.cumsum(2)[..., :2]).sum(2) - 1.0

    def log_prob(self, z):
        return (self.p * one_hot(z.long() + 1, 3)).sum(2).log().sum(1)

    def kl(self, other):
        return (xlogy(self.p, self.p) - xlogy(self.p, other.p.clamp(min=1e-300))).sum((1, 2))


def shown(p, part, whole):  # a state of probabilities p (B, D, 3) with probability part/whole, otherwise the mask
    share = (part / torch.as_tensor(whole).double()).view(-1, 1, 1)
    return States(share * p + (1 - share) * torch.tensor([0, 1, 0]))


class Masking(df.ForwardProcess):
    steps = 5

    def marginal(self, x, t):
        return shown(one_hot(x.long() + 1, 3), self.steps - t, self.steps)

    def transition(self, z, t):
        return shown(one_hot(z.long() + 1, 3), self.steps - t, self.steps + 1 - t)

    def posterior(self, z_next, x, t):  # x (B, D), or probabilities of its states (B, D, 3)
        p = one_hot(x.long() + 1, 3) if x.ndim == 2 else x
        return States(torch.where((z_next == 0)[..., None], shown(p, 1, t + 1).p, one_hot(z_next.long() + 1, 3)))


class MaskedBits(df.Chain):
    space, process = df.space.binary((4,)), Masking()

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))

    def step(self, z_next, t):
        one = torch.sigmoid(self.network(z_next).double())
        return self.process.posterior(z_next, torch.stack([1 - one, 0 * one, one], 2), t)

    def last(self, n):
        return self.process.marginal(torch.zeros(n, 4), self.process.steps)

    def decode(self, z_1):
        return self.step(z_1, 0)
