"""Every random number of a run is a function of (seed, what for, when): nothing to save, and nothing that depends on how a
batch was cut."""

import hashlib


def seed_of(seed: int, purpose: str, *numbers: int) -> int:
    """A seed, 0 to 2⁶³ − 1, of its own for every purpose and numbers.

    torch's CPU generator uses the low 32 bits, so these must differ too, and of a hash they do.

    >>> seed_of(0, "noise", 1) == seed_of(0, "noise", 1), seed_of(0, "noise", 1) == seed_of(0, "order", 1)
    (True, False)
    """
    words = f"{seed}:{purpose}:{':'.join(map(str, numbers))}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1
