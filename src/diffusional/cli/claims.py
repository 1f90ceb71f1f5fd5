"""`diffusional claims`."""

from diffusional.cli.commands import Claims
from diffusional.cli.console import Result, console


def run(command: Claims) -> Result:
    import platform

    import torch
    from rich.text import Text

    import diffusional
    from diffusional import claims
    from diffusional.report.tables import claims_table

    with console(stderr=True).status("") as status:
        found = claims.run(command.only, command.seed, progress=lambda said: status.update(Text(said)))
    versions = {
        "diffusional": diffusional.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    out = {"claims": [result.to_dict() for result in found], "seed": command.seed, "versions": versions}
    return Result(out, [claims_table(out, f"Claims and controls, seed {command.seed}")])
