"""The claims of MATH §6, C1 to C17, each tested together with a negative control that must fail: `diffusional claims`.

A claim is a function that returns checks (check.py) for a seed; the same function with a broken part as a further argument is the
control. Worlds, networks and noise are drawn from the seed. The two sides of a comparison are always computed independently: bounds by
the model; informations, gaps and slacks from separate densities (chains.py, `information`).

>>> from diffusional import claims
>>> (result,) = claims.run(["C9"])
>>> result.holds, result.control_fails
(True, True)
"""

import time
from collections.abc import Callable, Iterable

from diffusional.claims import codes, conditions, identities, learning, masks, systems, witnesses
from diffusional.claims.check import Check, Claim, Result
from diffusional.errors import DiffusionalError
from diffusional.seeds import check_seed

__all__ = ["CLAIMS", "Check", "Claim", "Result", "run"]

CLAIMS = (
    Claim(
        "C1",
        "(6) = (7) = (8): three ways to the same ELBO",
        identities.c1,
        {"β_2 doubled in one factor of (7)": {"doubled_beta": 2}},
    ),
    Claim(
        "C2",
        "the forward conditional informations I(x; z_t | z_{t−1}) vanish (12)",
        identities.c2,
        {"DDIM posterior, η = 0.5": {"eta": 0.5}},
    ),
    Claim(
        "C3",
        "I(x; z_1) is constant over training, and not zero",
        learning.c3,
        {"a learned γ_1": {"kind": "learned γ_1"}, "a VAE": {"kind": "VAE"}},
    ),
    Claim(
        "C4",
        "KL is convex, with slack I(x; z_{1:T}) (9)",
        identities.c4,
        {"p_x that follow x": {"unequal": 2.0}},
    ),
    Claim(
        "C5",
        "chain rules: forward (11), backward (13)",
        identities.c5,
        {"DDIM posterior, η = 0.5": {"eta": 0.5}},
    ),
    Claim(
        "C6",
        "the nat budget closes (17)–(20)",
        identities.c6,
        {"DDIM posterior, η = 0.5": {"eta": 0.5}, "the prior term dropped": {"prior": False}},
    ),
    Claim(
        "C7",
        "sampling t leaves bound and gradient unbiased (22)",
        learning.c7,
        {"importance sampling without its weights": {"spoil": learning.Unweighted}},
    ),
    Claim(
        "C8",
        "KL_T / (½ SNR_T E‖x‖²) → 1",
        identities.c8,
        {"p(z_T) = N(0, 1.1 I)": {"prior": identities.wider_prior}},
    ),
    Claim(
        "C9",
        "E ln p(x) − ELBO = E KL[q(z|x) ‖ p(z|x)] = Σ gaps − KL[q(x) ‖ p(x)] ≥ 0",
        identities.c9,
        {"KL_2 dropped": {"dropped": 2}},
    ),
    Claim(
        "C10",
        "a frozen encoder's I(x; z_1) is constant over training, and the joint NELBO is H(x) + gaps (28)",
        systems.c10,
        {"an encoder that trains along": {"along": True}},
    ),
    Claim(
        "C11",
        "the cross-fitted bound over classes stays below ln p(x) (25)",
        conditions.c11,
        {"the plug-in ln Σ p(c) e^estimate": {"plug_in": True}},
    ),
    Claim(
        "C12",
        "i(x; c) averages to I(x; c) (27)",
        conditions.c12,
        {"labels of other items": {"shuffled": True}},
    ),
    Claim(
        "C13",
        "the bound of a guided chain is valid, and best at w = 1 (26)",
        conditions.c13,
        {"guided costs taken for those of the unguided chain": {"called_unguided": True}},
    ),
    Claim(
        "C14",
        "the probability flow gives ln p(x) for an optimal denoiser (31)",
        witnesses.c14,
        {"the divergence left out": {"divergence": 0.0}},
    ),
    Claim(
        "C15",
        "importance-weighted bounds rise with K and stay below ln p(x) (32)",
        witnesses.c15,
        {"the mean of the K log-weights": {"mean_of_logs": True}},
    ),
    Claim(
        "C16",
        "a file is as long as the path form of the bound (33)",
        codes.c16,
        {"without bits back": {"bits_back": False}},
        needs="constriction",
    ),
    Claim(
        "C17",
        "a masked diffusion's bound depends on no schedule, and is H(x) with exact conditionals (34)",
        masks.c17,
        {"without the weight L/n": {"weighted": False}},
    ),
)


def run(
    only: Iterable[str] | None = None, seed: int = 0, progress: Callable[[str], None] | None = None
) -> list[Result]:
    """Test the claims of these ids (by default all whose packages are installed) and their controls; `progress` is called with a description of each before it starts.

    Raises DiffusionalError for an unknown id, and for a seed outside 0 … 2³² − 1.
    """
    chosen = [claim.id for claim in CLAIMS if claim.available] if only is None else [name.upper() for name in only]
    known = {claim.id: claim for claim in CLAIMS}
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise DiffusionalError(f"expected claims to be some of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    check_seed(seed, below=2**32)
    results = []
    for claim in (claim for claim in CLAIMS if claim.id in chosen):
        if progress is not None:
            progress(f"{claim.id} {claim.says}")
        started = time.monotonic()
        checks = tuple(claim.measure(seed))
        controls = {what: tuple(claim.measure(seed, **broken)) for what, broken in claim.controls.items()}
        results.append(Result(claim, checks, controls, round(time.monotonic() - started, 2)))
    return results
