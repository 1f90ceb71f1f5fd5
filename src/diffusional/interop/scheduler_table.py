"""The table of diffusers' schedulers, and its form in docs/checkpoints.md, which `python -m diffusional.interop.scheduler_table` writes."""

from dataclasses import dataclass
from typing import Literal

from diffusional.models.reverse import Variance

Family = Literal["betas", "flow", "edm", "score", "refused"]


@dataclass(frozen=True)
class Entry:
    """What a scheduler means.

    Attributes:
        family: "betas", discrete levels of a variance-preserving process; "flow", z = (1 − t) x + t ε; "edm", z = x + σ ε with Karras'
            preconditioning; "score", z = x + σ ε and a score; or "refused".
        note: a remark, or the reason for which it is refused.
        predictions: values of prediction_type that it takes.
        ancestral: whether its step is p(z_t|z_{t+1}) of our chain, so that variance_type (or the posterior's variance) is its own.
        ve: whether its sampler's latents are x + σ ε, so that it starts from N(0, σ_T² I) unless timestep_spacing is "leading".
        clock: the time input of an "edm" network: "log", ¼ ln σ, or "arctan", (2/π) arctan σ.
    """

    family: Family
    note: str = ""
    predictions: tuple[str, ...] = ("epsilon", "sample", "v_prediction")
    ancestral: bool = False
    ve: bool = False
    clock: Literal["log", "arctan"] = "log"


_TOKENS = "its data are tokens: categorical, not Gaussian, latents"
_JUMPS = "its network jumps from any level to data (a consistency model or a distilled one) and is not a denoiser"
_FLOW = ("epsilon", "sample", "v_prediction", "flow_prediction")

TABLE: dict[str, Entry] = {
    "AmusedScheduler": Entry("refused", _TOKENS),
    "BlockRefinementScheduler": Entry("refused", _TOKENS),
    "CMStochasticIterativeScheduler": Entry("refused", _JUMPS),
    "CogVideoXDDIMScheduler": Entry(
        "betas", "log SNR is lower by ln snr_shift_scale; clip_sample is not applied by it"
    ),
    "CogVideoXDPMScheduler": Entry("betas", "log SNR is lower by ln snr_shift_scale; clip_sample is not applied by it"),
    "ConsistencyDecoderScheduler": Entry("refused", _JUMPS),
    "CosineDPMSolverMultistepScheduler": Entry("edm", predictions=("epsilon", "v_prediction"), clock="arctan"),
    "DDIMInverseScheduler": Entry("betas"),
    "DDIMParallelScheduler": Entry("betas"),
    "DDIMScheduler": Entry("betas"),
    "DDPMParallelScheduler": Entry("betas", "`variance_type`: see below", ancestral=True),
    "DDPMScheduler": Entry("betas", "`variance_type`: see below", ancestral=True),
    "DDPMWuerstchenScheduler": Entry(
        "refused", "its levels are ratios of time of Würstchen's cascade, which is not read"
    ),
    "DEISMultistepScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "DPMSolverMultistepInverseScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "DPMSolverMultistepScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "DPMSolverSDEScheduler": Entry("betas", predictions=("epsilon", "v_prediction"), ve=True),
    "DPMSolverSinglestepScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "DiscreteDDIMScheduler": Entry("refused", _TOKENS),
    "EDMDPMSolverMultistepScheduler": Entry("edm", predictions=("epsilon", "v_prediction")),
    "EDMEulerScheduler": Entry("edm", predictions=("epsilon", "v_prediction")),
    "EntropyBoundScheduler": Entry("refused", _TOKENS),
    "EulerAncestralDiscreteScheduler": Entry("betas", predictions=("epsilon", "v_prediction"), ancestral=True, ve=True),
    "EulerDiscreteScheduler": Entry(
        "betas", 'EDM with timestep_type="continuous" and v_prediction', (*_FLOW[:3], "original_sample"), ve=True
    ),
    "FlowMapEulerDiscreteScheduler": Entry("refused", _JUMPS),
    "FlowMatchEulerDiscreteScheduler": Entry("flow", "shifts are its sampler's"),
    "FlowMatchHeunDiscreteScheduler": Entry("flow", "shifts are its sampler's"),
    "FlowMatchLCMScheduler": Entry("refused", _JUMPS),
    "HeliosDMDScheduler": Entry("refused", _JUMPS),
    "HeliosScheduler": Entry("refused", "its process changes the resolution between stages"),
    "HeunDiscreteScheduler": Entry("betas", ve=True),
    "IPNDMScheduler": Entry("refused", "it has no declared betas and no prediction type"),
    "KDPM2AncestralDiscreteScheduler": Entry("betas", predictions=("epsilon", "v_prediction"), ve=True),
    "KDPM2DiscreteScheduler": Entry("betas", predictions=("epsilon", "v_prediction"), ve=True),
    "KarrasVeScheduler": Entry("refused", "diffusers has withdrawn it"),
    "LCMScheduler": Entry("refused", _JUMPS),
    "LMSDiscreteScheduler": Entry("betas", ve=True),
    "LTXEulerAncestralRFScheduler": Entry("flow", "its own grid is its sampler's"),
    "MiniMaxH3Scheduler": Entry("flow", "shifts are its sampler's"),
    "PNDMScheduler": Entry("betas", predictions=("epsilon", "v_prediction")),
    "PiflowScheduler": Entry("refused", "its network predicts a policy, not x or the noise"),
    "RFD4ProteinaScheduler": Entry("refused", "its latents are frames of proteins, with rotations"),
    "RePaintScheduler": Entry("betas", "its condition, a known part of the image, is left out", ("epsilon",)),
    "SASolverScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "SCMScheduler": Entry("refused", _JUMPS),
    "ScoreSdeVeScheduler": Entry("score", "data from 0 to 1; corrector steps are its sampler's", ("score",)),
    "ScoreSdeVpScheduler": Entry("refused", "diffusers has withdrawn it"),
    "TCDScheduler": Entry("refused", _JUMPS),
    "UnCLIPScheduler": Entry("betas", "cosine betas", ("epsilon", "sample"), ancestral=True),
    "UniPCMultistepScheduler": Entry("betas", "a flow with use_flow_sigmas", _FLOW),
    "VQDiffusionScheduler": Entry("refused", _TOKENS),
}


# Of DDPMScheduler's variance_type: what p(z_t|z_{t+1}) is, and what the network's further outputs are.
VARIANCE_TYPES: dict[str, tuple[Variance, Literal["range", "variance"] | None, str]] = {
    "fixed_small": ("posterior", None, "that of q(z_t|z_{t+1}, x)"),
    "fixed_small_log": ("posterior", None, "that of q(z_t|z_{t+1}, x)"),
    "fixed_large": ("transition", None, "β_{t+1}"),
    "fixed_large_log": ("transition", None, "β_{t+1}; diffusers' own step takes the root of its logarithm, NaN"),
    "learned": ("learned", "variance", "the second half of the output itself, which must be positive"),
    "learned_range": ("learned", "range", "between the two in log space, at (1 + the second half of the output)/2"),
}
# Words for `variance`: ours and diffusers'.
VARIANCES = {
    "posterior": "fixed_small",
    "transition": "fixed_large",
    "learned": "learned_range",
    **{name: name for name in VARIANCE_TYPES},
}


def markdown() -> str:
    """Return the table of schedulers in docs/checkpoints.md.

    >>> markdown().splitlines()[0]
    '| scheduler | read as | predictions | variance of p | note |'
    """
    families = {
        "betas": "betas, T levels",
        "flow": "flow, continuous",
        "edm": "EDM, continuous",
        "score": "variance exploding, T levels",
        "refused": "refused",
    }
    lines = ["| scheduler | read as | predictions | variance of p | note |", "|---|---|---|---|---|"]
    for name, entry in sorted(TABLE.items()):
        if entry.family == "refused":
            lines.append(f"| {name} | refused | | | {entry.note} |")
            continue
        words = {"flow": "velocity", "edm": "F (epsilon, v_prediction)", "score": "score"}.get(
            entry.family, ", ".join(entry.predictions)
        )
        own = "in the config" if "variance_type" in entry.note or name.startswith("UnCLIP") else "posterior"
        variance = "" if entry.family in ("flow", "edm") else own if entry.ancestral else "posterior, assumed"
        lines.append(f"| {name} | {families[entry.family]} | {words} | {variance} | {entry.note} |")
    return "\n".join(lines) + "\n"


def variances_markdown() -> str:
    """Return the table of variance_type in docs/checkpoints.md.

    >>> variances_markdown().splitlines()[2]
    '| `fixed_small` | `posterior` | that of q(z_t\\\\|z_{t+1}, x) |'
    """
    lines = ["| `variance_type` | ours | the variance of p(z_t\\|z_{t+1}) |", "|---|---|---|"]
    for name, (ours, _, meaning) in VARIANCE_TYPES.items():
        lines.append(f"| `{name}` | `{ours}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def write_tables(text: str) -> str:
    """Return a page with the tables between their markers written anew: `python -m diffusional.interop.scheduler_table` does so for the docs."""
    for name, table in (("schedulers", markdown()), ("variances", variances_markdown())):
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(start)
        text = before + start + table + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    from pathlib import Path

    page = Path(__file__).parents[3] / "docs" / "checkpoints.md"
    page.write_text(write_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
