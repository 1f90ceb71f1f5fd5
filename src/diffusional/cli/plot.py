"""`diffusional plot`: figures of a run, or of a saved result."""

from pathlib import Path
from typing import Any

import numpy as np

from diffusional.cli.commands import Plot
from diffusional.cli.console import Result, check_figure
from diffusional.cli.pages import subject_of
from diffusional.errors import DiffusionalError

# The entries that the JSON of an information curve has.
_CURVE = ("level", "gamma", "information", "information_error", "entropy", "wasted")


def run(command: Plot) -> Result:
    """Draw what a run folder or a JSON file has, or several of them together."""
    if not command.what:
        raise DiffusionalError("expected a run folder or a JSON file to draw, got none; give RUN or FILE")
    only, *others = command.what
    if others:
        out = command.out or Path("plot.png")
        check_figure("--out", out)
        return _of_several(command, out)
    out = command.out or (only / "plot.png" if only.is_dir() else only.with_suffix(".png"))
    check_figure("--out", out)
    return _of_run(only, command, out) if only.is_dir() else _of_file(only, command, out)


def _of_run(run: Path, command: Plot, out: Path) -> Result:
    """Draw the terms and the levels of the run's evaluation, and its training."""
    from diffusional.report.figures import overview

    subject = subject_of(run, command.split)
    result, metrics = subject.evaluation, subject.metrics
    if result is None and not metrics:
        raise DiffusionalError(
            f"{run} has neither an evaluation{f' of {command.split}' if command.split else ''} nor metrics of its training: run "
            f"`diffusional evaluate {run}` first"
        )
    title = f"{run}{f', {result.headline}' if result else ''}"
    lines = [] if result else [f"{run} has no evaluation: run `diffusional evaluate {run}` to draw it too"]
    panels = [*_panels(result), *(["training"] if metrics else [])]
    return _result(out, panels, lines, lambda: overview(out, result, metrics, title, command.unit))


def _of_several(command: Plot, out: Path) -> Result:
    """Draw the bounds and the levels of several evaluations."""
    from diffusional.evaluation.result import Evaluation
    from diffusional.report.figures import several, shared_levels
    from diffusional.report.style import COLOURS
    from diffusional.report.subject import Subject
    from diffusional.report.verdicts import different_data

    names = [str(path) for path in command.what]
    if len(set(names)) < len(names) or len(names) > len(COLOURS):
        raise DiffusionalError(f"expected 2 to {len(COLOURS)} different runs or evaluations, got {' '.join(names)}")
    subjects = [
        subject_of(path, command.split) if path.is_dir() else Subject(str(path), Evaluation.load(path))
        for path in command.what
    ]
    for one in subjects:
        if one.evaluation is None:
            raise DiffusionalError(
                f"expected evaluated runs, got {one.name} without an evaluation"
                f"{f' of {command.split}' if command.split else ''}: run `diffusional evaluate {one.name}` first"
            )
    results = {one.name: one.evaluation for one in subjects if one.evaluation is not None}
    apart = different_data(subjects)
    title = f"{len(results)} evaluations"
    panels = ["bounds", *(f"levels of {block}" for block, _ in shared_levels(results))]
    lines = [apart] if apart else []
    return _result(
        out, panels, lines, lambda: several(out, results, f"{title}. {apart}" if apart else title, command.unit)
    )


def _of_file(path: Path, command: Plot, out: Path) -> Result:
    """Draw the record of an evaluation, of a comparison, an information curve, or rate and distortion."""
    from diffusional.evaluation.result import Evaluation
    from diffusional.files import load_json
    from diffusional.report.figures import overview

    record = load_json(path)
    if isinstance(record, dict) and all(name in record for name in _CURVE):
        title = ", ".join(str(record[name]) for name in ("data", "split") if name in record) or str(path)
        return _result(out, ["information"], [], lambda: _draw_curve(out, record, title))
    if isinstance(record, dict) and "rate_distortion" in record:
        title = f"{record['data']}, {record['split']}: {record['items']:,} items, T = {record['latents']}"
        return _result(out, ["rate and distortion"], [], lambda: _draw_rate(out, record["rate_distortion"], title))
    if isinstance(record, dict) and "difference_nats" in record:
        from diffusional.evaluation.difference import Comparison
        from diffusional.report.figures import comparison

        both = Comparison.load(path)
        title = f"{' and '.join(both.names)}: {both.difference.n:,} items"
        return _result(out, ["bounds", "difference"], [], lambda: comparison(out, both, title, command.unit))
    if not isinstance(record, dict) or "nelbo" not in record or "terms" not in record:
        raise DiffusionalError(
            "expected the JSON of `diffusional evaluate`, of `diffusional information` for data, or of `diffusional compress "
            f"--rate-distortion`, got {path}, which is none of them"
        )
    result = Evaluation.load(path)
    title = f"{path}, {result.headline}"
    return _result(out, _panels(result), [], lambda: overview(out, result, [], title, command.unit))


def _draw_curve(out: Path, record: dict[str, Any], title: str) -> None:
    from diffusional.report.figures import information_curve

    level, gamma, value, error = (np.asarray(record[name], dtype=float) for name in _CURVE[:4])
    wasted = record["wasted"]["clean"], record["wasted"]["noisy"]
    information_curve(out, level, gamma, value, error, record["entropy"]["value"], wasted, title)


def _draw_rate(out: Path, record: dict[str, Any], title: str) -> None:
    from diffusional.report.figures import rate_distortion

    names = ("bits_per_dim", "bits_per_dim_error", "rmse_levels")
    bits, error, rmse = (np.asarray(record[name], dtype=float) for name in names)
    rate_distortion(out, bits, error, rmse, record["total_bits_per_dim"], title)


def _panels(result: Any) -> list[str]:
    if result is None:
        return []
    return ["terms", *(f"levels of {name}" for name, block in result.level_blocks().items() if len(block.kl))]


def _result(out: Path, panels: list[str], lines: list[str], draw: Any) -> Result:
    return Result({"figure": str(out), "panels": panels}, [f"{out}: {', '.join(panels)}", *lines], [draw])
