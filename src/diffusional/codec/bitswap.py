"""Bit-Swap along the latents of a chain, MATH (33) (Kingma, Abbeel & Ho 2019):

    pop z_1 by q(z_1|x), push x by p(x|z_1); for t = 1 … T − 1 pop z_{t+1} by q(z_{t+1}|z_t) and push z_t by p(z_t|z_{t+1}); push z_T by p(z_T)

The expected length is the path form of the bound, MATH (7). Latents lie on a grid for each t, whose spacing is 1/16 of the smaller of two
standard deviations, that of q(z_t|z_{t−1}) and that of q(z_t|z_{t+1}, x): rounding then adds 1/(12 · 16²) to the variance of a step. Items are
coded in groups, for which the network is called once a latent. A group has an eighth of the items before it, so that the bits of these pay
for its first latents, and few are borrowed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffusional.codec.stack import Real, Stack, Whole
from diffusional.errors import DiffusionalError
from diffusional.gaussian import Gaussian
from diffusional.models.base import LatentVariableModel
from diffusional.models.chain import Chain
from diffusional.models.likelihood import Decoded
from diffusional.space import Discrete

# Grid points for one standard deviation.
FINENESS = 16
# Items whose bits pay for the first latents of one more.
_PAID = 8


class BitSwap:
    """The coder of items of a chain with T Gaussian latents and discrete x, whose network is called for `rows` items at a time.

    Raises DiffusionalError for a chain in continuous time, one whose latents are not Gaussian, data that are not discrete, and a model that
    needs a condition.
    """

    def __init__(self, model: LatentVariableModel, rows: int) -> None:
        self.model, self.rows, self.latents = _coded(model), rows, int(model.steps or 0)
        assert isinstance(self.model.space, Discrete)
        self.space = self.model.space
        self.spacing = [self._spacing(t) for t in range(1, self.latents + 1)]

    def _spacing(self, t: int) -> float:
        """Return δ_t."""
        nothing = torch.zeros(1, *self.space.shape)
        steps = [self.model.process.transition(nothing, t)]
        if t < self.latents:
            steps.append(self.model.process.posterior(nothing, nothing, t))
        if not all(isinstance(step, Gaussian) for step in steps):
            raise _refused(self.model, "Gaussian latents", f"{type(steps[0]).__name__}")
        return min(float(step.std.double().max()) for step in steps) / FINENESS

    def groups(self, items: int) -> Iterator[slice]:
        """Yield the items of each group: an eighth of the number before it, at least one and at most `rows`."""
        start = 0
        while start < items:
            stop = min(items, start + max(1, min(self.rows, start // _PAID)))
            yield slice(start, stop)
            start = stop

    def encode(self, stack: Stack, index: Tensor, group: int) -> None:
        """Push the items of group number `group`, with levels `index` (n, *shape)."""
        n, x = len(index), self.space.encode(index)
        first = self._numbers(self.model.process.transition(x, 1), 1, n)
        stack.hide(index.numel(), self._key(group, 1))
        z = stack.pop_gaussian(*first)
        stack.push_levels(index.flatten().numpy(), self._levels(z, n))
        for t in range(1, self.latents):
            forward = self._numbers(self._forward(z, t, n), t + 1, n)
            stack.hide(index.numel(), self._key(group, t + 1))
            z_next = stack.pop_gaussian(*forward)
            stack.push_gaussian(z, *self._numbers(self._step(z_next, t, n), t, n))
            z = z_next
        stack.push_gaussian(z, *self._numbers(self.model.last(n), self.latents, n))

    def decode(self, stack: Stack, n: int, group: int) -> Tensor:
        """Pop the n items of group number `group`, and return their levels (n, *shape), int64."""
        z = stack.pop_gaussian(*self._numbers(self.model.last(n), self.latents, n))
        for t in range(self.latents - 1, 0, -1):
            z_before = stack.pop_gaussian(*self._numbers(self._step(z, t, n), t, n))
            stack.push_gaussian(z, *self._numbers(self._forward(z_before, t, n), t + 1, n))
            stack.hide(len(z), self._key(group, t + 1))
            z = z_before
        index = torch.from_numpy(stack.pop_levels(self._levels(z, n))).view(n, *self.space.shape)
        stack.push_gaussian(z, *self._numbers(self.model.process.transition(self.space.encode(index), 1), 1, n))
        stack.hide(len(z), self._key(group, 1))
        return index

    def _key(self, group: int, t: int) -> int:
        """Return a number of its own for each latent of each group."""
        return 1 + group * self.latents + t

    def _numbers(self, distribution: object, t: int, n: int) -> tuple[Real, Real]:
        """Return mean and standard deviation (n · D,) of the first n items, in units of δ_t."""
        if not isinstance(distribution, Gaussian):
            raise _refused(self.model, "Gaussian latents", type(distribution).__name__)
        mean = distribution.mean.double()
        std = distribution.std.double().expand_as(mean)
        return tuple((value[:n].flatten() / self.spacing[t - 1]).numpy() for value in (mean, std))  # pyright: ignore[reportReturnType]

    def _latent(self, z: Whole, t: int, n: int) -> Tensor:
        """Return latents (n, *shape) from numbers of the grid (n · D,), in the network's float32."""
        return torch.from_numpy(z * self.spacing[t - 1]).float().view(n, *self.space.shape)

    def _filled(self, z: Tensor) -> Tensor:
        """Return `rows` items, the last of them repeated, so that the network always has one shape."""
        return torch.cat([z, z[-1:].expand(self.rows - len(z), *z.shape[1:])])

    def _forward(self, z: Whole, t: int, n: int) -> object:
        return self.model.process.transition(self._latent(z, t, n), t + 1)

    def _step(self, z_next: Whole, t: int, n: int) -> object:
        return self.model.step(self._filled(self._latent(z_next, t + 1, n)), torch.full((self.rows,), t))

    def _levels(self, z: Whole, n: int) -> Real:
        """Return p(x|z_1) (n · D, K)."""
        decoded = self.model.decode(self._filled(self._latent(z, 1, n)))
        if not isinstance(decoded, Decoded) or not hasattr(decoded.likelihood, "level_log_probs"):
            raise _refused(self.model, "a decoder with probabilities of levels", type(decoded).__name__)
        log_probs = decoded.likelihood.level_log_probs(decoded.prediction)  # pyright: ignore[reportAttributeAccessIssue]
        return log_probs[:n].movedim(1, -1).double().exp().reshape(n * self.space.dimensions, -1).numpy()


def _coded(model: LatentVariableModel) -> Chain:
    """Return the model as a chain that can be coded."""
    if not isinstance(model, Chain):
        raise _refused(model, "a chain of latents", f"a {type(model).__name__}")
    if model.steps is None:
        raise DiffusionalError(
            "expected a model in discrete time, got one in continuous time; choose a number of latents with steps= (--steps)"
        )
    if not isinstance(model.space, Discrete) or not model.space.ordered:
        raise _refused(model, "discrete data of ordered levels", str(model.space))
    if model.condition_form is not None:
        raise _refused(model, "a model without a condition", f"one with {model.condition_form}")
    return model


def _refused(model: LatentVariableModel, expected: str, got: str) -> DiffusionalError:
    return DiffusionalError(f"the codec of a {type(model).__name__} expected {expected}, got {got}")
