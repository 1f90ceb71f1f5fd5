"""The essay's chain, by public names only: T = 5, and a network per level with a free mean and diagonal variance."""

import torch
from torch import nn

import diffusional as df

D, T = 4, 5


def network(outputs):
    return nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, outputs))


class EssayChain(df.Chain):
    space, decoder_uses_network = df.space.binary((D,)), True

    def __init__(self, beta=0.5):
        super().__init__()
        self.process = df.GaussianDiffusion(df.schedule.linear(T, beta, beta))
        self.levels_of_p, self.decoder = nn.ModuleList(network(2 * D) for _ in range(1, T)), network(D)

    def step(self, z_next, t):
        every = torch.stack([net(z_next) for net in self.levels_of_p])  # (T − 1, B, 2D)
        mean, log_variance = every[t - 1, torch.arange(len(t))].chunk(2, 1)
        return df.Gaussian(mean, log_variance)

    def last(self, n):
        return df.Gaussian(torch.zeros(n, D), torch.zeros(n, D))

    def decode(self, z_1):
        return df.Bits(self.decoder(z_1).double())
