"""`declared`: what the config of a diffusers scheduler declares of a model (MATH (23), (24)).

`scheduler_table.TABLE` lists the schedulers, and `families` reads their configs.
"""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.interop.declared import Declared, Settings
from diffusional.interop.families import read_betas, read_edm, read_flow, read_rule, read_score
from diffusional.interop.scheduler_table import TABLE, VARIANCES


def declared(
    config: Mapping[str, Any],
    *,
    variance: str | None = None,
    clipped: bool | None = None,
    gamma_min: float | None = None,
    gamma_max: float | None = None,
) -> Declared:
    """Read a scheduler's config: scheduler_config.json, or the `config` of a diffusers scheduler.

    Args:
        config: with its "_class_name".
        variance: of p(z_t|z_{t+1}) instead of the config's: "posterior", "transition" or "learned", or a variance_type of diffusers.
        clipped: True to clip x̂, False to leave out what the config does to x̂, None for what the config has.
        gamma_min, gamma_max: γ_1 and γ_T = −log SNR of models in continuous time, instead of those of the config.

    Raises DiffusionalError for a scheduler that is refused or unknown, unknown keys, and settings that no bound can honour.

    >>> declared({"_class_name": "DDPMScheduler", "num_train_timesteps": 10}).schedule.steps
    10
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise DiffusionalError(
            "expected a scheduler's config to have _class_name, the scheduler's class, got none; give the scheduler_config.json that "
            "diffusers wrote"
        )
    name = name.removeprefix("Flax")
    entry = TABLE.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, TABLE, n=1)
        raise DiffusionalError(
            f"unknown scheduler {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
            + " Give a scheduler of diffusers in scheduler=, or use df.wrap for a process of your own"
        )
    if entry.family == "refused":
        raise DiffusionalError(
            f"{name} has no bound here: {entry.note}. If the network is an ordinary denoiser, give the scheduler that it was trained with, "
            'such as scheduler={"_class_name": "DDPMScheduler"}'
        )
    settings = Settings(name, config, variance)
    if variance is not None and variance not in VARIANCES:
        close = difflib.get_close_matches(variance, VARIANCES, n=1)
        raise DiffusionalError(
            f"expected variance to be one of {', '.join(VARIANCES)}, got {variance!r}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    family = entry.family
    if settings.value("use_flow_sigmas", False):
        family = "flow"
    elif name == "EulerDiscreteScheduler" and (
        settings.value("timestep_type", "discrete") == "continuous"
        and settings.value("prediction_type") == "v_prediction"
    ):
        family = "edm"
    if family != "betas":
        reader = {"flow": read_flow, "edm": read_edm, "score": read_score}[family]
        found = reader(entry, settings, gamma_min, gamma_max)
    else:
        if gamma_min is not None or gamma_max is not None:
            raise DiffusionalError(
                f"gamma_min and gamma_max were given, but the levels of {name} are those of its betas; leave them out"
            )
        found = read_betas(entry, settings)
    rule = read_rule(entry, settings, clipped, found.low, found.high)
    settings.sampler_settings(family)
    return replace(
        found,
        rule=rule,
        config=settings.config,
        assumed=settings.assumed,
        given=settings.given,
        left_out=settings.left_out,
    )
