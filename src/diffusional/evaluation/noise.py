"""Evaluation noise that depends on the item and nothing else.

An item's score must not change with its batch-mates, the batch size, the order, or the subset that it is scored in. So its
noise comes from a counter-based generator (Philox; Salmon et al. 2011) keyed by a hash of the seed, the item's bytes, the
bytes of its condition if there is one, the number of equal items before it, and the draw.
"""

import hashlib
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from diffusional.conditions import Condition, check_condition, row_digests


def item_keys(x: Tensor, seed: int, condition: Condition | None = None) -> list[bytes]:
    """Return a 32-byte key for every item of x (N, *dims), from the seed, the item's float64 bytes and its occurrence in x.

    With a `condition` (N, …) the key depends on its row as well, and items count as the same only if their conditions are
    the same too. Raises DiffusionalError unless the condition has a row for every item.

    >>> import torch
    >>> keys = item_keys(torch.tensor([[0.0], [1.0], [0.0]]), seed=0)
    >>> keys[0] == keys[2], keys[1] == item_keys(torch.tensor([[1.0]]), seed=0)[0]
    (False, True)
    """
    check_condition(condition, len(x))
    given = None if condition is None else row_digests(condition)
    seen: Counter[bytes] = Counter()
    keys = []
    for i, row in enumerate(np.ascontiguousarray(x.detach().cpu().double().flatten(1).numpy().astype("<f8"))):
        content = hashlib.blake2b(row.tobytes(), digest_size=32).digest()
        if given is not None:
            content = hashlib.blake2b(content + given[i], digest_size=32).digest()
        tag = f"{seed}:{seen[content]}".encode()
        seen[content] += 1
        keys.append(hashlib.blake2b(content + tag, digest_size=32).digest())
    return keys


def stream(key: bytes, draw: int, purpose: bytes = b"") -> np.random.Generator:
    """Return the generator of one item's `draw`; the streams of different purposes are independent.

    >>> float(stream(b"item", 0).standard_normal()) == float(stream(b"item", 0).standard_normal())
    True
    """
    digest = hashlib.blake2b(key + draw.to_bytes(8, "little") + purpose, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def normal(streams: list[np.random.Generator], shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise (len(streams), *shape); in float32 for every type of model, so that an item always gets the same noise.

    >>> normal([stream(b"item", 0)], (2, 3)).shape
    torch.Size([1, 2, 3])
    """
    return torch.from_numpy(np.stack([g.standard_normal(shape, dtype=np.float32) for g in streams]))
