"""A data set: one space and three splits of raw values, as the file stored them.

Raw values become the model's by the space's `encode`, and nowhere else. A split is known by its fingerprint,
a hash of what the values are (not of how many bytes stored them), so that two results can be compared only if
they speak of the same data.
"""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.space import Discrete, Space

SPLITS = ("train", "validation", "test")
_CHUNK = 1024  # items hashed at a time, so that hashing 8-byte values does not take 8 times the data's memory


@dataclass(frozen=True, eq=False)
class Dataset:
    """Raw values `train`, `validation` and `test`, each (N, *space.shape): integers for a discrete space,
    float32 or float64 for a continuous one.

    Raises DiffusionalError for a split that is empty or whose shape or type is not the space's; the values
    themselves are checked as they are encoded.

    >>> raw = torch.arange(6).reshape(3, 2)
    >>> data = Dataset("six", Discrete((2,), levels=6), raw[:1], raw[1:2], raw[2:])
    >>> data.encode("test")
    tensor([[0.6000, 1.0000]])
    """

    name: str
    space: Space
    train: Tensor
    validation: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        discrete = isinstance(self.space, Discrete)
        for split in SPLITS:
            raw: Tensor = getattr(self, split)
            if tuple(raw.shape[1:]) != self.space.shape:
                raise DiffusionalError(
                    f"{self.name}: the {split} split has shape {tuple(raw.shape)}; expected (N, "
                    f"{', '.join(map(str, self.space.shape))}), the space's items"
                )
            if raw.shape[0] == 0:
                raise DiffusionalError(f"{self.name}: the {split} split is empty; give it at least one item")
            integer = not (raw.dtype.is_floating_point or raw.dtype.is_complex or raw.dtype == torch.bool)
            if not (integer if discrete else raw.dtype in (torch.float32, torch.float64)):
                expected = "an integer type" if discrete else "torch.float32 or torch.float64"
                raise DiffusionalError(
                    f"{self.name}: the {split} split is of type {raw.dtype}; its "
                    f"{'discrete' if discrete else 'continuous'} space takes {expected}: convert it first"
                )

    def encode(self, split: str) -> Tensor:
        """The model's values of a split, (N, *space.shape) float32.

        Raises DiffusionalError for an unknown split and for what the space's `encode` refuses.

        >>> data = Dataset("two", Discrete((1,), levels=2), *[torch.tensor([[1]])] * 3)
        >>> data.encode("training")
        Traceback (most recent call last):
            ...
        diffusional.errors.DiffusionalError: split 'training' came; expected one of train, validation, test
        """
        raw = self._raw(split)
        try:
            return self.space.encode(raw)
        except DiffusionalError as error:
            raise DiffusionalError(f"{self.name}, split {split}: {error}") from error

    def fingerprint(self, split: str) -> str:
        """SHA-256 (64 hexadecimal digits) of a split: its shape, its space, and its values in order.

        Values are hashed as little-endian int64 (discrete) or float64 (continuous), so that the same values
        stored in another type have the same fingerprint. Raises DiffusionalError for an unknown split.

        >>> space, raw = Discrete((2,), levels=6), torch.arange(6).reshape(3, 2)
        >>> wide, narrow = Dataset("a", space, raw, raw, raw), Dataset("b", space, *[raw.to(torch.uint8)] * 3)
        >>> wide.fingerprint("train") == narrow.fingerprint("train")
        True
        """
        raw = self._raw(split)
        what = {"shape": list(raw.shape), "space": self.space.to_dict()}
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        dtype = "<i8" if isinstance(self.space, Discrete) else "<f8"
        for chunk in raw.split(_CHUNK):
            digest.update(chunk.cpu().numpy().astype(dtype).tobytes())
        return digest.hexdigest()

    def _raw(self, split: str) -> Tensor:
        if split not in SPLITS:
            raise DiffusionalError(f"split {split!r} came; expected one of {', '.join(SPLITS)}")
        return getattr(self, split)
