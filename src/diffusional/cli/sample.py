"""`diffusional sample`."""

from typing import Any

from diffusional.cli.commands import Sample
from diffusional.cli.console import console, device, numbered, working
from diffusional.errors import DiffusionalError

# Samples drawn at a time.
_BATCH = 256


def run(command: Sample) -> dict[str, Any]:
    import numpy as np
    import torch

    from diffusional.models.diffusion import DiffusionModel
    from diffusional.report.figures import grid
    from diffusional.space import Discrete
    from diffusional.training.run import load

    out = command.out or numbered(command.run / "samples.npz")
    if out.suffix != ".npz":
        raise DiffusionalError(f"--out {out} came; samples are written as .npz")
    if out.exists():
        raise DiffusionalError(f"--out {out} exists; it was left alone, name another file")
    model = load(command.run)
    if not out.resolve().parent.is_dir():
        raise DiffusionalError(f"--out {out}: the folder {out.resolve().parent} does not exist")
    place = device()
    model, generator = model.to(place), torch.Generator(place).manual_seed(command.seed)
    options: dict[str, Any] = {}
    if isinstance(model, DiffusionModel):
        options = {"method": command.method, "steps": command.steps, "eta": command.eta}
    elif command.method != "ancestral" or command.steps is not None or command.eta:
        raise DiffusionalError(
            f"--method, --steps or --eta came for {command.run}, which is no Gaussian diffusion model; leave them out"
        )
    with working(f"drawing {command.n} samples"):
        # Of a whole batch's activations there may be too many to hold; n < 1 is the model's to refuse.
        sizes = [min(_BATCH, command.n - done) for done in range(0, command.n, _BATCH)] or [command.n]
        x = torch.cat([model.sample(n, generator, **options).cpu() for n in sizes])
    raw = model.space.decode(x).numpy()
    np.savez_compressed(out, samples=raw)
    written = [str(out)]
    if len(model.space.shape) == 3 and isinstance(model.space, Discrete):
        picture = out.with_suffix(".png")
        grid(picture, x.numpy(), f"{command.n} samples, {command.method}", low=model.space.low, high=model.space.high)
        written.append(str(picture))
    console().print(f"{command.n} samples in {' and '.join(written)}")
    return {
        "samples": written,
        "n": command.n,
        "method": command.method,
        "seed": command.seed,
        "shape": list(raw.shape),
    }
