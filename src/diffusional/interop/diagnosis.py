"""What `check_denoiser` found, in numbers and in sentences."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusional.interop.products import many, score
from diffusional.interop.readings import Reading

# A wrong clock may not be found if times in reversed order change the score by less than this.
_DULL = 0.2
# The note about what no check finds, and the one if the two copies of the weights were compared.
NOT_FOUND = "a time that is off by one step, and weights that are not those of the moving average, cannot be found"
NOT_FOUND_OF_BOTH = "a time that is off by one step cannot be found"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `check_denoiser` found.

    Attributes:
        declared, best: the reading that the model declares, and the one that fits best: the declared one if it fits and no other is clearly
            better.
        margin, error: how much lower the score of `best` is, and its standard error over items; 0 if that is the declared reading.
        gamma, slope, squared_error: at every noise level (L,): γ, the slope ⟨target, output⟩/⟨output, output⟩ of the declared reading,
            which is 1 for a network that is read as it was trained, and E‖ε − ε̂‖²/D.
        ranked: the best readings with their scores, the lowest first.
        findings: what is probably wrong, one sentence each; empty if nothing was found.
        network_evaluations: in all.
        remedies: what to change, one sentence for each declaration that is wrong.
        notes: what the check could not find out, one sentence each.
    """

    declared: Reading
    best: Reading
    margin: float
    error: float
    gamma: Tensor
    slope: Tensor
    squared_error: Tensor
    ranked: tuple[tuple[Reading, float], ...]
    findings: tuple[str, ...]
    network_evaluations: int
    remedies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the record that `diffusional check --json` writes."""
        return {
            "format": 1,
            "declared": vars(self.declared),
            "best": vars(self.best),
            "margin": self.margin,
            "margin_error": self.error,
            "gamma": self.gamma.tolist(),
            "slope": self.slope.tolist(),
            "squared_error": self.squared_error.tolist(),
            "ranked": [{**vars(reading), "score": score} for reading, score in self.ranked],
            "findings": list(self.findings),
            "remedies": list(self.remedies),
            "notes": list(self.notes),
            "network_evaluations": self.network_evaluations,
        }

    def line(self) -> str:
        """Return the findings and what to do about them in one line, as `diffusional evaluate` prints them."""
        cost = f"{self.network_evaluations:,} network evaluations"
        if not self.findings:
            return f"nothing found in {cost}: the network fits the declared reading"
        return f"{'; '.join([*self.findings, *self.remedies])} (found in {cost})"

    def __str__(self) -> str:
        findings = self.findings or (f"nothing found in {self.network_evaluations:,} network evaluations",)
        lines = [*findings, f"declared: {self.declared}"]
        if self.best != self.declared:
            lines.append(f"best:     {self.best} (score lower by {self.margin:.2f} ± {self.error:.2f})")
        return "\n".join([*lines, *(f"note:     {note}" for note in self.notes)])


def notes_of(own: Tensor, other: Tensor) -> tuple[str, ...]:
    """Return what the check cannot find out."""
    # A wrong clock raises the error by at most about this.
    rise = float(score(other) - score(own))
    notes = [NOT_FOUND]
    if math.isfinite(rise) and abs(rise) < _DULL:
        notes.insert(
            0,
            "the network hardly depends on its time input: with the times in reversed order its score differs by only "
            f"{rise:.2f}; a wrong clock may not be found",
        )
    return tuple(notes)


# What to change, by the declaration that is wrong.
_REMEDIES = {
    "output": "declare the output: prediction_type of the scheduler's config, or predicts= of df.wrap",
    "input": "declare how z is scaled: another scheduler=, or reads= and scale= of df.wrap",
    "clock": "give the time that it was trained with: the scheduler's config of the training, or time=",
    "data": "encode the data in that range: space=df.Discrete(shape, levels, low, high)",
    "channels": "reverse the channels of the data",
}

_SAID = {
    "output": "its output is {1}, and {0} is declared",
    "input": "it takes {1} as its input, and gets {0}",
    "clock": "its clock is {1}, and another one is declared",
    "data": "it was trained on data in {1}, and gets data in {0}",
    "channels": "it was trained with the channels of the data {1}",
}


def findings_of(
    declared: Reading,
    best: Reading,
    margin: float,
    error: float,
    gamma: Tensor,
    slope: Tensor,
    wrong: Tensor,
    random: bool,
    fits: bool,
    idle: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is probably wrong, and what to do about it."""
    found, remedies = [], []
    if random:
        found.append(
            "the network returns different outputs for the same input: dropout or another source of noise is on"
        )
        remedies.append("turn dropout off, which `eval()` does for an nn.Module")
    if fits:
        differences = declared.differences(best)
        parts = [_SAID[name].format(*pair) for name, pair in differences.items()]
        remedies += [_REMEDIES[name] for name in differences]
        found.append(
            f"the network fits another reading better: {'; '.join(parts)} (score lower by {margin:.2f} ± {error:.2f})"
        )
    elif not random and (idle or many(wrong)):
        off = wrong if many(wrong) else torch.ones_like(wrong)
        at = [
            f"{float(s):.2f} at γ = {float(g):.1f}" for s, g in zip(slope[off][:3], gamma.cpu()[off][:3], strict=True)
        ]
        remedies.append("compare the checkpoint's files and its scheduler with those of its training")
        found.append(
            f"the network does not fit the declared reading (slopes of {', '.join(at)}; expected 1"
            f"{'; its estimate of the noise is no better than a multiple of z' if idle else ''}), nor any other that was tried: it is untrained or "
            f"badly trained, its weights were not loaded, or it is read in a way that is not known here{f'. The nearest is: {best}' if best != declared else ''}"
        )
    return tuple(found), tuple(remedies)
