"""A measured fault: its size, and the same size by a second route."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

LN2 = math.log(2.0)


@dataclass(frozen=True)
class Value:
    """A number with its standard error, which is 0 for a closed form."""

    value: float
    error: float = 0.0

    def __sub__(self, other: "Value") -> "Value":
        """Return the difference of two independent values."""
        return Value(self.value - other.value, math.hypot(self.error, other.error))

    def __mul__(self, factor: float) -> "Value":
        return Value(self.value * factor, self.error * abs(factor))


def mean(values: Tensor, factor: float = 1.0) -> Value:
    """Return the mean of values (N, …) over items N with its standard error, times `factor`."""
    items = values.double().flatten(1).mean(1) if values.ndim > 1 else values.double()
    error = float(items.std() / len(items) ** 0.5) if len(items) > 1 else 0.0
    return Value(float(items.mean()), error) * factor


def bits(values: Tensor, dimensions: int) -> Value:
    """Return the mean of costs in nats as bits/dim."""
    return mean(values, 1 / (dimensions * LN2))


def case(
    fault: str, data: str, name: str, size: Value, second: Value, route: str, relative: float = 0.0, **others: Any
) -> dict[str, Any]:
    """Return a case of a fault as a record.

    The two sizes agree if they differ by at most three standard errors, or by at most the part `relative` of the second
    one, which is given where a route is an approximation.

    Args:
        fault: the name of its page in docs/audit.
        data: "digits" or "MNIST".
        name: what varies within the fault, "" if nothing does.
        size: the faulty number minus the right one, bits/dim.
        second: the same by the second route.
        route: the second route in words.
        others: further numbers for the page.
    """
    apart = size - second
    allowed = max(3 * apart.error, relative * abs(second.value), 1e-9)
    record = {
        "fault": fault,
        "data": data,
        "case": name,
        "size": asdict(size),
        "second": asdict(second),
        "route": route,
    }
    record |= {"agree": bool(abs(apart.value) <= allowed)}
    plain = {key: asdict(value) if isinstance(value, Value) else value for key, value in others.items()}
    return record | ({"others": plain} if plain else {})
