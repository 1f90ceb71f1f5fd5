"""`diffusional plot`: figures of a run, or of a saved result."""

from pathlib import Path
from typing import Any

import numpy as np

from diffusional.cli.commands import Plot
from diffusional.cli.console import Result, check_figure
from diffusional.cli.items import SPLITS
from diffusional.errors import DiffusionalError

# The entries that the JSON of an information curve has.
_CURVE = ("level", "gamma", "information", "information_error", "entropy", "wasted")


def run(command: Plot) -> Result:
    """Draw what a run folder or a JSON file has."""
    folder = command.what.is_dir()
    out = command.out or (command.what / "plot.png" if folder else command.what.with_suffix(".png"))
    check_figure("--out", out)
    return _of_run(command, out) if folder else _of_file(command, out)


def _of_run(command: Plot, out: Path) -> Result:
    """Draw the terms and the levels of the run's evaluation, and its training."""
    from diffusional.evaluation.result import Evaluation
    from diffusional.report.figures import overview
    from diffusional.training.metrics_logger import METRICS, read
    from diffusional.training.run import read_run

    record = read_run(command.what)
    found = [command.what / f"evaluation-{split}.json" for split in _splits(command)]
    found = [path for path in found if path.exists()]
    result = Evaluation.load(found[0]) if found else None
    metrics = read(record.path) if (record.path / METRICS).exists() else []
    if result is None and not metrics:
        raise DiffusionalError(
            f"{command.what} has neither an evaluation{f' of {command.split}' if command.split else ''} nor metrics of its training: run "
            f"`diffusional evaluate {command.what}` first"
        )
    title = f"{command.what}{f', {result.headline}' if result else ''}"
    lines = (
        [] if found else [f"{command.what} has no evaluation: run `diffusional evaluate {command.what}` to draw it too"]
    )
    panels = [*_panels(result), *(["training"] if metrics else [])]
    return _result(out, panels, lines, lambda: overview(out, result, metrics, title, command.unit))


def _of_file(command: Plot, out: Path) -> Result:
    """Draw the record of an evaluation, of a comparison, or an information curve."""
    from diffusional.evaluation.result import Evaluation
    from diffusional.files import load_json
    from diffusional.report.figures import overview

    record = load_json(command.what)
    if isinstance(record, dict) and all(name in record for name in _CURVE):
        title = ", ".join(str(record[name]) for name in ("data", "split") if name in record) or str(command.what)
        return _result(out, ["information"], [], lambda: _draw_curve(out, record, title))
    if isinstance(record, dict) and "difference_nats" in record:
        from diffusional.evaluation.difference import Comparison
        from diffusional.report.figures import comparison

        both = Comparison.load(command.what)
        title = f"{' and '.join(both.names)}: {both.difference.n:,} items"
        return _result(out, ["bounds", "difference"], [], lambda: comparison(out, both, title, command.unit))
    if not isinstance(record, dict) or "nelbo" not in record or "terms" not in record:
        raise DiffusionalError(
            f"expected the JSON of `diffusional evaluate`, or of `diffusional information` for data, got {command.what}, "
            "which is neither"
        )
    result = Evaluation.load(command.what)
    title = f"{command.what}, {result.headline}"
    return _result(out, _panels(result), [], lambda: overview(out, result, [], title, command.unit))


def _draw_curve(out: Path, record: dict[str, Any], title: str) -> None:
    from diffusional.report.figures import information_curve

    level, gamma, value, error = (np.asarray(record[name], dtype=float) for name in _CURVE[:4])
    wasted = record["wasted"]["clean"], record["wasted"]["noisy"]
    information_curve(out, level, gamma, value, error, record["entropy"]["value"], wasted, title)


def _panels(result: Any) -> list[str]:
    if result is None:
        return []
    return ["terms", *(f"levels of {name}" for name, block in result.level_blocks().items() if len(block.kl))]


def _splits(command: Plot) -> tuple[str, ...]:
    return (command.split,) if command.split else ("test", *(split for split in (*SPLITS, "all") if split != "test"))


def _result(out: Path, panels: list[str], lines: list[str], draw: Any) -> Result:
    return Result({"figure": str(out), "panels": panels}, [f"{out}: {', '.join(panels)}", *lines], [draw])
