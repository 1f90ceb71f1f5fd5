"""Training of systems of several stages. The folder of a system is a run whose stages are runs of their own:

config.json, data.json    the data of the system, as for any run
composite.json            the kind of system, its stages and how they are linked, and the hash of a frozen encoder's weights
stages/NAME/              the run of each stage, which can be trained, evaluated and replaced by itself
"""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import load_json, save_json, sha256
from diffusional.models.base import LatentVariableModel
from diffusional.networks.clip import CLIP, CLIPEncoder
from diffusional.text.hub import model_folder
from diffusional.training import process_group
from diffusional.training.build import build_schedule
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.config import Config
from diffusional.training.loop import train
from diffusional.training.run import COMPOSITE, ENCODER_HASH, STAGES, WEIGHTS, begin, composite_of, load
from diffusional.training.stage_data import dataset_of
from diffusional.training.tensorboard import check_installed

with needed_for("training"):
    from rich.console import Console


def train_composite(
    config: CompositeConfig,
    run: str | Path,
    resume: bool = False,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
    tensorboard: bool = False,
) -> LatentVariableModel:
    """Train the stages of a system one after the other, each in a run of its own; returns the system, as `df.load(run)` does.

    Stages that are trained already are left as they are, so that `resume` continues with the stage that was interrupted, to the same bits.
    A stage that was replaced, by another run of the same kind, is used as it is; other stages are not trained again. The config of a stage
    may differ in the options that may differ when a run is resumed, such as `steps`: a stage that was trained for more steps by itself keeps them.
    `clock` and `tensorboard` are those of `train`, for every
    stage that is trained.

    Under `accelerate launch` or torchrun every process calls this, and all train one stage after the other.

    Raises DiffusionalError as `train` does, for a system that was begun with other stages or links, for stages that do not meet, and for an
    encoder whose weights are not those that the later stages were trained with.

    >>> import tempfile
    >>> from diffusional.training.config import ModelConfig
    >>> small = Config(steps=2, batch=8, model=ModelConfig(widths=(8, 8), blocks=1))
    >>> config = CompositeConfig("cascade", {"base": small, "upsampler": small}, factors=(2,))
    >>> folder = Path(tempfile.mkdtemp()) / "system"
    >>> model = train_composite(config, folder, console=Console(quiet=True))
    >>> sorted(path.name for path in (folder / "stages").iterdir())
    ['base', 'upsampler']
    """
    run = Path(run)
    if tensorboard:
        check_installed()
    source = None
    if config.encoder is not None:
        # A folder is absolute, so that the run can be used from any other.
        source, _ = model_folder(config.encoder.removeprefix(CLIP), "image encoder")
        config = replace(config, encoder=f"{CLIP}{source}")
    dataset = dataset_of(config.data)
    # Before the folder is made, so that a CLIP that cannot be used leaves nothing behind.
    clip = None if source is None else CLIPEncoder.load(source, dataset.space).sha256
    plain = Config(data=config.data)
    accelerator = process_group.accelerator()
    others, main = process_group.ProcessGroup(accelerator), accelerator.is_main_process
    with begin(run, plain, dataset, resume, main), others.lost_one_named(run / STAGES):
        others.agree("the config of the system", config.to_dict())
        fault = None
        if main:
            try:
                _record(config, run)
            except DiffusionalError as error:
                fault = error
            (run / STAGES).mkdir(exist_ok=True)
        others.raise_together(fault)
        for name, own in noised(config).items():
            folder = run / STAGES / name
            if own.data.encoder is not None:
                # The main process records the hash; the others wait for it, and so for the files of the stages before.
                (digest, *_) = others.objects(_encoder_hash(config, run, clip) if main else None)
                own = replace(own, data=replace(own.data, encoder_sha256=digest))
            (taken, *_) = others.objects(_steps(folder) if main else None)
            begun = taken is not None
            # A stage that was trained further by itself is left as it is.
            own = replace(own, steps=max(own.steps, taken or 0))
            train(own, folder, resume=begun, console=console, clock=clock, tensorboard=tensorboard)
        if config.kind != "cascade" and main:
            _encoder_hash(config, run, clip)
        others.agree("the system that was trained", str(run))
    return load(run)


def noised(config: CompositeConfig) -> dict[str, Config]:
    """Return the configs of the stages' runs, in which stages that are given a noised variable have its γ as `model.condition_noise`.

    >>> stages = {"base": Config(), "upsampler": Config()}
    >>> noised(CompositeConfig("cascade", stages, factors=(2,), renoise=-3.0))["upsampler"].model.condition_noise
    -3.0
    """
    found = config.of_stages()
    names = list(found)
    for before, name in pairwise(names):
        if config.kind == "cascade":
            level, gamma = config.handover, config.renoise
        else:
            level, gamma = (config.handover or 1) if name == "decoder" else None, None
        if level is not None:
            schedule = build_schedule(found[before].schedule)
            levels = schedule.ends()[:1] if schedule.steps is None else schedule.grid()[:-1]
            if not 1 <= level <= len(levels):
                raise DiffusionalError(
                    f"expected handover from 1 to {len(levels)}, a latent of stage {before!r} below the last, got {level}"
                )
            gamma = float(levels[level - 1].detach())
        if gamma is not None:
            stage = found[name]
            found[name] = replace(stage, model=replace(stage.model, condition_noise=gamma))
    return found


def _record(config: CompositeConfig, run: Path) -> None:
    """Write composite.json, or check that it is of the same system."""
    path, own = run / COMPOSITE, config.to_dict()
    if path.exists():
        before = composite_of(run)[0].to_dict()
        links = {key: (before[key], own[key]) for key in own if key != "stages" and before[key] != own[key]}
        if list(before["stages"]) != list(own["stages"]):
            links["stages"] = list(before["stages"]), list(own["stages"])
        if links:
            said = "; ".join(f"{key}: {old} → {new}" for key, (old, new) in links.items())
            raise DiffusionalError(
                f"{run} was begun as another system; resume with the same config, or name another folder. Differences (run → now): {said}"
            )
        own |= {ENCODER_HASH: load_json(path).get(ENCODER_HASH)}
    save_json(path, own)


def _steps(stage: Path) -> int | None:
    """Return the steps in the config of a stage's run; None if it was not begun."""
    path = stage / "config.json"
    return Config.load(path).steps if path.exists() else None


def _encoder_hash(config: CompositeConfig, run: Path, clip: str | None) -> str:
    """Return the hash of the encoder's weights, recorded when it is first used; `clip` is that of a CLIP now."""
    path = run / COMPOSITE
    record: dict[str, Any] = load_json(path)
    if record.get(ENCODER_HASH) is None:
        first = next(iter(config.stages))
        record[ENCODER_HASH] = clip or sha256(run / STAGES / first / WEIGHTS)
        save_json(path, record)
    return record[ENCODER_HASH]
