"""What a report shows that needs a model: samples with their paths, and scores of items. The results are arrays for `report/`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Report, Sample
from diffusional.cli.console import device, watching, working
from diffusional.cli.items import ChosenItems, items
from diffusional.cli.sample import condition_of
from diffusional.cli.score import MAP_VISITS, name_of
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from diffusional.models.base import LatentVariableModel
    from diffusional.models.composite import Composite
    from diffusional.report.subject import ItemScores, Samples
    from diffusional.space import Categorical, Space
    from diffusional.training.run import RunRecord

# Latents of the chain from which samples are drawn, if the model has more; paths that are shown, and latents of each.
_STEPS, _PATHS, _SHOWN = 100, 3, 8
# Samples, scored items and target errors: of models up to so many dimensions and parameters, and of larger ones.
_DIMENSIONS, _PARAMETERS = 256, 10_000_000
_SMALL, _LARGE = (16, 500, None), (8, 100, 0.02)
# Samples of a table, for the distributions of its columns.
_ROWS = 1000
# Characters of a block of text that are shown.
_CHARACTERS = 1000


@dataclass(frozen=True)
class Amounts:
    """What a report computes: samples, scored items, and the target error of an evaluation that is missing, None for that of `evaluate`."""

    samples: int
    items: int
    error: float | None


def amounts(command: Report, dimensions: int, parameters: int) -> Amounts:
    """Return the amounts that are asked for; by default fewer of large items and networks, so that a report takes about a minute of one core at
    28 × 28 pixels. They do not depend on the machine.

    >>> from pathlib import Path
    >>> amounts(Report((Path("runs/digits"),)), 64, 50_000), amounts(Report((Path("runs/mnist"),), items=7), 784, 50_000)
    (Amounts(samples=16, items=500, error=None), Amounts(samples=8, items=7, error=0.02))
    """
    large = dimensions > _DIMENSIONS or parameters > _PARAMETERS
    samples, items, error = _LARGE if large else _SMALL
    return Amounts(
        samples if command.samples is None else command.samples,
        items if command.items is None else command.items,
        error if command.error is None else command.error,
    )


def amounts_of(command: Report, model: "LatentVariableModel") -> Amounts:
    """Return the amounts for a model."""
    return amounts(command, model.space.dimensions, sum(p.numel() for p in model.parameters()))


def samples_of(model: "LatentVariableModel", record: "RunRecord", n: int, seed: int, split: str) -> "Samples":
    """Draw samples of a model, and for images of a chain some paths. Raises DiffusionalError if the model cannot be sampled.

    Of a table, 1,000 samples are drawn instead of `n`, for the distributions of its columns, beside those of the items of `split`. Sequences are
    drawn as texts.
    """
    import numpy as np
    import torch

    from diffusional.conditions import moved
    from diffusional.models.composite import Composite
    from diffusional.report.subject import Samples
    from diffusional.space import Categorical
    from diffusional.training.own import own_data

    space = model.space
    sequences = isinstance(space, Categorical)
    table = len(space.shape) == 1 and not sequences
    n = _ROWS if table else n
    every = ("all",) if record.classes else ("test",) if record.conditional else None
    condition = condition_of(Sample(record.path, n=n, condition=every), record)
    if record.text is not None and condition is not None:
        condition, _ = condition
    chain = model.visited() is model
    if chain and (model.steps is None or model.steps > _STEPS):
        model = model.regrid(_STEPS)
    place = device()
    model, generator = model.to(place), torch.Generator(place).manual_seed(seed)
    latents = f", with {model.steps} latents" if chain and model.steps else ""
    how = (
        f"{n:,} samples by the model's own reverse chain{latents}, seed {seed}."
        if chain
        else f"{n:,} samples of the model, seed {seed}."
    )
    if record.classes:
        how += f" The classes are used in turn: {', '.join(record.classes[:10])}{', …' if len(record.classes) > 10 else ''}."
    with working(f"drawing {n} samples"), torch.no_grad():
        if isinstance(model, Composite):
            drawn, kept, labels, paths = _states_of_system(model, n, generator, moved(condition, place))
            how += paths
        else:
            drawn = {}
            kept, labels = _states(model, n, generator, moved(condition, place), chain and not table and not sequences)
    x = kept[-1]
    if not bool(torch.isfinite(x).all()):
        raise DiffusionalError(
            "expected finite samples, got samples that are not finite: the outputs of the network are too large"
        )
    if isinstance(space, Categorical):
        return Samples(how, texts=[text_of(space, row) for row in x])
    if table:
        columns = record.columns or tuple(f"column {d + 1}" for d in range(space.dimensions))
        dataset = own_data(record, ("train", "validation", "test") if split == "all" else (split,))
        parts = ("train", "validation", "test") if split == "all" else (split,)
        data = torch.cat([dataset.tensor(part) for part in parts]).double().numpy()
        return Samples(how, columns=columns, drawn=space.decode(x).double().numpy(), data=data)
    if len(space.shape) != 3:
        raise DiffusionalError(f"expected images or rows of a table, got items of shape {space.shape}")
    low, high = _range(space, x)
    shown = ((x - low) / (high - low)).float().numpy()
    paths = None
    if len(kept) > 1:
        paths = np.stack(
            [
                np.stack([np.clip((z[i].numpy() - low) / (high - low), 0, 1) for z in kept])
                for i in range(min(n, _PATHS))
            ]
        )
    stages, names, missing = _stages(model, drawn) if isinstance(model, Composite) else (None, [], "")
    return Samples(how + missing, images=shown, paths=paths, path_labels=labels, stages=stages, stage_labels=names)


def _stages(model: "Composite", drawn: "dict[str, Tensor]") -> "tuple[ndarray | None, list[str], str]":
    """Return the variables of the stages for the first samples, brought to the size of x, as pictures (k, m, C, H, W) with labels; and which
    stages have none, as sentences. Pictures are None if only the last stage has one.
    """
    import numpy as np

    from diffusional.models.composite import enlarged

    pictures, labels, missing = [], [], ""
    handed = dict(zip(drawn, getattr(model, "handover", None) or (), strict=False))
    for name, y in drawn.items():
        block, space = model.block(name), dict(model.models())[name].space
        if block is None or len(space.shape) != 3:
            missing += (
                f" The variable of stage {name} is a latent of shape {_sides(space.shape)}, which has no picture."
            )
            continue
        low, high = _range(space, y)
        shown = ((y[:_SHOWN] - low) / (high - low)).clamp(0, 1).float()
        pictures.append(enlarged(shown, block).numpy())
        labels.append(
            f"{name}, {_sides(space.shape[1:])}" + (f", its noisy z_{handed[name]}" if name in handed else "")
        )
    return (np.stack(pictures), labels, missing) if len(pictures) > 1 else (None, [], missing)


def _sides(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _states_of_system(
    model: "Composite", n: int, generator: Any, condition: Any
) -> "tuple[dict[str, Tensor], list[Tensor], list[str], str]":
    """Return samples of every stage's variable by name, as `sample_stages` does; the states of the last stage with their labels: its samples
    only, without labels, unless it is a chain of images; and how these paths were drawn, a sentence.
    """
    from itertools import islice

    *firsts, last = model.stages
    drawn = dict(islice(model.generate(n, generator, condition), len(firsts)))
    decoder, given = model.sampled_by(last, drawn[firsts[-1]], generator, condition)
    walked, how = decoder.visited() is decoder and len(decoder.space.shape) == 3, ""
    if walked:
        if decoder.steps is None or decoder.steps > _STEPS:
            decoder = decoder.regrid(_STEPS)
        how = f" The paths are those of stage {last}, at {decoder.steps} noise levels, for the samples of the stage before."
    kept, labels = _states(decoder, n, generator, given, walked)
    return {name: y.cpu() for name, y in drawn.items()} | {last: kept[-1]}, kept, labels, how


def _states(model: Any, n: int, generator: Any, condition: Any, with_paths: bool) -> "tuple[list[Tensor], list[str]]":
    """Return samples as the last of some states of a chain, evenly spaced in its levels, and the log-SNR of these, with "x" at the end."""
    if not with_paths:
        return [model.sample(n, generator, condition).cpu()], []
    import torch

    steps = model.steps
    wanted = set(torch.linspace(steps, 1, _SHOWN - 1).round().long().tolist())
    kept, labels = [], []
    gamma = getattr(model.process.schedule, "grid", None)
    gammas = None if gamma is None else gamma()
    for passed, z in enumerate(model.walk_back(n, generator, condition)):
        t = steps - passed
        if t in wanted or t == 0:
            kept.append(z.cpu())
            labels.append(
                "x" if t == 0 else f"t = {t}" if gammas is None else f"{-float(gammas[t - 1]):.1f}".replace("-", "−")
            )
    return kept, labels


def scores_of(
    model: "LatentVariableModel",
    record: "RunRecord",
    command: Report,
    most: int,
    split: str | None,
    data: str | None = None,
) -> "ItemScores":
    """Score the first `most` items of a split, and draw those at the ends again, with cost maps of images. Raises DiffusionalError as `score` does.

    The items are the run's own, or those of `data`.
    """
    from diffusional.conditions import rows_of
    from diffusional.evaluation.extremes import extremes
    from diffusional.evaluation.score import score
    from diffusional.report.subject import ItemScores

    model = model.to(device())
    chosen = items(record, data, split=split)
    some = slice(0, most)
    x, condition = chosen.x[some], rows_of(chosen.condition, some)
    if len(x) < 2:
        raise DiffusionalError(f"expected at least 2 items to score, got {len(x)}")
    reference = items(record, split="validation") if (record.items.get("validation") or 0) >= 2 else None
    with watching("bits/dim", model.space.dimensions) as watch:
        scores = score(
            model,
            x,
            None if reference is None else reference.x[some],
            visits=command.visits,
            seed=command.seed,
            condition=condition,
            reference_condition=None if reference is None else rows_of(reference.condition, some),
            progress=watch,
        )
        ends = extremes(model, x, scores, command.shown, condition=condition, seed=command.seed, progress=watch)
    maps, about = None, ""
    if len(model.space.shape) == 3:
        try:
            with working("drawing cost maps"):
                maps, about = _maps(model, x[ends.item], scores.plan, rows_of(condition, ends.item), command)
        except DiffusionalError as error:
            about = f"There are no cost maps: {error}."
    low, high = _range(model.space, x)

    def listed(numbers: "Tensor") -> list[Any]:
        return [_listed(i, record, chosen, ends, maps, low, high) for i in numbers.tolist()]

    how = (
        f"The histogram has {command.visits} draws of each item, whose noise widens it. The listed items are chosen by these scores and shown "
        f"with scores drawn anew, which are on average less extreme than those that chose them; seed {command.seed}."
    )
    return ItemScores(
        scores.nelbo.numpy(),
        scores.error.numpy(),
        len(chosen.x),
        listed(ends.most_likely),
        listed(ends.least_likely),
        how,
        "" if reference is None or ends.percentile is None else _reference(len(reference.x), most),
        about,
    )


def _maps(
    model: "LatentVariableModel", x: "Tensor", plan: Any, condition: Any, command: Report
) -> "tuple[Tensor | None, str]":
    """Return cost maps (N, C, H, W), nats, and a remark on them for the page: for a system, those of its stages at the pixels of x. None and the
    reason for a model without them.
    """
    from diffusional.evaluation.maps import cost_map
    from diffusional.evaluation.stage_maps import about_maps, stage_maps
    from diffusional.models.composite import Composite

    visits = max(MAP_VISITS, command.visits)
    if isinstance(model, Composite):
        found = stage_maps(model, x, visits=visits, condition=condition, seed=command.seed)
        return found.total, about_maps(found)
    if model.visited() is not model:
        return (
            None,
            f"There are no cost maps: the costs of a {type(model).__name__} belong to latents that are not pixels.",
        )
    found = cost_map(model, x, visits=visits, plan=plan, condition=condition, seed=command.seed)
    return found.total, ""


def _reference(n: int, most: int) -> str:
    """Return which validation items are the reference, in words."""
    return (
        f"the first {most:,} of the run's {n:,} validation items" if most < n else f"the run's {n:,} validation items"
    )


def _listed(i: int, record: "RunRecord", chosen: ChosenItems, ends: Any, maps: Any, low: float, high: float) -> Any:
    """Return an item at an end of the scores."""
    from diffusional.report.subject import ListedItem
    from diffusional.space import Categorical

    at, x = ends.place(i), chosen.x[i]
    image = ((x - low) / (high - low)).float().cpu().numpy() if x.ndim == 3 else None
    text = text_of(record.space, x) if isinstance(record.space, Categorical) else None
    values = {}
    if x.ndim == 1 and len(x) <= 12 and text is None:
        raw = record.space.decode(x[None])[0].double().tolist()
        values = dict(zip(record.columns or [f"column {d + 1}" for d in range(len(x))], raw, strict=True))
    return ListedItem(
        name_of(chosen, i),
        float(ends.nelbo[at]),
        float(ends.error[at]),
        None if ends.percentile is None else float(ends.percentile[at]),
        image,
        None if maps is None else maps[at].sum(0).numpy(),
        values,
        text,
    )


def text_of(space: "Categorical", x: "Tensor") -> str:
    """Return a block of tokens (L,) as a text of at most 1,000 characters; as their numbers if the space has no alphabet."""
    from diffusional.data.alphabets import alphabet_of

    tokens = space.decode(x[None].cpu())[0].long().numpy()
    known = space.alphabet not in (None, "tokens")
    text = alphabet_of(str(space.alphabet)).decode(tokens) if known else " ".join(map(str, tokens.tolist()))
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"


def _range(space: "Space", x: "Tensor") -> tuple[float, float]:
    """Return the values that are drawn as 0 and 1."""
    levels: Any = space
    if space.levels:
        return float(levels.low), float(levels.high)
    low, high = float(x.min()), float(x.max())
    return low, high if high > low else low + 1.0
