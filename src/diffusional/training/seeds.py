"""Seeds for the random numbers of a run, as a function of the run's seed, a purpose and the step.

Therefore no random states are saved, and results do not depend on how a batch is divided.
"""

import hashlib


def seed_of(seed: int, purpose: str, *numbers: int) -> int:
    """Return a seed from 0 to 2⁶³ − 1 that differs for every purpose and numbers.

    torch's CPU generator uses only the low 32 bits, so that these must differ too, as those of a hash do.

    >>> seed_of(0, "noise", 1) == seed_of(0, "noise", 1), seed_of(0, "noise", 1) == seed_of(0, "order", 1)
    (True, False)
    """
    words = f"{seed}:{purpose}:{':'.join(map(str, numbers))}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1
