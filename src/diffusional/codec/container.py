"""The file of the codec: a magic number, the length of the header, the header in JSON, the words of the stack, and a SHA-256 of all before."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusional.errors import DiffusionalError

FORMAT = 2
_MAGIC = b"diffusional\x00"
_CHECKSUM = 32
_KEYS = [
    "format",
    "items",
    "rows",
    "seed",
    "initial_words",
    "unused_words",
    "data_sha256",
    "latents",
    "grid",
    "spacings",
    "paid",
    "label_counts",
    "condition",
]


def pack(header: dict[str, Any], words: NDArray[np.uint32]) -> bytes:
    """Return the bytes of a file."""
    about = json.dumps(header, sort_keys=True).encode()
    body = _MAGIC + len(about).to_bytes(4, "little") + about + words.astype("<u4").tobytes()
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes) -> tuple[dict[str, Any], NDArray[np.uint32]]:
    """Return header and words of a file. Raises DiffusionalError for bytes that `pack` did not write, or that have changed since.

    >>> header = dict.fromkeys(_KEYS, 1) | {"format": FORMAT}
    >>> unpack(pack(header, np.array([7, 8], dtype=np.uint32)))[1].tolist()
    [7, 8]
    >>> unpack(b"PNG")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected a file of `diffusional compress`, got other data
    """
    if not data.startswith(_MAGIC):
        raise DiffusionalError("expected a file of `diffusional compress`, got other data")
    body, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    if hashlib.sha256(body).digest() != checksum:
        raise DiffusionalError("the file is damaged or incomplete: its checksum is wrong; copy it again")
    start = len(_MAGIC) + 4
    end = start + int.from_bytes(body[len(_MAGIC) : start], "little")
    header = json.loads(body[start:end])
    if header.get("format") != FORMAT or any(key not in header for key in _KEYS):
        raise DiffusionalError(
            f"expected a file of format {FORMAT}, got format {header.get('format')}; decode it with the version that wrote it"
        )
    return header, np.frombuffer(body[end:], "<u4").astype(np.uint32)
