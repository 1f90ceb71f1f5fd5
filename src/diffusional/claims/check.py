"""Checks: a measured number with its standard error, the expected number, and whether they agree.

Numbers are relative to the size of the quantity (an information, a bound), so that 0.01 always means 1 %:

    missed = |measured − expected| / max(tolerance, 4 · error)
    holds     missed ≤ 1, and 8 · error ≤ 0.01, so that a discrepancy of 1 % would be detected
    fails     missed ≥ 5: a control must miss by a wide margin
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

# The number of standard errors that a discrepancy may have; the largest allowed error, with which 1 % is twice that number of errors; the
# margin by which a control must miss.
SIGMAS, VISIBLE, FAR = 4.0, 0.01 / 8, 5.0


@dataclass(frozen=True)
class Check:
    """One `measured` number ± `error`, which must equal `expected` (with `at_least`: not be below it) to within `tolerance`.

    >>> Check("an identity", 1e-12, expected=0.0, tolerance=1e-9).holds
    True
    >>> Check("noise", 0.02, error=0.01).holds, Check("1 % off", 0.01, error=0.001).holds
    (False, False)
    """

    what: str
    measured: float
    error: float = 0.0
    expected: float = 0.0
    tolerance: float = 1e-9
    at_least: bool = False

    @property
    def missed(self) -> float:
        """The distance from the expected number in units of the allowed one; infinite for a number that is not finite."""
        if not (math.isfinite(self.measured) and math.isfinite(self.error)):
            return math.inf
        allowed, off = max(self.tolerance, SIGMAS * self.error), self.measured - self.expected
        # A number must exceed a lower limit by its error.
        return max(0.0, 1 - (off - SIGMAS * self.error) / allowed) if self.at_least else abs(off) / allowed

    @property
    def holds(self) -> bool:
        """Whether the number is within the allowed distance, with an error small enough to detect 1 %; limits must be exceeded by 4 errors."""
        return self.missed <= 1 and (self.at_least or self.error <= VISIBLE)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready record: null for a number that is not finite."""
        numbers = {"measured": self.measured, "error": self.error, "expected": self.expected}
        return {
            "what": self.what,
            **{k: v if math.isfinite(v) else None for k, v in numbers.items()},
            "tolerance": self.tolerance,
            "at_least": self.at_least,
        }


def worst(checks: Sequence[Check]) -> Check:
    """Return the check that decides, which is the one that misses most."""
    return max(checks, key=lambda check: (not check.holds, check.missed))


@dataclass(frozen=True)
class Claim:
    """A claim of MATH §6: `measure(seed, **broken)` returns its checks; each of `controls` is a broken part, by name. `needs` is an optional
    package that it uses.
    """

    id: str
    says: str
    measure: Callable[..., list[Check]]
    controls: Mapping[str, Mapping[str, Any]]
    needs: str = ""

    @property
    def available(self) -> bool:
        """Whether the package that the claim needs is installed."""
        return not self.needs or find_spec(self.needs) is not None


@dataclass(frozen=True)
class Result:
    """The checks of a claim, and those of each of its controls."""

    claim: Claim
    checks: tuple[Check, ...]
    controls: Mapping[str, tuple[Check, ...]]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether all checks hold."""
        return all(check.holds for check in self.checks)

    @property
    def control_fails(self) -> bool:
        """Whether each control misses by a wide margin in at least one check."""
        return all(worst(checks).missed >= FAR for checks in self.controls.values())

    @property
    def control(self) -> tuple[str, Check]:
        """The control that misses least, and the check in which it misses most."""
        name = min(self.controls, key=lambda name: worst(self.controls[name]).missed)
        return name, worst(self.controls[name])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready record: the check that decides, the control that comes closest to passing, and all of both."""
        name, control = self.control
        decides = worst(self.checks).to_dict()
        return {
            "id": self.claim.id,
            "claim": self.claim.says,
            "holds": self.holds,
            "control_fails": self.control_fails,
            **decides,
            "control": control.to_dict() | {"what": name, "check": control.what},
            "checks": [check.to_dict() for check in self.checks],
            "controls": {name: [check.to_dict() for check in checks] for name, checks in self.controls.items()},
            "seconds": self.seconds,
        }
