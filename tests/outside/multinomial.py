"""Multinomial diffusion of K levels (Hoogeboom et al. 2021) whose latents are not Markov given x (Song, Meng & Ermon 2021, App. A)."""

import torch
from torch import nn
from torch.nn.functional import one_hot

import diffusional as df
from diffusional.shapes import align


class Multinomial(nn.Module, df.ForwardProcess):
    """z_t is x with probability a_t = 1 − t/(T + 1), otherwise any level; given x, it keeps z_{t+1} with probability c_t."""

    markov = False

    def __init__(self, space, steps, keep):
        super().__init__()
        self.steps, self.keep, self.levels = steps, keep, space.levels
        self.register_buffer("values", space.values)

    def among(self, z):  # z (B, *dims) as probabilities of the levels (B, *dims, K)
        return one_hot((z[..., None] - self.values).abs().argmin(-1), self.levels).double()

    def mixed(
        self, *parts
    ):  # the mean of distributions p with weights w () or (B,), and of all levels alike for the rest
        p = sum(align(w, p) * p for w, p in parts) + align(1 - sum(w for w, _ in parts), parts[0][1]) / self.levels
        return df.Categorical(p.log(), self.values)

    def a(self, t):
        return 1 - torch.as_tensor(t).double() / (self.steps + 1)

    def marginal(self, x, t):
        return self.mixed((self.a(t), self.among(x)))

    def back(self, z_next, p, t):  # q(z_t | z_{t+1}, x), averaged over an x of probabilities p
        c = self.keep * (1 - self.a(t)) / (1 - self.a(t + 1))
        return self.mixed((c, self.among(z_next)), (self.a(t) - c * self.a(t + 1), p))

    def posterior(self, z_next, x, t):
        return self.back(z_next, self.among(x), t)

    def transition(self, z, t, x):  # q(z_t | z_{t−1}, x) by Bayes' rule: the process is not Markov
        if t == 1:
            return self.marginal(x, 1)
        back = [self.back(v.expand_as(z), self.among(x), t - 1).log_probs for v in self.values]
        back = torch.stack([(p * self.among(z)).sum(-1) for p in back], -1)
        return df.Categorical(self.marginal(x, t).log_probs + back, self.values)


class MultinomialModel(df.Chain):
    def __init__(self, space, steps=4, keep=0.5, hidden=32):
        super().__init__()
        self.space, self.process = space, Multinomial(space, steps, keep)
        n = space.dimensions * space.levels
        self.network = nn.Sequential(nn.Linear(n + 1, hidden), nn.Tanh(), nn.Linear(hidden, n))

    def data(self, z, t):  # the levels of x (B, *dims, K), seen through z_t
        inputs = torch.cat([self.process.among(z).flatten(1), t[:, None] / self.process.steps], 1).float()
        return self.network(inputs).view(*z.shape, -1)

    def step(self, z_next, t):
        return self.process.back(z_next, self.data(z_next, t + 1).double().softmax(-1), t)

    def last(self, n):  # all levels alike
        return df.Categorical(
            self.network[0].weight.new_zeros(n, *self.space.shape, self.space.levels), self.process.values
        )

    def decode(self, z_1):
        return df.Categorical(self.data(z_1, torch.ones_like(z_1.flatten(1)[:, 0])), self.process.values)
