"""Records of results on disk: checked entries of a JSON object, and tensors beside it.

A record has a number, "format". Records of versions that had none are format 0.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.evaluation.provenance import tensor_hash
from diffusional.files import json_text, load_json, load_tensors, write_tensors, writing
from diffusional.ledger import Estimate

# The format that this version writes. It reads this one and all earlier ones.
FORMAT = 1
# The entry of a saved record with the hash of the tensors beside it.
SCORES = "scores_sha256"
_MISSING = object()


@dataclass(frozen=True)
class Entries:
    """The entries of a JSON object, each checked when it is read.

    Attributes:
        record: the object.
        where: what it is called in messages.

    >>> entries = Entries({"items": 3, "error": None}, "a.json")
    >>> entries.integer("items"), entries.number("error", null=float("inf"))
    (3, inf)
    >>> entries.text("items")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: a.json: 'items' must be a string, got 3. The record is damaged or was ...
    """

    record: Mapping[str, Any]
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.record, Mapping):
            raise DiffusionalError(f"{self.where} must be a JSON object, got {type(self.record).__name__}")

    @property
    def format(self) -> int:
        """The number of the record's format. Raises DiffusionalError for formats of later versions."""
        number = self.integer("format", least=0, default=0)
        if number > FORMAT:
            raise DiffusionalError(
                f"{self.where} has format {number}, and this version of diffusional reads formats up to {FORMAT}: update diffusional"
            )
        return number

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """Return an entry as it is. Raises DiffusionalError if it is missing and there is no default."""
        value = self.record.get(name, default)
        if value is _MISSING:
            raise DiffusionalError(
                f"{self.where} has no entry {name!r}: it is not the record of an evaluation, or is damaged"
            )
        return value

    def wrong(self, name: str, expected: str, value: Any) -> DiffusionalError:
        """Return the error for an entry that is not as expected."""
        return DiffusionalError(
            f"{self.where}: {name!r} must be {expected}, got {value!r:.60}. The record is damaged or was edited; write it again"
        )

    def text(self, name: str, default: Any = _MISSING) -> str:
        """Return a string."""
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        return value

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        """Return a boolean."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def integer(self, name: str, least: int = 1, default: Any = _MISSING) -> int:
        """Return an integer of at least `least`."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(name, f"an integer of at least {least}", value)
        return value

    def number(self, name: str, null: float | None = None, default: Any = _MISSING) -> float:
        """Return a finite number; `null` for null, if it is given."""
        value = self.get(name, default)
        if value is None and null is not None:
            return null
        if value is None or not _finite(value):
            raise self.wrong(name, "a finite number" + (" or null" if null is not None else ""), value)
        return float(value)

    def object(self, name: str, default: Any = _MISSING) -> dict[str, Any]:
        """Return an object."""
        value = self.get(name, default)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object", value)
        return value

    def texts(self, name: str, default: Any = _MISSING) -> tuple[str, ...]:
        """Return a list of strings as a tuple."""
        value = self.get(name, default)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(name, "a list of strings", value)
        return tuple(value)

    def tensor(self, name: str, null: bool = False, default: Any = _MISSING) -> Tensor:
        """Return a list of finite numbers as a tensor: int64 if all are integers, otherwise float64. With `null`, null is NaN."""
        value = self.get(name, default)
        allowed = isinstance(value, list) and all(_finite(one) or (null and one is None) for one in value)
        if not allowed:
            bad = next((one for one in value if not _finite(one)), None) if isinstance(value, list) else value
            raise self.wrong(name, "a list of finite numbers", bad)
        if value and all(isinstance(one, int) for one in value):
            return torch.tensor(value)
        return torch.tensor([math.nan if one is None else one for one in value], dtype=torch.float64)

    def estimate(self, name: str, n: int, network_evaluations: int, unit: str = "nats") -> Estimate:
        """Return an Estimate in `unit` that `Estimate.to_dict` wrote."""
        own = Entries(self.object(name), f"{self.where}, {name}")
        if own.text("unit") != unit:
            raise own.wrong("unit", repr(unit), own.text("unit"))
        infinite = own.texts("infinite", [])
        errors = [own.number(key, null=math.inf if key in infinite else math.nan) for key in ("error", "item_error")]
        if any(error < 0 for error in errors):
            raise own.wrong("error", "at least 0", min(errors))
        return Estimate(own.number("value"), errors[0], errors[1], n, network_evaluations, unit)

    def freedom(self, estimate: Estimate) -> float:
        """Return the degrees of freedom of an estimate's error, infinite for null; from the 95 % interval if the record has none."""
        if self.format == 0 and "freedom" not in self.record:
            interval = self.get("interval", None)
            if not isinstance(interval, dict) or not isinstance(ends := interval.get("nats"), list) or len(ends) != 2:
                return math.inf
            if not all(_finite(end) for end in ends):
                raise self.wrong("interval", "two finite numbers for each unit", ends)
            return freedom_of(float(ends[1]) - estimate.value, estimate.error)
        found = self.number("freedom", null=math.inf)
        if found < 0:
            raise self.wrong("freedom", "at least 0, or null for infinite", found)
        return found


def freedom_of(half: float, error: float) -> float:
    """Return the degrees of freedom, at least 1, of a 95 % interval by Student's t with this half width; infinite for a normal one.

    >>> round(freedom_of(2.2281388519649385, 1.0), 6), freedom_of(1.959963984540054, 1.0)
    (10.0, inf)
    """
    from scipy.stats import norm, t

    if not error > 0 or half / error <= float(norm.ppf(0.975)) * (1 + 1e-9):
        return math.inf
    # Bisection in ln f: the quantile falls with f.
    low, high = 0.0, math.log(1e9)
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(t.ppf(0.975, math.exp(middle))) > half / error else (low, middle)
    return math.exp(low)


def others(record: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return the entries of a record with other names than these.

    >>> others({"nelbo": 1, "split": "test"}, frozenset({"nelbo"}))
    {'split': 'test'}
    """
    return {name: value for name, value in record.items() if name not in names and name != SCORES}


def check_about(about: Mapping[str, Any], names: frozenset[str]) -> None:
    """Raise DiffusionalError if further entries of a record have the name of one of its own.

    >>> check_about({"split": "test"}, frozenset({"nelbo"}))
    """
    taken = sorted(name for name in about if name in names or name == SCORES)
    if taken:
        raise DiffusionalError(
            f"about must not have entries that every record has, got {', '.join(taken)}: rename them"
        )


def scores_path(path: Path) -> Path:
    """Return the file of the scores that belongs to a record.

    >>> scores_path(Path("runs/a/result.json")).name
    'result.scores.safetensors'
    """
    return path.with_suffix(".scores.safetensors")


def save(path: Path, record: Mapping[str, Any], scores: Mapping[str, Tensor]) -> None:
    """Write a record and, if there are any, its scores. Raises DiffusionalError if that fails; existing files are then unchanged.

    An existing file is replaced only if it is a record too, so that no config or plan of a run is lost by a wrong name.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "result.json"
    >>> save(path, {"nelbo_nats": 2.0}, {"nelbo": torch.ones(2)})
    >>> load(path)[1]
    {'nelbo': tensor([1., 1.])}
    """
    if path.suffix != ".json":
        raise DiffusionalError(
            f"a record is saved as NAME.json, got {path}: scores of items go to NAME.scores.safetensors"
        )
    if path.exists():
        _check_replaceable(path)
    whole = dict(record)
    if scores:
        whole[SCORES] = tensor_hash(scores)
    try:
        text = json_text(whole)
    except (TypeError, ValueError, RecursionError) as error:
        raise DiffusionalError(
            f"{path} could not be written: provenance and about must have JSON values (strings, finite numbers, lists, dicts), got {error}"
        ) from error
    if not scores:
        with writing(path) as (part,):
            part.write_text(text, encoding="utf-8")
        return
    # Both or neither: a failed write must not combine one record with the scores of another.
    with writing(scores_path(path), path) as (tensors, part):
        write_tensors(tensors, scores)
        part.write_text(text, encoding="utf-8")


def load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a record and its scores, {} if it has none.

    Raises DiffusionalError for missing or damaged files, and for scores of another record. Warns if the scores are missing.
    """
    record = load_json(path)
    wanted = record.get(SCORES)
    if wanted is None:
        return record, {}
    beside = scores_path(path)
    if not beside.exists():
        warnings.warn(
            f"{beside} does not exist, so that {path} is loaded without the scores of single items. Copy both files",
            stacklevel=3,
        )
        return record, {}
    scores = load_tensors(beside)
    if tensor_hash(scores) != wanted:
        raise DiffusionalError(
            f"{beside} has other scores than {path} was saved with: one of the two files was replaced or damaged. Save both again"
        )
    return record, scores


def _check_replaceable(path: Path) -> None:
    try:
        existing = load_json(path)
    except DiffusionalError as error:
        raise DiffusionalError(
            f"{path} exists and cannot be read as a record ({error}). Remove it, or name another file"
        ) from error
    if not existing.keys() & {"nelbo_nats", "difference_nats"}:
        raise DiffusionalError(f"{path} exists and is not the record of an evaluation: name another file, or remove it")


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False
