"""`diffusional information`, for a schedule, for a run and a reference run, or for the latents of a VAE."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Information
from diffusional.cli.console import Result, bar, check_figure, working
from diffusional.cli.items import items
from diffusional.errors import DiffusionalError
from diffusional.training.config import ScheduleConfig

if TYPE_CHECKING:
    from diffusional.models.vae import Autoencoder
    from diffusional.training.run import RunRecord


def run(command: Information) -> Result:
    import torch
    from rich.progress import Progress

    from diffusional.data import load
    from diffusional.information import curve, points_of
    from diffusional.models.reverse import prior_kl
    from diffusional.report.figures import information_curve
    from diffusional.report.tables import information_table
    from diffusional.training.build import build_schedule

    if not command.pointwise and (command.map or command.per_item is not None):
        raise DiffusionalError("--map and --per-item are for --pointwise; give it too, or leave them out")
    if (Path(command.data) / "config.json").is_file():
        if not command.pointwise:
            return _budget(command)
        from diffusional.evaluation.ranks import launched

        # Each item is evaluated by one of the processes that a launcher started.
        with launched():
            return _pointwise(command)
    if command.pointwise:
        raise DiffusionalError(
            f"--pointwise is for a run with a condition, but {command.data} is not a run folder: leave it out"
        )
    if command.reference is not None:
        raise DiffusionalError(f"--reference compares two runs, but {command.data} is not a run folder: leave it out")
    split = command.split or "train"
    if command.figure is not None:
        check_figure("--figure", command.figure)
    config = _schedule(command)
    schedule = build_schedule(config)
    dataset = load(command.data, levels=command.levels)
    splits = ("train", "validation", "test") if split == "all" else (split,)
    x = torch.cat([dataset.encode(split) for split in splits])
    with bar(*Progress.get_default_columns(), transient=True) as shown:
        task = shown.add_task("drawing", total=command.samples)
        found = curve(
            x,
            schedule,
            command.timesteps,
            command.samples,
            torch.Generator().manual_seed(command.seed),
            progress=lambda done, total: shown.update(task, completed=done, total=total),
        )
    prior = float(prior_kl(x, schedule.ends()[1]).mean())
    marks, wasted = (0.1, 0.5, 0.9), found.wasted()
    lost = {str(share): found.lost(share) for share in marks}
    out = found.to_json() | {
        "data": command.data,
        "split": split,
        "items": len(x),
        "distinct_items": len(points_of(x).weights),
        "data_sha256": {split: dataset.fingerprint(split) for split in splits},
        "schedule": dataclasses.asdict(config),
        "seed": command.seed,
        "prior": {
            "value": prior,
            "information": float(found.information[-1]),
            "error": float(found.error[-1]),
            "unit": "nats",
        },
        "lost": lost,
        "wasted": {"share": 0.01, "clean": wasted[0], "noisy": wasted[1]},
    }
    latents = "T = ∞" if schedule.steps is None else f"T = {schedule.steps}"
    title = f"{command.data}, {split}: {len(x)} items, {command.schedule}, {latents}, {found.samples} draws"
    lines = [information_table(out, title), *_said(out, "u" if schedule.steps is None else "t")]
    if command.figure is None:
        return Result(out, lines)
    figure = command.figure

    def draw() -> None:
        information_curve(
            figure,
            found.level.numpy(),
            found.gamma.numpy(),
            found.information.numpy(),
            found.error.numpy(),
            found.entropy.value,
            wasted,
            title,
        )

    return Result(out, lines, [draw])


def _schedule(command: Information) -> ScheduleConfig:
    """Return the schedule of the options. Raises DiffusionalError for an option of another kind of schedule."""
    belongs = {
        "log_snr_linear": {"gamma_min": command.gamma_min, "gamma_max": command.gamma_max},
        "linear": {"beta_start": command.beta_start, "beta_end": command.beta_end},
        "cosine": {},
    }
    strange = [
        f"--{name.replace('_', '-')}"
        for kind, options in belongs.items()
        for name, value in options.items()
        if kind != command.schedule and value is not None
    ]
    if strange:
        raise DiffusionalError(
            f"{', '.join(strange)} cannot be combined with --schedule {command.schedule}: leave it out, or use another schedule"
        )
    given = {name: value for name, value in belongs[command.schedule].items() if value is not None}
    steps = 1000 if command.steps is None and command.schedule != "log_snr_linear" else command.steps
    return ScheduleConfig(command.schedule, steps, **given)


def _pointwise(command: Information) -> Result:
    """Estimate the information of the conditions of items about them."""
    import torch

    from diffusional.cli.console import device, first
    from diffusional.cli.evaluate import check_scores_file, write_scores
    from diffusional.information import bounded, pointwise
    from diffusional.training.run import load, read_run

    if command.reference is not None or command.figure is not None:
        raise DiffusionalError("--reference and --figure cannot be used with --pointwise; leave them out")
    if command.per_item is not None:
        check_scores_file(command.per_item, (), command.json)
    if command.map and (command.per_item is None or command.per_item.suffix != ".npz"):
        raise DiffusionalError("--map needs --per-item FILE.npz, which holds the values of the positions")
    record = read_run(command.data)
    if not record.conditional:
        raise DiffusionalError(
            f"{command.data} was trained without a condition, whose information could be estimated; train a run with --condition and "
            "--condition-dropout"
        )
    model = load(command.data).to(device())
    chosen = items(record, None, command.levels, command.split)
    assert chosen.condition is not None
    with working(f"evaluating {len(chosen.data):,} items with and without their condition"):
        found = pointwise(
            model, chosen.x, chosen.condition, visits=command.visits, positions=command.map, seed=command.seed
        )
    out = {"run": command.data, "split": chosen.split, "condition": record.config.data.condition, "seed": command.seed}
    out |= found.to_dict()
    lines = [str(found), f"of this in the decoder, ln p(x|z_1): {found.decoder}"]
    if record.classes:
        labels = chosen.condition
        assert isinstance(labels, torch.Tensor)
        share = labels.bincount(minlength=len(record.classes)).double() / len(labels)
        share = (share + 1e-9) / (share + 1e-9).sum()
        with working("evaluating every class of every item"):
            form = bounded(model, chosen.x, labels, prior=share, visits=max(4, command.visits // 4), seed=command.seed)
        out |= {"bounded_least_nats": form.least.to_dict(), "bounded_most_nats": form.most.to_dict()}
        out["entropy_of_labels_nats"] = form.limit
        lines.append(f"{form}")
    lines.append(
        "i(x; c) is a difference of two bounds, and biased either way by the difference of their gaps; the control does not reveal it"
    )
    saves: list[Any] = []
    if command.per_item is not None and first():
        path = command.per_item
        columns = {"item": torch.arange(len(found.items)), "information": found.items, "error": found.errors}
        columns |= {"map": found.map} if command.map else {}
        saves.append(lambda: write_scores(path, columns, chosen))
    return Result(out, lines, saves)


def _budget(command: Information) -> Result:
    """Compute the nat budget of a run relative to another."""
    import torch

    from diffusional.information import budget
    from diffusional.models.diffusion import DiffusionModel
    from diffusional.report.tables import budget_table
    from diffusional.training.run import load, read_run

    kept = ("data", "reference", "split", "seed", "json", "samples", "timesteps")
    if Information(**{name: getattr(command, name) for name in kept}) != command:
        raise DiffusionalError(
            f"the options of a schedule, --levels and --figure are for data, but {command.data} is a run, which has its own: leave them out"
        )
    record, model = read_run(command.data), load(command.data)
    learned = model.learned_posterior()
    if learned is not None:
        return _latents(command, record, learned)
    if command.reference is None:
        raise DiffusionalError(
            f"expected --reference for the run {command.data}: the information in its data is unknown, and gaps are relative to "
            "those of another model. Give --reference RUN"
        )
    theirs, other = read_run(command.reference), load(command.reference)
    if not (isinstance(model, DiffusionModel) and isinstance(other, DiffusionModel)):
        which = command.reference if isinstance(model, DiffusionModel) else command.data
        raise DiffusionalError(
            f'expected two runs of model.kind="diffusion", but {which} has no Gaussian diffusion model; compare the bounds of any two '
            "runs with diffusional evaluate RUN RUN_B"
        )
    chosen = items(record, split=command.split)
    name, split, x = chosen.name, chosen.split, chosen.x
    if theirs.fingerprints.get(split) != record.fingerprints.get(split):
        raise DiffusionalError(f"the {split} split of {command.reference} is not that of {command.data}")
    condition = chosen.condition
    if record.form != theirs.form:
        raise DiffusionalError(
            f"{command.data} and {command.reference} were trained with different conditions; give a reference with the same condition"
        )
    if record.classes != theirs.classes:
        raise DiffusionalError(
            f"{command.data} was trained on {len(record.classes)} classes of labels, {command.reference} on "
            f"{len(theirs.classes)}{'' if len(record.classes) != len(theirs.classes) else ' others'}; give a reference with the same condition"
        )
    generator = torch.Generator().manual_seed(command.seed)
    with torch.no_grad(), working(f"drawing {command.samples} times, with both models"):
        found = budget(model, x, other, command.timesteps, command.samples, generator, condition)
    out = found.to_json() | {"runs": [command.data, str(command.reference)], "data": name, "split": split}
    title = f"{name}, {split}: {found.samples} draws of {len(x)} items, {command.data} relative to {command.reference}"
    return Result(out, [budget_table(out, title)])


def _latents(command: Information, record: "RunRecord", model: "Autoencoder") -> Result:
    """Estimate I(x; z) and KL[q(z) ‖ p(z)] of a VAE's latents on a split, its active units, and layers without information."""
    import torch

    from diffusional.information import aggregated
    from diffusional.ledger import with_error

    if command.reference is not None:
        raise DiffusionalError(f"--reference is for diffusion models, but {command.data} has none: leave it out")
    chosen = items(record, split=command.split or "train")
    name, split, x = chosen.name, chosen.split, chosen.x
    with working(f"drawing {command.samples} latents"):
        found = aggregated(model, x, command.samples, torch.Generator().manual_seed(command.seed), chosen.condition)
    out = found.to_json() | {
        "run": command.data,
        "data": name,
        "split": split,
        "items": len(x),
        "samples": command.samples,
    }

    def pm(estimate: Any) -> str:
        return " ± ".join(with_error(estimate.value, estimate.error)) + " nats"

    shown = [
        f"{name}, {split}: {len(x)} items, H(x) = {found.entropy:.4f} nats, {command.samples} draws",
        f"I(x; z)            {pm(found.information)}",
        f"KL[q(z) ‖ p(z)]    {pm(found.marginal_kl)}{', an upper bound' if found.bounded else ''}",
        f"E KL[q(z|x) ‖ p(z)] {pm(found.kl)}, the sum of these",
    ]
    for i, (layer, active, units) in enumerate(zip(found.layers, found.active, found.units, strict=True)):
        shown.append(f"layer {i + 1}: {pm(layer)}, {active} of {units} units active")
    if found.chain is not None:
        shown.append(f"diffusion prior: I(z; z₁) {pm(found.chain[0])}, I(x; z₁) {pm(found.chain[1])}")
    return Result(out, [*shown, *(f"warning: {warning}" for warning in found.warnings)])


def _said(out: dict[str, Any], name: str) -> Iterator[str]:
    """Yield four lines that describe the information of a schedule's latents about a data set."""
    from diffusional.ledger import with_error

    first, error = with_error(out["information"][0], out["information_error"][0])
    repeats = "" if out["distinct_items"] == out["items"] else f" ({out['distinct_items']} distinct items)"
    left, left_error = with_error(out["remaining"]["value"], out["remaining"]["error"])
    yield (
        f"H(x) = {out['entropy']['value']:.4f} nats{repeats}; I(x; z₁) = {first} ± {error}, "
        f"remaining H(x | z₁) = {left} ± {left_error}"
    )
    last, error = with_error(out["prior"]["information"], out["prior"]["error"])
    yield f"I(x; z_T) = {last} ± {error} nats at the last latent, with KL_T = {out['prior']['value']:.3g}"
    places = ", ".join(f"{float(s):.0%} by {name} = {at:.4g}" for s, at in out["lost"].items())
    yield f"information lost: {places}"
    wasted = out["wasted"]
    yield (
        f"{wasted['clean']:.1%} of the levels at the low-noise end and {wasted['noisy']:.1%} at the high-noise end each change less than "
        "1 % of it"
    )
