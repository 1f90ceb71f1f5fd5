"""The items that a run was trained on: an 8-byte hash of each, so that an evaluation can report that it scores them."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusional.evaluation.provenance import as_seen
from diffusional.files import load_tensors, save_tensors
from diffusional.space import Space

# The file of a run folder that holds the hashes.
TRAINED = "trained-on.safetensors"


class Trained:
    """Hashes of the training items of a run, as its model sees them. Two different items have the same hash with probability 2⁻⁶⁴.

    >>> from diffusional.space import Discrete
    >>> trained = Trained(Discrete((2,), 4))
    >>> trained.add(torch.tensor([[0, 1], [2, 3]]))
    >>> trained.among(trained.space.encode(torch.tensor([[2, 3], [3, 3]]))).tolist()
    [True, False]
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._blocks: list[Tensor] = []
        self._inherited = torch.zeros(0, dtype=torch.int64)

    def add(self, raw: Tensor) -> None:
        """Add raw items (n, *space.shape)."""
        self._blocks.append(item_hashes(self.space, self.space.encode(raw)))

    def inherit(self, other: "Trained") -> None:
        """Add the items that another run was trained on, from whose weights this one starts."""
        self._inherited = torch.cat([self._inherited, other.hashes])

    @property
    def hashes(self) -> Tensor:
        """The hash of each item, int64 (N,); inherited ones first."""
        return torch.cat([self._inherited, *self._blocks])

    def among(self, x: Tensor) -> Tensor:
        """Return whether each of the encoded items x (n, *space.shape) is a training item, bool (n,)."""
        return torch.from_numpy(np.isin(item_hashes(self.space, x).numpy(), self.hashes.numpy()))

    def save(self, run: Path) -> None:
        """Write the hashes to the run folder."""
        own = torch.cat([torch.zeros(0, dtype=torch.int64), *self._blocks])
        save_tensors(run / TRAINED, {"train": own} | ({"inherited": self._inherited} if len(self._inherited) else {}))

    @staticmethod
    def load(run: Path, space: Space) -> "Trained":
        """Load the hashes that `save` wrote. Raises DiffusionalError for a missing or damaged file."""
        trained = Trained(space)
        tensors, none = load_tensors(run / TRAINED), torch.zeros(0, dtype=torch.int64)
        trained._blocks, trained._inherited = [tensors.get("train", none)], tensors.get("inherited", none)
        return trained


def item_hashes(space: Space, x: Tensor) -> Tensor:
    """Return a 64-bit hash of each encoded item of x (n, *space.shape), int64 (n,), independent of the type of its values."""
    rows = np.ascontiguousarray(as_seen(space, x).cpu().double().flatten(1).numpy().astype("<f8"))
    found = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return torch.from_numpy(np.frombuffer(found, "<i8").astype(np.int64))
