"""`diffusional demo`."""

import dataclasses

from diffusional.cli.commands import Demo
from diffusional.cli.console import Result, console, numbered

# Number of steps of `demo --quick`.
QUICK = 160


def run(command: Demo) -> Result:
    from diffusional.demo import demo
    from diffusional.training.recipes import digits

    config = dataclasses.replace(digits(), seed=command.seed, max_seconds=command.max_seconds)
    if command.quick:
        config = dataclasses.replace(config, steps=QUICK, validate_every=QUICK // 4, checkpoint_every=QUICK)
    if command.steps is not None:
        config = dataclasses.replace(config, steps=command.steps)
    return Result(demo(config, numbered(command.out), console()))
