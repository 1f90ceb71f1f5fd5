"""The training loop, on Accelerate: sample levels, take a step, average the weights, validate now and then."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffusional.data.dataset import Dataset
from diffusional.errors import DiffusionalError
from diffusional.files import save_tensors
from diffusional.ledger import per_unit
from diffusional.levels import LevelSampler
from diffusional.models.base import LatentVariableModel
from diffusional.models.diffusion import DiffusionModel, batch_rows
from diffusional.models.vae import Autoencoder
from diffusional.training import checkpoint
from diffusional.training.build import build_dataset, build_model, build_sampler
from diffusional.training.config import Config, OptimizerConfig
from diffusional.training.run import CHECKPOINTS, METRICS, WEIGHTS, begin, load

# Draws per validation item. They are the same at every validation, so that bounds compare with little noise.
_VALIDATION_DRAWS = 16
# Fewer where the validation split is large: its size does then what draws would.
_VALIDATION_ROWS = 8_192
_LOG_EVERY = 10


def train(
    config: Config,
    run: str | Path,
    data: Dataset | None = None,
    resume: bool = False,
    console: Console | None = None,
    watch: Callable[[int, LatentVariableModel], None] | None = None,
) -> LatentVariableModel:
    """Train a model by its ELBO and leave everything in the folder `run`; returns the best model, as `load(run)` does.

    The metrics go to metrics.jsonl, a line per 10 steps and per validation; the averaged weights with the best validation
    bound to model.safetensors. `resume` continues a run with the same config and data.

    Args:
        data: a Dataset in hand; `config.data` is loaded unless given.
        console: where the progress bar goes; standard error unless given.
        watch: called with (step, averaged model) before the first step and after each validation; its time doesn't count.

    Raises DiffusionalError for a used folder without `resume`, another config or other data with it, and a loss that is
    not finite (the last good checkpoint stays).

    >>> import tempfile
    >>> from diffusional.training.config import ModelConfig
    >>> config = Config(steps=2, batch=8, model=ModelConfig(widths=(8, 8), blocks=1))
    >>> model = train(config, tempfile.mkdtemp() + "/run", console=Console(quiet=True))
    >>> model.space.levels
    17
    """
    run = Path(run)
    console = console or Console(stderr=True)
    dataset = data or build_dataset(config.data)
    accelerator = Accelerator(mixed_precision="no")  # the network alone is cast: see _Objective
    set_seed(config.seed)
    # Before the folder is claimed: a config that makes no model leaves none behind.
    model = build_model(config, dataset.space)
    optimizer = _optimizer(model, config.optimizer)
    if accelerator.is_main_process:
        begin(run, config, dataset, resume)
    accelerator.wait_for_everyone()
    sampler = build_sampler(config)
    average = AveragedModel(model, device=accelerator.device, multi_avg_fn=_ema(config.optimizer.ema))
    objective, optimizer = accelerator.prepare(_Objective(model, config, sampler), optimizer)
    # Every process draws levels and noise of its own.
    generator = torch.Generator(accelerator.device)
    generator.manual_seed(_seed(config.seed, accelerator.process_index))
    state = checkpoint.State(model, average, optimizer, sampler, generator)
    progress = checkpoint.restore(run / CHECKPOINTS, state)
    if accelerator.num_processes > 1 and progress.step:
        # The checkpoint has the main process's stream; no two may share one.
        generator.manual_seed(_seed(config.seed, accelerator.process_index + 1000 * progress.step))

    unit = per_unit("bits/dim", dataset.space.dimensions)
    # L_simple is already per dimension, and no bound: its number gets no unit.
    scale = 1.0 if config.objective == "simple" else unit
    averaged = average.module
    assert isinstance(averaged, LatentVariableModel)
    if watch is not None and progress.step == 0:
        watch(0, averaged)
    started = time.monotonic() - progress.seconds
    with _Journal(run / METRICS, config, progress, console, accelerator.is_main_process) as journal:
        while not _finished(config, progress):
            rate = learning_rate(config.optimizer, progress.step, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            x = _batch(dataset, config, progress.step, accelerator).to(accelerator.device)
            loss = objective(x, generator, progress.step / config.steps)
            optimizer.zero_grad()
            accelerator.backward(loss / scale)  # bits/dim: gradients of order one, whatever D
            norm = accelerator.clip_grad_norm_(model.parameters(), config.optimizer.clip)
            value, size = float(loss.detach()) / scale, float(torch.as_tensor(norm))
            if not (math.isfinite(value) and math.isfinite(size)):
                raise DiffusionalError(
                    f"step {progress.step + 1}: the loss is {value:g} and the gradient's norm {size:g}; the last good "
                    f"checkpoint in {run / CHECKPOINTS} is intact. Try a lower optimizer.lr or optimizer.clip"
                )
            optimizer.step()
            average.update_parameters(model)
            progress.step += 1
            progress.seconds = time.monotonic() - started

            last = _finished(config, progress)
            journal.step(value, rate, size, last)
            if last or progress.step % config.validate_every == 0:
                bound = validate(averaged, dataset, config.seed)
                progress.record(bound)
                if progress.stale == 0 and accelerator.is_main_process:
                    save_tensors(run / WEIGHTS, averaged.state_dict())
                journal.validation(bound / unit, progress.best / unit)
                if watch is not None:
                    paused = time.monotonic()
                    watch(progress.step, averaged)
                    started += time.monotonic() - paused
            if _finished(config, progress) or progress.step % config.checkpoint_every == 0:
                journal.flush()
                if accelerator.is_main_process:
                    checkpoint.save(run / CHECKPOINTS, state, progress)
    accelerator.wait_for_everyone()
    return load(run)


class _Journal:
    """What a run says while it goes: lines of metrics.jsonl, and a progress bar with rate, remaining time and bound."""

    def __init__(
        self, path: Path, config: Config, progress: checkpoint.Progress, console: Console, speaks: bool
    ) -> None:
        self.path, self.progress, self.speaks = path, progress, speaks
        self.key, self.label = ("simple_loss", "L_simple") if config.objective == "simple" else ("loss", "bits/dim")
        self.validated = False
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[bound]}"),
        )
        self.bar = Progress(*columns, console=console, disable=not speaks)
        self.task = self.bar.add_task("", total=config.steps, completed=progress.step, rate="", bound="")

    def __enter__(self) -> "_Journal":
        if self.speaks:
            _truncate(self.path, self.progress.step)
        # By lines, so that a killed run leaves whole ones.
        self.file = (self.path if self.speaks else Path(os.devnull)).open("a", buffering=1)
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
        self.file.close()

    def step(self, loss: float, rate: float, norm: float, last: bool) -> None:
        """A step's loss, in bits/dim if it is a bound; every tenth step the mean since the last line is written."""
        losses = self.progress.losses
        losses.append(loss)
        if not last and self.progress.step % _LOG_EVERY:
            return
        recent = sum(losses) / len(losses)
        losses.clear()
        self._write({self.key: recent, "lr": rate, "norm": norm})
        speed = f"{self.progress.step / self.progress.seconds:.1f} steps/s"
        self.bar.update(self.task, completed=self.progress.step, rate=speed)
        if not self.validated:
            self.bar.update(self.task, bound=f"{recent:.3f} {self.label}")

    def validation(self, bound: float, best: float) -> None:
        """A validation bound in bits/dim."""
        self.validated = True
        self._write({"validation": bound})
        self.bar.update(self.task, bound=f"{bound:.3f} bits/dim (validation; best {best:.3f})")

    def flush(self) -> None:
        """Bring the metrics to disk before a checkpoint that counts on them."""
        self.file.flush()

    def _write(self, values: dict[str, float]) -> None:
        line = {"step": self.progress.step, **values, "seconds": round(self.progress.seconds, 3)}
        self.file.write(json.dumps(line) + "\n")


class _Objective(nn.Module):
    """The loss as a forward pass, which is what wrappers of modules hook into."""

    def __init__(self, model: LatentVariableModel, config: Config, sampler: LevelSampler) -> None:
        super().__init__()
        self.model, self.sampler, self.latent = model, sampler, config.latent
        self.simple, self.bf16 = config.objective == "simple", config.precision == "bf16"

    def forward(self, x: Tensor, generator: torch.Generator, part: float) -> Tensor:
        """`part` of the run lies behind."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            if isinstance(self.model, Autoencoder):
                weight = 1.0 if part >= self.latent.warmup else (part / self.latent.warmup) ** 2
                return self.model.warmed_loss(x, generator, None, weight, self.latent.free_bits, self.sampler)
            assert isinstance(self.model, DiffusionModel)
            if self.simple:
                return self.model.simple_loss(x, generator)
            return self.model.loss(x, generator, sampler=self.sampler)


def _optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms and other vectors are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Warm-up from 0, a plateau until `flat` of the run, a cosine to 0 at its end.

    >>> [round(learning_rate(OptimizerConfig(lr=1.0, warmup=10, flat=0.5), s, 100), 3) for s in (0, 9, 50, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.001]
    """
    plateau = config.flat * steps
    decay = 1.0 if step < plateau else 0.5 * (1 + math.cos(math.pi * (step - plateau) / (steps - plateau)))
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup)) * decay


def validate(model: LatentVariableModel, dataset: Dataset, seed: int) -> float:
    """The validation NELBO in nats: up to 16 draws of the noise (and of stratified t) per item, the same at every call."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(_seed(seed, -1))
    was_training = model.training
    model.eval()
    x = dataset.encode("validation")
    draws = max(1, min(_VALIDATION_DRAWS, _VALIDATION_ROWS // len(x)))
    total = 0.0
    with torch.inference_mode():
        for block in x.split(max(1, batch_rows(model.space) // draws)):
            block = block.to(device)
            repeated = block.repeat(draws, *(1,) * (x.ndim - 1))
            total += float(model.loss(repeated, generator)) * len(block)
    model.train(was_training)
    return total / len(x)


def _batch(dataset: Dataset, config: Config, step: int, accelerator: Accelerator) -> Tensor:
    """Items of a step, encoded: the stream of epochs is a function of (seed, step), cut among the processes."""
    n = len(dataset.train)
    size = config.batch
    first = (step * accelerator.num_processes + accelerator.process_index) * size
    wanted = range(first, first + size)
    parts = []
    for epoch in range(wanted[0] // n, wanted[-1] // n + 1):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(_seed(config.seed, 1_000_000 + epoch)))
        parts.append(order[max(0, first - epoch * n) : min(n, first + size - epoch * n)])
    return dataset.space.encode(dataset.train[torch.cat(parts)])


def _seed(seed: int, stream: int) -> int:
    """Seeds of independent streams of one run."""
    return (seed * 0x9E3779B1 + (stream + 2) * 0x85EBCA77) % 2**63


def _ema(decay: float) -> Callable[..., None]:
    def update(averages: Sequence[Tensor], parameters: Sequence[Tensor], count: Tensor | int) -> None:
        weight = min(decay, (1 + float(count)) / (10 + float(count)))
        for averaged, parameter in zip(averages, parameters, strict=True):
            averaged.lerp_(parameter, 1 - weight)

    return update


def _finished(config: Config, progress: checkpoint.Progress) -> bool:
    """All steps taken, out of time, or out of patience; so that resuming a run that has ended changes nothing."""
    out_of_time = config.max_seconds is not None and progress.step > 0 and progress.seconds >= config.max_seconds
    return progress.step >= config.steps or out_of_time or 0 < config.patience <= progress.stale


def _truncate(path: Path, step: int) -> None:
    """Drop metrics of steps after the checkpoint: they will be taken again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:  # cut short when the run was killed; what it said will be said again
            break
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)
