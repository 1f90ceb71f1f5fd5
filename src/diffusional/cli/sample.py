"""`diffusional sample`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusional.cli.commands import Sample
from diffusional.cli.console import Result, device, numbered, working
from diffusional.cli.guidance import guidance_options, guided
from diffusional.cli.sample_given import check_conditional, check_given, description, sampled_given
from diffusional.cli.sample_tables import check_table, write_table
from diffusional.errors import DiffusionalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusional.data import Dataset
    from diffusional.training.run import RunRecord

# Samples drawn at a time.
_BATCH = 256


def run(command: Sample) -> Result:
    """Draw samples and write them to new files; existing files are never replaced."""
    import numpy as np
    import torch

    from diffusional.conditions import by_name, moved, rows_of
    from diffusional.models.composite import Composite
    from diffusional.report.figures import grid
    from diffusional.space import Discrete
    from diffusional.training.config import SEQUENCES
    from diffusional.training.run import load, read_run

    record = read_run(command.run)
    given = command.interpolate is not None or command.upsample is not None
    if given:
        check_given(command)
    # Stages that are given an item may be sampled without the condition that the first stage needs.
    condition = None if given and command.condition is None else condition_of(command, record)
    captions = None
    if isinstance(condition, tuple):
        condition, captions = condition
    out = command.out or numbered(command.run / "samples.npz", ".png")
    check_table(out, record.columns)
    model = load(command.run)
    if given:
        check_conditional(command, model)
    model = guided(model, command.guidance, command)
    images = model.space if len(model.space.shape) == 3 and isinstance(model.space, Discrete) else None
    if os.path.lexists(out):
        raise DiffusionalError(f"--out {out} exists and was not replaced; name another file")
    if images is not None and os.path.lexists(picture := out.with_suffix(".png")):
        raise DiffusionalError(
            f"--out {out}: {picture}, the file for the picture, exists and was not replaced; name another file"
        )
    if not out.resolve().parent.is_dir():
        raise DiffusionalError(f"--out {out}: the folder {out.resolve().parent} does not exist")
    place, steps = device(), command.steps
    if steps is not None and record.config.model.kind in SEQUENCES:
        # The chain of that many steps is another model, which has a bound of its own.
        model, steps = model.regrid(steps), None
    model, generator = model.to(place), torch.Generator(place).manual_seed(command.seed)
    options: dict[str, Any] = {}
    if len(model.sampling) > 1:
        options = {"method": command.method, "steps": command.steps, "eta": command.eta}
    elif command.method != "ancestral" or steps is not None or command.eta:
        raise DiffusionalError(
            f'--method, --steps and --eta apply to model.kind="diffusion", and --steps to "masked" and "uniform", but {command.run} has a '
            f"{type(model).__name__}, which is not a Gaussian diffusion model; leave them out"
        )
    with working(f"drawing {command.n} samples"):
        # The activations of all samples may not fit into memory; n < 1 is refused by the model.
        starts = range(0, command.n, _BATCH) if command.n > 0 else [0]
        drawn: list[dict[str, Any]] = []
        for start in starts:
            some = rows_of(condition, slice(start, start + _BATCH))
            n = min(_BATCH, command.n - start)
            if given:
                drawn.append(sampled_given(command, record, model, n, start, condition))
            elif isinstance(model, Composite):
                drawn.append(model.sample_stages(n, generator, moved(some, place)))
            else:
                drawn.append({"x": model.sample(n, generator, moved(some, place), **options)})
        every = {name: torch.cat([one[name].cpu() for one in drawn]) for name in drawn[0]}
        *stages, last = every
        x = every[last]
    broken = int((~torch.isfinite(x)).flatten(1).any(1).sum())
    if broken:
        raise DiffusionalError(
            f"{broken} of {command.n} samples are not finite, so that no file was written: the outputs of the network of {command.run} are "
            "too large. Train it for longer or with a lower --optimizer.lr"
        )
    raw = model.space.decode(x).numpy()
    # The names of a table's columns, in the order of the samples; `data.load` reads them.
    columns = record.columns
    arrays = {"samples": raw} | ({"columns": np.array(columns)} if columns else {})
    names = None
    if record.classes and condition is not None:
        names = [record.classes[number] for number in condition.tolist()]
        arrays["labels"] = np.array(names)
    elif condition is not None:
        arrays |= {name: value.numpy() for name, value in by_name(condition).items()}
        arrays |= {} if captions is None else {"captions": np.array(captions)}
    if out.suffix == ".npz":
        written = [_written(out, lambda path: np.savez_compressed(path, allow_pickle=False, **arrays))]
    else:
        table = dict(zip(columns, raw.T, strict=True))
        if names is not None:
            table[record.config.data.condition or "label"] = arrays["labels"]
        written = [_written(out, lambda path: write_table(path, table, out.suffix))]
    if images is not None:
        title, low, high = f"{command.n} samples, {command.method}", images.low, images.high
        if command.condition is not None:
            title += f", {' '.join(command.condition)}"
        if command.guidance is not None:
            title += f", guidance {command.guidance:g}"
        if given:
            title += f", {description(command)}"
        beside = written[0].with_suffix(".png")
        written.append(_written(beside, lambda path: grid(path, x.numpy(), title, low=low, high=high)))
    if stages:
        written += _stages(written[0], model, {name: every[name] for name in stages})
    files = [str(path) for path in written]
    result = {
        "samples": files,
        "n": command.n,
        "method": command.method,
        "seed": command.seed,
        **_guidance(command),
        **({"given": description(command)} if given else {}),
        "shape": list(raw.shape),
        **({"stages": stages} if stages else {}),
        **({"columns": list(columns)} if columns else {}),
        **({"labels": names} if names is not None else {}),
        **({"captions": captions} if captions is not None else {}),
    }
    return Result(result, [f"{command.n} samples in {' and '.join(files)}"])


def _stages(out: Path, model: Any, every: "dict[str, Any]") -> list[Path]:
    """Write the variables of the stages before the last beside the samples: NAME.stages.npz, and a picture of every stage of images."""
    import numpy as np

    from diffusional.report.figures import grid
    from diffusional.space import Discrete

    arrays, pictures = {}, []
    for name, values in every.items():
        space = model.stages[name].space
        # A latent that is handed over is real, whatever the space of its stage is.
        whole = isinstance(space, Discrete) and getattr(model, "handover", None) is None
        arrays[name] = (space.decode(values) if whole else values).numpy()
        if whole and len(space.shape) == 3:
            pictures.append((name, values.numpy(), space))
    beside = out.with_name(f"{out.stem}.stages.npz")
    written = [_written(beside, lambda path: np.savez_compressed(path, allow_pickle=False, **arrays))]
    for name, values, space in pictures:
        target = out.with_name(f"{out.stem}.{name}.png")
        title = f"{len(values)} samples of {name}"
        written.append(
            _written(target, lambda path, v=values, t=title, s=space: grid(path, v, t, low=s.low, high=s.high))
        )
    return written


def _guidance(command: Sample) -> dict[str, Any]:
    """Return the entries of the record about guidance; {} without it."""
    if command.guidance is None:
        return {}
    return {"guidance": {"weight": command.guidance} | guidance_options(command)}


def condition_of(command: Sample, record: "RunRecord") -> Any:
    """Return the condition of the samples, such as labels (n,); None for a run without one, and for guidance with weight 0 if none is
    given.
    """
    from diffusional.conditions import labels
    from diffusional.data.excerpt import listed

    classes = record.classes
    if record.text is not None and (record.form is None or record.form.kind != "joint"):
        return _texts(command, record)
    if record.form is not None:
        return _other_condition(command, record)
    if not classes:
        if command.condition is not None or command.guidance is not None:
            given = f"--condition {' '.join(command.condition)}" if command.condition is not None else "--guidance"
            raise DiffusionalError(
                f"{given} was given, but {command.run} was trained without labels; leave it out, or sample from a run that was trained "
                "with --condition"
            )
        return None
    if command.condition is None:
        if command.guidance == 0:
            return None
        raise DiffusionalError(
            f"{command.run} was trained with the labels of its data and requires --condition; expected names among "
            f"{listed(list(classes))}, or `all`"
        )
    wanted = [
        name for given in command.condition for name in ([given] if given in classes else given.split(",")) if name
    ]
    every = "all" not in classes and wanted == ["all"]
    return labels(list(classes) if every else wanted, classes, command.n)


def _other_condition(command: Sample, record: "RunRecord") -> Any:
    """Return the condition of the samples of a run whose condition is not labels.

    It is that of items of the run's own data, such as `test` or `test:5`, the rows of an .npy file, or comma-separated numbers.
    """
    import numpy as np
    import torch

    from diffusional.conditions import concatenated, repeated, rows_of
    from diffusional.training.own import own_data

    form = record.form
    assert form is not None
    if command.condition is None:
        if command.guidance == 0:
            return None
        raise DiffusionalError(
            f"{command.run} was trained with a condition of {form} and requires --condition; expected a split of its data, such as test, or "
            "an item of it, such as test:5, or an .npy file with a row for each sample"
            + (", or comma-separated numbers" if form.kind == "numbers" else "")
        )
    rows: list[Any] = []
    for word in command.condition:
        split = word.partition(":")[0]
        if split in ("train", "validation", "test"):
            condition = _with_rows(word, own_data(record, (split,)), split).condition_of(split)
            n = len(next(iter(condition.values())) if isinstance(condition, dict) else condition)
            rows.append(rows_of(condition, _rows(word, n, command.n)))
        elif form.kind == "joint":
            raise DiffusionalError(
                f"--condition {word}: {command.run} was trained with two conditions, {form}; expected a split of the run's data, such as "
                "test, or an item of it, such as test:5, which has both"
            )
        elif word.endswith(".npy"):
            try:
                rows.append(torch.from_numpy(np.load(word, allow_pickle=False)).float())
            except (OSError, ValueError, TypeError) as error:
                raise DiffusionalError(f"--condition {word}: the file cannot be read ({error})") from error
        else:
            try:
                rows.append(torch.tensor([[float(one) for one in word.split(",")]]))
            except ValueError as error:
                raise DiffusionalError(
                    f"--condition {word}: expected a split of the run's data (train, validation or test), an .npy file, or "
                    "comma-separated numbers"
                ) from error
    for word, one in zip(command.condition, rows, strict=True):
        try:
            form.check(one, len(next(iter(one.values())) if isinstance(one, dict) else one))
        except DiffusionalError as error:
            raise DiffusionalError(f"--condition {word}: {error}") from error
    found = concatenated(rows)
    n = len(next(iter(found.values())) if isinstance(found, dict) else found)
    if n > command.n > 0:
        raise DiffusionalError(f"--condition has {n} rows for {command.n} samples; give --n {n}, or fewer")
    return rows_of(repeated(found, -(-command.n // n)), slice(0, command.n)) if command.n > 0 else found


def _with_rows(word: str, dataset: "Dataset", split: str) -> "Dataset":
    """Return the data set. Raises DiffusionalError for a split that is a stream, whose items have no numbers."""
    from diffusional.data.dataset import Stream

    if isinstance(getattr(dataset, split), Stream):
        raise DiffusionalError(
            f"--condition {word}: {split} is a stream, which is not read to its end; expected an item of validation or test, such as test:5"
        )
    return dataset


def _rows(word: str, items: int, samples: int) -> slice:
    """Return the rows that a word such as test or test:5 names, of a split with this number of items: one, or as many as samples."""
    split, _, number = word.partition(":")
    if not number:
        return slice(0, samples)
    if not (number.isdecimal() and int(number) < items):
        raise DiffusionalError(f"--condition {word}: expected an item of {split} from 0 to {items - 1}, got {number!r}")
    return slice(int(number), int(number) + 1)


def _texts(command: Sample, record: "RunRecord") -> Any:
    """Return the condition of the samples of a run that was trained with texts, and the texts; None if guidance makes it unnecessary.

    The texts are given, or those of items of the run's own data, such as `test` or `test:5`.
    """
    from diffusional.data.texts import condition_of
    from diffusional.training.own import own_data

    assert record.text is not None
    if command.condition is None:
        if command.guidance == 0:
            return None
        raise DiffusionalError(
            f'{command.run} was trained with captions and requires --condition; expected texts, such as "a thick seven", or an item of its '
            "data, such as test:5"
        )
    texts: list[str] = []
    for word in command.condition:
        split, colon, number = word.partition(":")
        if split in ("train", "validation", "test") and (not colon or number.isdecimal()):
            captions = _with_rows(word, own_data(record, (split,)), split).captions_of(split)
            texts += captions[_rows(word, len(captions), command.n)]
        else:
            texts.append(word)
    if len(texts) > command.n > 0:
        raise DiffusionalError(
            f"--condition has {len(texts)} texts for {command.n} samples; give --n {len(texts)}, or fewer"
        )
    every = [texts[i % len(texts)] for i in range(max(command.n, 1))]
    return condition_of(record.text, every), every


def _written(path: Path, write: "Callable[[Path], Any]") -> Path:
    """Write a new file; if another process has taken the name meanwhile, use the next free one."""
    from diffusional.files import writing

    while True:
        try:
            with writing(path, overwrite=False) as (part,):
                write(part)
            return path
        except FileExistsError:
            path = numbered(path)
