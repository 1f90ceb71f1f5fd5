"""Masked language models of transformers on the command line, by the name hf:NAME."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Check, Classify, Evaluate, Import, Score, TextModelOptions
from diffusional.cli.console import say
from diffusional.cli.options import changed, typed
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusional.models.masked import MaskedDiffusion
    from diffusional.space import Space


def is_text_model(path: Path) -> bool:
    """Return whether a path is hf:NAME, a masked language model of transformers."""
    return str(path).startswith("hf:")


def refuse_text_options(path: Path, command: Any) -> None:
    """Raise DiffusionalError for options of masked language models that are given for something else."""
    if given := changed(getattr(command, "text_options", TextModelOptions())):
        raise DiffusionalError(
            f"{typed(given)} was given for {path}, but is for masked language models, hf:NAME; leave it out"
        )


def text_model(
    path: Path, command: Evaluate | Check | Score | Classify | Import, space: "Space | None", most: int | None = None
) -> "MaskedDiffusion":
    """Load a masked language model. Raises DiffusionalError for options that it does not have.

    `most` is the default of --length, if the model takes as many tokens; by default that of `load_masked_lm`.
    """
    from diffusional.interop.masked_lm import load_masked_lm
    from diffusional.space import Categorical

    if not isinstance(command, Evaluate | Score | Import):
        raise DiffusionalError(
            f"expected a run or a checkpoint of diffusers for this command, got {path}, a masked language model"
        )
    given = [name for name in changed(command.checkpoint_options) if name != "revision"]
    # `evaluate --steps` regrids any model.
    others = ("levels", "condition", *(("steps",) if isinstance(command, Import) else ()))
    given += [name for name in others if getattr(command, name) is not None]
    if given:
        raise DiffusionalError(
            f"{typed(given)} was given, but does not apply to {path}, a masked language model; leave it out"
        )
    if space is not None and not isinstance(space, Categorical):
        raise DiffusionalError(
            f"expected two models of the same data, got one of {space} and {path}, a masked language model"
        )
    text = command.text_options
    options: dict[str, Any] = {"mask_token": text.mask_token, "shift": text.shift}
    options["revision"] = command.checkpoint_options.revision
    options |= {} if most is None else {"most": most}
    return load_masked_lm(str(path), None if space is not None else text.length, space=space, **options)


def checked_shift(name: Path, model: Any, x: "Tensor") -> dict[str, Any] | None:
    """Check whether the logits of a masked language model are at the declared positions, in one line: of the other convention, the cost of
    items x (N, L) is higher unless it is the one that the network was trained with.
    """
    from diffusional.interop.masked_lm import check_shift

    found = check_shift(model, x[:16].to(next(model.parameters()).device))
    if found is None:
        return None
    own, other, worse = found
    shift = bool(model.network.shift)
    better = "" if not worse else f". The other convention fits better: {'leave out' if shift else 'give'} --shift"
    say(
        f"check of {name}: {own:.3f} nats per masked token at half-masked blocks, {other:.3f} {'without' if shift else 'with'} --shift{better}"
    )
    return {"nats_per_masked_token": {"own": own, "other_shift": other}}
