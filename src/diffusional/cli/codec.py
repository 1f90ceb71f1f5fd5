"""`diffusional compress` and `decompress`: items as a file that is as long as the bound, and back."""

from diffusional.cli.commands import Compress, Decompress
from diffusional.cli.console import Result, working
from diffusional.cli.outputs import check_target, save
from diffusional.errors import DiffusionalError


def compressed(command: Compress) -> Result:
    """Write the file, and report its length beside the parts that it has."""
    from diffusional.cli.items import items
    from diffusional.codec import compress
    from diffusional.conditions import rows_of
    from diffusional.training.folder import load_run

    check_target("--out", command.out, [command.run])
    if command.most is not None and command.most < 1:
        raise DiffusionalError(
            f"expected --most of at least 1, got {command.most}; give a larger number, or leave it out"
        )
    run = load_run(command.run)
    chosen = items(run.record, command.data, None, command.split)
    x = chosen.x if command.most is None else chosen.x[: command.most]
    condition = rows_of(chosen.condition, slice(len(x)))
    with working(f"coding {len(x):,} items and decoding the file"):
        done = compress(run.model, x, condition=condition, steps=command.steps, rows=command.rows, seed=command.seed)
    save(command.out, lambda file: file.write(done.data))
    record = {
        "run": str(command.run),
        "file": str(command.out),
        "data": chosen.name,
        "split": chosen.split,
        "items": done.items,
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
        ""
        if command.steps not in (None, "auto") or run.model.steps == done.latents
        else ", chosen for the shortest file"
    )
    lines = [
        f"{command.out}: {done.items:,} items of {chosen.name} {chosen.split} in {len(done.data):,} bytes, {done.bits_per_dim:.4f} bits/dim"
        f"{latents}{chosen_steps}",
        f"the items take {done.net_bits_per_dim:.4f} bits/dim, the bound of the same path is {done.path_bits_per_dim:.4f}: overhead "
        f"{done.overhead:.4f}",
        f"the first item borrows {done.borrowed_bits:,} bits; the header and the checksum are {done.header_bits:,}",
        "the file was decoded, and its items are the same",
    ]
    return Result(record, lines)


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
