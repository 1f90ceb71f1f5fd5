"""`diffusional compress` and `decompress`: items as a file that is as long as the bound, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Compress, Decompress
from diffusional.cli.console import Result, check_figure, working
from diffusional.cli.outputs import check_target, save
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from diffusional.cli.items import ChosenItems
    from diffusional.conditions import Condition
    from diffusional.models.base import LatentVariableModel

# Items whose x̂ are drawn.
_SHOWN = 3


def compressed(command: Compress) -> Result:
    """Write the file, report its length beside the parts that it has, and draw rate and distortion if a figure is requested."""
    from diffusional.cli.items import items
    from diffusional.conditions import rows_of
    from diffusional.training.folder import load_run

    out = Path("items.dfz") if command.out is None and command.rate_distortion is None else command.out
    if out is not None:
        check_target("--out", out, [command.run])
    if command.rate_distortion is not None:
        check_figure("--rate-distortion", command.rate_distortion)
    if command.most is not None and command.most < 1:
        raise DiffusionalError(
            f"expected --most of at least 1, got {command.most}; give a larger number, or leave it out"
        )
    run = load_run(command.run)
    chosen = items(run.record, command.data, None, command.split)
    n = min(len(chosen.data), command.most or len(chosen.data))
    condition = rows_of(chosen.condition, slice(n))
    steps = command.steps
    results = list[Result]()
    if command.rate_distortion is not None:
        steps, drawn = _rate(command, command.rate_distortion, run.model, chosen, n, condition)
        results.append(drawn)
    if out is not None:
        results.insert(0, _coded(command, out, run.model, chosen, n, condition, steps))
    record = {"run": str(command.run), "data": chosen.name, "split": chosen.split, "items": n}
    for one in results:
        record |= one.record
    return Result(record, [line for one in results for line in one.shown], [do for one in results for do in one.saves])


def _coded(
    command: Compress,
    out: Path,
    model: "LatentVariableModel",
    chosen: "ChosenItems",
    n: int,
    condition: "Condition | None",
    steps: Any,
) -> Result:
    """Write the file of the first n items."""
    from diffusional.codec import compress

    with working(f"coding {n:,} items and decoding the file"):
        done = compress(model, chosen.x[:n], condition=condition, steps=steps, rows=command.rows, seed=command.seed)
    save(out, lambda file: file.write(done.data))
    record = {
        "file": str(out),
        "latents": done.latents,
        "bytes": len(done.data),
        "bits_per_dim": done.bits_per_dim,
        "net_bits_per_dim": done.net_bits_per_dim,
        "path_bits_per_dim": done.path_bits_per_dim,
        "overhead_bits_per_dim": done.overhead,
        "borrowed_bits": done.borrowed_bits,
        "header_bits": done.header_bits,
        "network_evaluations": done.network_evaluations,
    }
    latents = "" if done.latents is None else f", T = {done.latents}"
    chosen_steps = (
        "" if command.steps not in (None, "auto") or model.steps == done.latents else ", chosen for the shortest file"
    )
    lines = [
        f"{out}: {done.items:,} items of {chosen.name} {chosen.split} in {len(done.data):,} bytes, {done.bits_per_dim:.4f} bits/dim"
        f"{latents}{chosen_steps}",
        f"the items take {done.net_bits_per_dim:.4f} bits/dim, the bound of the same path is {done.path_bits_per_dim:.4f}: overhead "
        f"{done.overhead:.4f}",
        f"the first item borrows {done.borrowed_bits:,} bits; the header and the checksum are {done.header_bits:,}",
        "the file was decoded, and its items are the same",
    ]
    return Result(record, lines)


def _rate(
    command: Compress,
    figure: Path,
    model: "LatentVariableModel",
    chosen: "ChosenItems",
    n: int,
    condition: "Condition | None",
) -> tuple[Any, Result]:
    """Compute the rate and the distortion of the first n items. Returns --steps, or the T that was chosen, and the result."""
    import torch

    from diffusional.codec import choose_steps, rate_distortion
    from diffusional.codec.rate import flow_of
    from diffusional.report.figures import rate_distortion as draw

    flow_of(model)
    x, steps, space = chosen.x[:n], command.steps, model.space
    with working(f"computing rate and distortion of {n:,} items"):
        if steps == "auto" or (steps is None and model.steps is None):
            steps = choose_steps(model, x, condition=condition, seed=command.seed).steps
        model = model if steps is None else model.regrid(steps)
        found = rate_distortion(model, x, condition=condition, show=_SHOWN, seed=command.seed)
    half = int(torch.argmax((found.rmse <= found.rmse[0] / 2).int()))
    error = "" if found.total_error != found.total_error else f" ± {found.total_error:.4f}"
    lines = [
        f"{figure}: {len(found.latents)} of T = {model.steps} latents, {n:,} items of {chosen.name} {chosen.split}",
        f"x̂ is {found.rmse[0]:.2f} levels from x before the first bit and {found.rmse[-1]:.2f} after {found.bits_per_dim[-1]:.4f} bits/dim; "
        f"half of it is gone after {found.bits_per_dim[half]:.4f}",
        f"the decoder's −log₂ p(x|z₁) completes x at {found.total:.4f}{error} bits/dim",
    ]
    shown = None
    if len(space.shape) == 3 and space.shape[0] in (1, 3):
        shown = torch.cat([found.shown, space.decode(x[None, :_SHOWN]).float()]).numpy()
    curve = found.bits_per_dim.numpy(), found.error.numpy(), found.rmse.numpy()
    title = f"{chosen.name}, {chosen.split}: {n:,} items, T = {model.steps}"
    record = {"latents": model.steps, "rate_distortion": found.to_json() | {"seed": command.seed}}
    draws = [lambda: draw(figure, *curve, found.total, title, shown, space.levels or 0)]
    return steps, Result(record, lines, draws)


def decompressed(command: Decompress) -> Result:
    """Write the raw levels of the items."""
    import numpy as np
    from torch import Tensor

    from diffusional.codec import restore
    from diffusional.training.folder import load_run

    check_target("OUT", command.out, [command.file])
    if not command.file.is_file():
        raise DiffusionalError(f"{command.file} does not exist or is not a file; give a file of `diffusional compress`")
    run = load_run(command.run)
    with working(f"decoding {command.file}"):
        found = restore(run.model, command.file.read_bytes())
    levels = run.model.space.decode(found.x).numpy()
    values = levels.astype(np.uint8) if run.model.space.levels and run.model.space.levels <= 256 else levels
    save(command.out, lambda file: np.save(file, values))
    record = {"run": str(command.run), "file": str(command.file), "out": str(command.out), "items": len(values)}
    lines = [f"{command.out}: {len(values):,} items of shape {tuple(values.shape[1:])}, {values.dtype}"]
    if isinstance(found.condition, Tensor):
        labels, beside = found.condition.numpy(), command.out.with_suffix(".labels.npy")
        save(beside, lambda file: np.save(file, labels))
        record["labels"] = str(beside)
        lines.append(f"{beside}: their labels, {labels.dtype}")
    return Result(record, lines)
