"""The network under check, called in the ways of different readings on the same items, noise and noise levels."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusional.conditions import Condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.forward import alpha, sigma
from diffusional.interop.adapter import value_at
from diffusional.interop.products import Products, price
from diffusional.interop.readings import INPUTS, OUTPUTS, Call, Reading, declared_input, declared_output
from diffusional.models.calls import call
from diffusional.models.denoiser import Denoiser, network_dtype, read
from diffusional.shapes import align
from diffusional.space import Discrete

# Errors of a network or a clock that cannot be called in a way.
_REFUSALS = (DiffusionalError, RuntimeError, IndexError, ValueError)


class CalledNetwork:
    """A denoiser's module, and the items, noise and noise levels at which readings of it are compared.

    The products of every call are kept, so that a later round calls the network only for what earlier ones left out.
    """

    def __init__(
        self, denoiser: Denoiser, space: object, x: Tensor, noise: Tensor, condition: Condition | None, gamma: Tensor
    ) -> None:
        self.denoiser, self.space, self.condition, self.gamma = denoiser, space, condition, gamma
        self.x, self.noise = x, noise
        self.dtype = network_dtype(denoiser.module) or x.dtype
        self.quarter = max(2, len(x) // 4)
        self.calls = 0
        name, own = declared_output(denoiser, gamma)
        # What the output may be, the declared kind first. A levels head's output is read as it is.
        self.outputs = {name: own}
        if denoiser.predicts != "levels":
            self.outputs |= {other: of for other, of in OUTPUTS.items() if other != name}
        self.inputs = dict([declared_input(denoiser, gamma)]) | INPUTS
        # oo, oe, oz, ee, ez and zz (6, levels, items) for every call; not a number where the network was not called.
        self.known: dict[Call, Tensor] = {}
        self.times: dict[tuple[str, float], Tensor] = {}

    def shifted(self, how: Call) -> Tensor:
        """Return γ (levels,) in the network's encoding."""
        return self.gamma + 2 * math.log(how.zoom)

    def fill(self, calls: Sequence[Call], items: int, levels: Tensor) -> None:
        """Call the network in these ways on the first `items` at chosen noise levels, where it was not yet called so.

        Ways that the network cannot be called in have infinite products. Calls that were filled together must be filled together again.
        """
        # Whole and real times are not mixed in a call, and items are encoded once.
        views: dict[tuple[str, str, torch.dtype | None], list[Call]] = {}
        for how in calls:
            views.setdefault((how.data, how.channels, self.kind_of_time(how)), []).append(how)
        for group in views.values():
            known = self.known.get(group[0])
            lacks = torch.ones(len(levels), items) if known is None else known[0][levels, :items].isnan()
            missing = lacks.nonzero()
            at, item = levels[missing[:, 0]], missing[:, 1]
            if not len(at):
                continue
            # At most as many rows in a call as the declared reading has.
            size = max(1, self.gamma.numel() * len(self.x) // len(at))
            for start in range(0, len(group), size):
                self._fill(group[start : start + size], at, item)

    def time(self, how: Call) -> Tensor:
        """Return the times (levels,) that a clock shows. Its errors propagate."""
        key = (how.clock, how.zoom)
        if key not in self.times:
            shown = how.time(self.shifted(how))
            self.times[key] = shown.to(self.dtype) if shown.dtype.is_floating_point else shown
        return self.times[key]

    def kind_of_time(self, how: Call) -> torch.dtype | None:
        """Return the type of the times that a clock shows; None if it refuses these noise levels."""
        try:
            return self.time(how).dtype
        except _REFUSALS:
            return None

    def _fill(self, group: Sequence[Call], at: Tensor, item: Tensor) -> None:
        """Call the network in ways that share their data, once if it can, at the noise levels `at` (R,) of the items (R,)."""
        try:
            products = self.products(group, at, item)
        except _REFUSALS:
            if len(group) > 1:
                for how in group:
                    self._fill([how], at, item)
                return
            products = torch.full((1, 6, len(at)), math.inf, dtype=torch.float64)
        # What is not a number here would be called again.
        products = torch.where(products.isnan(), math.inf, products)
        for how, of_call in zip(group, products, strict=True):
            if how not in self.known:
                self.known[how] = torch.full((6, len(self.gamma), len(self.x)), torch.nan, dtype=torch.float64)
            self.known[how][:, at, item] = of_call.cpu()

    def products(self, group: Sequence[Call], at: Tensor, item: Tensor) -> Tensor:
        """Return the products (calls, 6, R) of ways to call the network that share their data and channels."""
        how = group[0]
        gamma = self.shifted(how)[at]
        x, noise = how.encode(self.x[item].double()), self.noise[item]
        g = align(gamma, x)
        z = alpha(g) * x + sigma(g) * noise
        scaled = {one.input: value_at(one.scale, g) * z for one in group}
        times = [self.time(one) for one in group]
        output = self.output(
            torch.cat([scaled[one.input] for one in group]), z, gamma, torch.cat([one[at] for one in times]), item
        )
        o, e, of_z = output.double().reshape(len(group), len(at), -1), noise.flatten(1), z.flatten(1)
        shared = [t.mean(1).expand(len(group), -1) for t in (e * e, e * of_z, of_z * of_z)]
        return torch.stack([(o * o).mean(2), (o * e).mean(2), (o * of_z).mean(2), *shared], 1)

    def output(self, seen: Tensor, z: Tensor, gamma: Tensor, time: Tensor, item: Tensor) -> Tensor:
        """Return the network's outputs (k R, *dims) for its inputs (k R, *dims) of z (R, *dims), at k times (k R,)."""
        count = len(seen) // len(z)
        rows = lambda t: t.repeat(count, *(1,) * (t.ndim - 1))  # noqa: E731
        condition = moved(rows_of(self.condition, rows(item)), z.device)
        output = call(self.denoiser.module, seen.to(self.dtype), time, condition=condition)
        self.calls += len(output)
        if self.denoiser.learns_variance:
            output = output[:, : z.shape[1]]
        if self.denoiser.predicts == "levels":
            assert isinstance(self.space, Discrete)
            of_z = rows(z).to(self.dtype)
            output = read(output, of_z, rows(gamma), "levels", self.denoiser.head, self.space).data
        if output.shape[1:] != z.shape[1:]:
            raise DiffusionalError(
                f"expected the network to return the shape {tuple(z.shape)} of z, got {(len(z), *output.shape[1:])}: a network with a "
                "learned variance needs learns_variance=True"
            )
        return output

    def start(self, how: Call) -> bool:
        """Call the network on all items at all noise levels, on a quarter of the items twice, and return whether these outputs differ.

        Errors of the network propagate.
        """
        cells = torch.cartesian_prod(torch.arange(len(self.x)), torch.arange(len(self.gamma)))
        item, at = cells.T
        some = item < self.quarter
        one, other = (self.products([how], at[some], item[some])[0].cpu() for _ in range(2))
        known = self.known[how] = torch.zeros(6, len(self.gamma), len(self.x), dtype=torch.float64)
        known[:, at[some], item[some]] = one
        if bool((~some).any()):
            known[:, at[~some], item[~some]] = self.products([how], at[~some], item[~some])[0].cpu()
        # NaN, as of the logarithm of a wrong time, is not noise.
        return not torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)

    def of_time(self, how: Call) -> tuple[Tensor, Tensor]:
        """Return ‖ε − ε̂‖²/D (levels, items) of the declared output on a quarter of the items: as it is, and with the times in reversed order.

        How much they differ is how much the network depends on its time.
        """
        items, levels = self.quarter, len(self.gamma)
        at, item = torch.arange(levels).repeat_interleave(items), torch.arange(items).repeat(levels)
        turned = replace(how, clock="in reversed order", time=lambda gamma: how.time(gamma).flip(0))
        self._fill([turned], at, item)
        of, gamma = next(iter(self.outputs.values())), self.shifted(how).cpu()
        own, other = (Products(gamma, *self.known[one][:, :, :items]).squared_error(of) for one in (how, turned))
        return own, other

    def together(self, calls: Sequence[Call], items: int, levels: Tensor) -> Products:
        """Return the products (calls, levels, items) on the first `items` at chosen noise levels; the network is called where it must be."""
        self.fill(calls, items, levels)
        gamma = torch.stack([self.shifted(how)[levels] for how in calls]).cpu()
        return Products(gamma, *torch.stack([self.known[how][:, levels, :items] for how in calls], 1))

    def ranks(self, calls: Sequence[Call], products: Products, declared: Reading) -> Tensor:
        """Return the ranks (outputs, calls) with their prices."""
        counts = torch.tensor([len(declared.differences(how.reading(declared.output))) for how in calls])
        prices = [price(counts + (name != declared.output)) for name in self.outputs]
        return torch.stack([products.rank(of) for of in self.outputs.values()]) + torch.stack(prices)
