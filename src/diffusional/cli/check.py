"""`diffusional check`: is a network read as it was trained?"""

from diffusional.cli.checkpoints import items_of, opened, show_origin
from diffusional.cli.commands import Check
from diffusional.cli.console import Result, device, working


def run(command: Check) -> Result:
    """Check a run or a checkpoint on the first items of its data."""
    from diffusional.conditions import rows_of
    from diffusional.interop.averages import check_weights, joined
    from diffusional.interop.check import check_denoiser, enough

    run, bare = opened(command.run, command)
    model = run.model.to(device())
    if bare:
        show_origin(model, command.run)
    chosen = items_of(command, run.record, bare)
    count = enough(command.items, chosen.x)
    first = rows_of(chosen.condition, slice(0, count))
    with working("searching for the reading that fits the network"):
        found = check_denoiser(
            model,
            chosen.x[:count],
            condition=first,
            items=command.items,
            seed=command.seed,
            search=not command.slopes_only,
        )
    with working("comparing the two copies of the weights"):
        few = {"items": command.items} if command.slopes_only else {}
        weights = check_weights(model, chosen.x, condition=chosen.condition, seed=command.seed, **few)
    if weights is not None:
        found = joined(found, weights)
    record = found.to_json() | {"data": chosen.name, "split": chosen.split, "items": count, "works": not found.findings}
    if weights is not None:
        record["weights"] = weights.to_json()
    lines = str(found).splitlines()
    if weights is not None and weights.finding is None:
        lines.append(str(weights))
    levels = ", ".join(
        f"{slope:.2f} at {gamma:.1f}" for gamma, slope in zip(found.gamma.tolist(), found.slope.tolist(), strict=True)
    )
    lines.append(
        f"slopes ⟨target, output⟩/⟨output, output⟩ by γ (1 for a network that is read as it was trained): {levels}"
    )
    return Result(record, lines)
