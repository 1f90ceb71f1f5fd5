"""Systems of several models with one bound on ln p(x): cascades and frozen encoders, MATH (28)–(30).

A composite has *stages*, each a model of its own variable, a function of x or drawn from a frozen posterior, given the variable of the stage
before it and the condition c. Its ledger joins those of the stages, in nats of x:

    Cascade          y_1 = d_1(x), y_2 = d_2(x), …, x, all but the last quantised:
                     −ln p(x|c) ≤ NELBO(y_1|c) + NELBO(y_2|y_1, c) + … + NELBO(x|y_K, c)                              MATH (29)
    FrozenEncoder    a deterministic encoder f: the latents z_1 … z_T of a diffusion of f(x), and x given z_1:
                     −ln p(x|c) ≤ Σ_{t<T} KL_t + KL_T + E NELBO(x|z_1, c)                                             MATH (28)
    FrozenPosterior  a stochastic encoder q(y|x), as of a VAE:
                     −ln p(x|c) ≤ E [NELBO(x|y, c) + NELBO(y|c)] − E H[q(y|x)]                                        MATH (28)

Each is the bound of one generative model, which `sample` samples. A deterministic y = f(x) that is real-valued has no mass and its density is
not that of x, so that −ln p(f(x)) cannot be a cost: a cascade needs quantised variables, and a frozen encoder hands z_1 over, not f(x).
An evaluation to a target visits the levels of all stages, at one network evaluation a visit (models/stage_chain.py).
"""

from diffusional.models.composite.base import Composite as Composite
from diffusional.models.composite.cascade import Cascade as Cascade
from diffusional.models.composite.downscale import Downscale as Downscale
from diffusional.models.composite.downscale import enlarged as enlarged
from diffusional.models.composite.frozen import FrozenEncoder as FrozenEncoder
from diffusional.models.composite.frozen import FrozenPosterior as FrozenPosterior
from diffusional.models.composite.links import linked as linked
from diffusional.models.composite.links import tail_of as tail_of

__all__ = ["Cascade", "Composite", "Downscale", "FrozenEncoder", "FrozenPosterior", "enlarged", "linked", "tail_of"]
