"""`diffusional claims`."""

from typing import Any

from diffusional.cli.commands import Claims
from diffusional.cli.console import console


def run(command: Claims) -> dict[str, Any]:
    import platform

    import torch
    from rich.markup import escape

    import diffusional
    from diffusional import claims
    from diffusional.report.tables import claims_table

    with console(stderr=True).status("") as status:
        found = claims.run(command.only, command.seed, progress=lambda said: status.update(escape(said)))
    versions = {
        "diffusional": diffusional.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    out = {"claims": [result.to_dict() for result in found], "seed": command.seed, "versions": versions}
    console().print(claims_table(out, f"Claims and controls, seed {command.seed}"))
    return out
