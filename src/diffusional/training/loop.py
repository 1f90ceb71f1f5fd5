"""The training loop, with Accelerate: sample levels, take a step, average the weights, and validate at intervals.

All random numbers of a step are a function of (seed, step) and of the position of an item in the batch: a run on several processes, or
with batches in parts, takes the same steps as a run on one, with levels stratified over the whole batch. (Dropout is an exception: its
masks are drawn in each part, so that such runs agree in distribution.)
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusional.condition_form import FIRST
from diffusional.conditions import dropped, rows_of
from diffusional.data.dataset import Dataset, Stream
from diffusional.errors import DiffusionalError, Interrupted
from diffusional.extras import needed_for
from diffusional.files import save_json, save_tensors, sha256
from diffusional.grid import sample
from diffusional.ledger import Costs, per_unit
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.space import Discrete
from diffusional.timesteps import LEARNING
from diffusional.training import checkpoint, process_group, warm_start
from diffusional.training.average import WeightAverage
from diffusional.training.batches import BatchLoader
from diffusional.training.build import build_model, build_sampler, prepare_networks
from diffusional.training.config import Config, OptimizerConfig
from diffusional.training.diagnosis import diagnose, diagnose_gradient, diagnose_weights
from diffusional.training.metrics_logger import MetricsLogger
from diffusional.training.objective import Objective, validate
from diffusional.training.own import recorded
from diffusional.training.run import CHECKPOINTS, CONFIG, PROFILE, WEIGHTS, begin, load
from diffusional.training.seeds import seed_of
from diffusional.training.stage_data import dataset_of
from diffusional.training.stopping import Stopping
from diffusional.training.stopwatch import Stopwatch
from diffusional.training.tensorboard import check_installed
from diffusional.training.visit_log import VisitLog

with needed_for("training"):
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from rich.console import Console

# Items of a stream that are examined before training.
_HEAD = 256

Watch = Callable[[int, LatentVariableModel], None]


def train(
    config: Config,
    run: str | Path,
    data: Dataset | None = None,
    resume: bool = False,
    console: Console | None = None,
    watch: Watch | None = None,
    profile: bool = False,
    clock: Callable[[], float] = time.monotonic,
    tensorboard: bool = False,
) -> LatentVariableModel:
    """Train a model on its ELBO and write all results to the folder `run`; returns the best model, as `load(run)` does.

    The metrics go to metrics.jsonl, a line per 10 steps and per validation; the averaged weights with the best validation
    bound to model.safetensors. `resume` continues a run with the same config and data, to the same bits on the same machine. With
    a larger `config.steps` it continues a run beyond its end: the learning rate then follows the schedule of the longer run, with a
    warning if that differs from the one of the previous steps. With `config.init_from`, a new run starts from the averaged
    weights of another run, whose hash is recorded in config.json.
    Under `accelerate launch` or torchrun every process calls this; `config.batch` is that of all of them together.

    Args:
        data: a Dataset; by default `config.data` is loaded. If given, config.json records the file and the options with which
            `df.data.load` loaded it, or that it was made in Python. With class labels (`data.condition`) the model is trained
            with them as its condition; for an unconditional model, use `data.without_condition()`.
        console: where progress is shown, by default standard error: a progress bar on a terminal; elsewhere the expected duration
            after ten steps, and a line every 30 seconds.
        watch: called with (step, averaged model in evaluation mode) before the first step and after each validation. Its time
            is not counted. The model is the run's own: copy what you keep.
        profile: write profile.json with the time spent in each part of a step (on a GPU this makes steps wait for one another).
        clock: the current time in seconds, increasing: for `config.max_seconds`, the timings and the progress lines.
        tensorboard: also write the metrics for TensorBoard, as scalars of the names in metrics.jsonl, to the folder tensorboard of the run.
            Needs the extra `tensorboard`.

    `config.max_seconds` includes steps and validations. The run ends early enough for a last validation that takes as long as the
    previous one. A validation that does not end in time is abandoned, except the first, which is completed so that there is a
    model.

    Raises DiffusionalError for a used folder without `resume`, a different config or different data with it, fewer steps than were
    taken, weights to start from that do not fit the model, another process that trains in the folder, a disk that is full or
    read-only, and a loss that is not finite (the last good checkpoint stays in every case). Warns, when a run begins, of real-valued
    training data that are levels stored as real numbers, such as whole numbers or multiples of 1/255; a sample of them is examined.
    Raises Interrupted on SIGINT and SIGTERM, after the current step or validation batch, with a checkpoint.

    >>> import tempfile
    >>> from diffusional.training.config import ModelConfig
    >>> config = Config(steps=2, batch=8, model=ModelConfig(widths=(8, 8), blocks=1))
    >>> model = train(config, tempfile.mkdtemp() + "/run", console=Console(quiet=True))
    >>> model.space.levels
    17
    """
    run = Path(run)
    if tensorboard:
        check_installed()
    console = console or Console(stderr=True)
    accelerator = process_group.accelerator()
    share = _share(config, accelerator)
    dataset = data or dataset_of(config.data, run)
    config = recorded(config, data)
    set_seed(config.seed)
    # Before the folder is created, so that an invalid config does not leave one behind.
    model = build_model(config, dataset.space, dataset.classes, dataset.condition_form)
    config = warm_start.begun(config, model, run, resume)
    process_group.refuse_sharding(accelerator, model)
    optimizer = _optimizer(model, config.optimizer)
    others, main = process_group.ProcessGroup(accelerator), accelerator.is_main_process
    with begin(run, config, dataset, resume, main), others.lost_one_named(run / CHECKPOINTS):
        if main:
            checkpoint.recover(run / CHECKPOINTS)
        others.agree("their config and data", (config.to_dict(), dataset.space.to_dict()))
        prepare_networks(model, config.system, accelerator.device)
        objective, optimizer = accelerator.prepare(Objective(model, config), optimizer)
        # Accelerate's wrapper is only needed for loss scalers, which are not used, and searches for packages at every step.
        optimizer = getattr(optimizer, "optimizer", optimizer)
        trained = accelerator.unwrap_model(objective).model
        average = WeightAverage(trained, config.optimizer.ema, accelerator.unwrap_model(objective))
        state = checkpoint.State(trained, average, optimizer, build_sampler(config))
        progress = checkpoint.Progress()
        found = checkpoint.newest(run / CHECKPOINTS)
        others.agree("the newest checkpoint that is whole", None if found is None else found.name)
        if found is not None:
            progress = checkpoint.restore(found, state, config, accelerator.num_processes)
            _check_length(checkpoint.config_of(found), config, progress.step, run, main)
        if main:
            if found is not None:
                checkpoint.set_aside(found)
                checkpoint.tidy(found, config.keep_checkpoints)
                checkpoint.put_back_best(found)
            # From here on, options that may differ have their new values.
            save_json(run / CONFIG, config.to_dict())
            levels = None if resume else _scaled_levels(dataset)
            if levels is not None:
                warnings.warn(levels, stacklevel=2)
        batches = BatchLoader(dataset, config.seed, config.batch, share, accelerator.device, config.steps)
        batches.seek(progress.step, (progress.epoch, progress.of_epoch))
        visits = VisitLog.of(trained, dataset.train, config.steps * config.batch)
        if visits is not None:
            visits.restore(run, progress.step)
        trainer = _Trainer(
            config, run, dataset, accelerator, others, objective, state, progress, batches, share, visits
        )
        try:
            trainer.run_to_the_end(console, watch, Stopwatch(profile, accelerator.device, clock), clock, tensorboard)
        finally:
            batches.close()
        accelerator.wait_for_everyone()
    return load(run)


def _scaled_levels(dataset: Dataset) -> str | None:
    """Return a sentence on real-valued training data that are levels stored as real numbers; None if they are not."""
    train, space = dataset.train, dataset.space
    if isinstance(space, Discrete):
        return None
    if isinstance(train, Stream):
        return space.scaled_levels(train.head(_HEAD), encoded=False)
    rows, _ = sample(len(train), space.dimensions)
    return space.scaled_levels(train[torch.arange(len(train))[rows]], encoded=False)


@dataclass
class _Trainer:
    """The state of a running training."""

    config: Config
    run: Path
    dataset: Dataset
    accelerator: Accelerator
    others: process_group.ProcessGroup
    objective: nn.Module
    state: checkpoint.State
    progress: checkpoint.Progress
    batches: BatchLoader
    share: slice
    visits: VisitLog | None = None

    def run_to_the_end(
        self,
        console: Console,
        watch: Watch | None,
        stopwatch: Stopwatch,
        now: Callable[[], float],
        tensorboard: bool = False,
    ) -> None:
        """Take steps, validate and save checkpoints until the run has ended or is interrupted."""
        config, progress, main = self.config, self.progress, self.accelerator.is_main_process
        contrastive = config.model.kind == "contrastive"
        unit = 1.0 if contrastive else per_unit("bits/dim", self.dataset.space.dimensions)
        # L_simple and L_hybrid are already per dimension, and are not bounds: they have no unit. A contrastive loss is in nats.
        scale = unit if config.objective == "elbo" else 1.0
        clock = _Clock(progress.seconds, now)
        if watch is not None and progress.step == 0:
            with clock.paused():
                self._watched(watch)
        taken = agreed = 0
        logger = MetricsLogger(self.run, config, progress, console, main, now, tensorboard)
        with Stopping() as stopping, logger as metrics_logger:
            if self._owed():
                agreed = self._validate(unit, metrics_logger, clock, stopping, watch, stopwatch)
                if self._finished() and not self._owed():
                    # No further step will save a checkpoint.
                    metrics_logger.flush()
                    self._save()
            while not self._finished() and not agreed:
                rate = learning_rate(config.optimizer, progress.step, config.steps)
                loss, norm, agreed = self._step(rate, scale, stopwatch, stopping)
                progress.step += 1
                progress.epoch, progress.of_epoch = self.batches.place(progress.step)
                self._count_time(clock)
                taken += 1
                metrics_logger.step(loss, rate, norm, self._finished())
                # After an interruption the validation is not run; it is run when the run is resumed.
                if self._due() and not agreed:
                    agreed = self._validate(unit, metrics_logger, clock, stopping, watch, stopwatch)
                if self._finished() or agreed or progress.step % config.checkpoint_every == 0:
                    with stopwatch("checkpoint"):
                        metrics_logger.flush()
                        self._save()
        if stopwatch.on and main and taken:
            save_json(self.run / PROFILE, {"steps": taken, "seconds": stopwatch.seconds})
        if agreed and (self._owed() or not self._finished()):
            raise Interrupted(
                f"stopped after step {progress.step} of {config.steps}, with a checkpoint; continue with --resume",
                agreed,
            )

    def _step(
        self, rate: float, scale: float, stopwatch: Stopwatch, stopping: Stopping
    ) -> tuple[float | None, float, int]:
        """Take an optimiser step.

        Returns its loss over all processes (None if it was skipped), the norm of its gradient, and the number of a signal that any process
        received, so that all of them stop at the same step.
        """
        config, progress, state, accelerator = self.config, self.progress, self.state, self.accelerator
        step, parts = progress.step, config.system.accumulate
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        with stopwatch("data"):
            x, rows = self.batches(step)
            condition = self._dropped(self.batches.condition(rows), step)
        with stopwatch("draws"):
            # Drawn for the whole batch, and equally on every process: each share is then part of one stratified sample.
            generator = torch.Generator(x.device).manual_seed(seed_of(config.seed, "draws", step))
            draws = {name: value[self.share] for name, value in self._draw(x, generator).items()}
            _seed_dropout(seed_of(config.seed, "dropout", step, accelerator.process_index), x.device)
        state.optimizer.zero_grad()
        total, seen = 0.0, []
        for i in range(parts):
            part = slice(i * len(x) // parts, (i + 1) * len(x) // parts)
            mine = {name: value[part] for name, value in draws.items()}
            with accelerator.no_sync(self.objective) if i < parts - 1 else nullcontext():
                with stopwatch("forward"):
                    loss, costs = self.objective(x[part], mine, step / config.steps, rows_of(condition, part))
                with stopwatch("backward"):
                    accelerator.backward(loss / (scale * parts))  # bits/dim: gradients of order one, whatever D
            total += float(loss.detach()) / (scale * parts)
            seen.append(costs)
        with stopwatch("clip"):
            norm = accelerator.clip_grad_norm_(state.model.parameters(), config.optimizer.clip)
            norm = float(checkpoint.whole(torch.as_tensor(norm)))
        costs = _joined(seen)
        with stopwatch("processes"):
            loss_of_all, asked = self.others.loss(total, stopping.asked)
        if not (math.isfinite(loss_of_all) and math.isfinite(norm)):
            self._skip_or_stop(loss_of_all, norm, costs, draws, rows)
            return None, norm, asked
        with stopwatch("optimiser"):
            state.optimizer.step()
        with stopwatch("average"):
            state.average.update()
        with stopwatch("level sampler"):
            if isinstance(state.sampler, LEARNING):
                state.sampler.update(*self.others.visits(costs))
        if self.visits is not None:
            self.visits.record(rows, draws, costs)
        return loss_of_all, norm, asked

    def _dropped(self, condition: Any, step: int) -> Any:
        """Return the condition of a batch, which is missing in a random part of its rows with a probability of `condition_dropout`."""
        share = self.config.condition_dropout
        if not share or condition is None:
            return condition
        # Drawn for the whole batch, as the other random numbers of a step.
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, "condition", step))
        rows = torch.rand(self.config.batch, generator=generator)[self.share] < share
        # The variable of the stage before is not dropped: a later stage of a system always has it.
        return dropped(condition, rows.to(self.accelerator.device), FIRST)

    def _draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        model, n = self.state.model, self.config.batch
        assert isinstance(model, LatentVariableModel)
        return model.objective_draw(self.config.objective, x, self.state.sampler, generator, n)

    def _skip_or_stop(self, loss: float, norm: float, costs: Costs, draws: dict[str, Tensor], rows: Tensor) -> None:
        """Skip the step if `skip_nonfinite` allows it. Otherwise raise DiffusionalError with the values that are not finite."""
        progress, allowed = self.progress, self.config.skip_nonfinite
        if progress.skipped < allowed:
            progress.skipped += 1
            return
        found = [line for lines in self.others.objects(diagnose(costs, draws, rows)) for line in lines]
        found = diagnose_weights(self.state.model) + found or diagnose_gradient(self.state.model, costs, rows)
        enough = f" ({allowed} such steps were skipped before it)" if allowed else ""
        raise DiffusionalError(
            f"step {progress.step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}{enough}: {'; '.join(found)}. The "
            f"last good checkpoint in {self.run / CHECKPOINTS} is intact. Try a lower optimizer.lr or optimizer.clip, or skip "
            "such steps with skip_nonfinite"
        )

    # Between steps.

    def _due(self) -> bool:
        """Return whether a validation is due after the last step."""
        return self.progress.step % self.config.validate_every == 0 or self._finished()

    def _owed(self) -> bool:
        """Return whether the last step should have been validated, but was not."""
        return 0 < self.progress.step != self.progress.validated and self._due()

    def _count_time(self, clock: "_Clock") -> None:
        self.progress.seconds = clock.seconds()
        if self.config.max_seconds is not None:
            self.progress.seconds = self.others.seconds(self.progress.seconds)

    def _validate(
        self,
        unit: float,
        metrics_logger: MetricsLogger,
        clock: "_Clock",
        stopping: Stopping,
        watch: Watch | None,
        stopwatch: Stopwatch,
    ) -> int:
        """Validate the averaged weights, and keep them if they are the best so far.

        Returns the number of a signal that any process received, 0 if there was none. A signal ends the validation before the next
        batch, as does the time limit except in the first validation; a resumed run then repeats it.
        """
        config, progress, main = self.config, self.progress, self.accelerator.is_main_process
        agreed, before = 0, progress.seconds

        def stop(done: int, total: int) -> bool:
            nonlocal agreed
            _, agreed = self.others.loss(0.0, stopping.asked)
            self._count_time(clock)
            metrics_logger.validating(done, total)
            late = config.max_seconds is not None and progress.seconds >= config.max_seconds
            return agreed > 0 or (late and progress.validated > 0)

        with stopwatch("validation"):
            with self.state.average.in_place():
                bound = validate(self.state.model, self.dataset, config.seed, self.objective, stop)
            self._count_time(clock)
            if bound is None:
                return agreed
            progress.validation_seconds = progress.seconds - before
            progress.record(bound)
            if progress.stale == 0:
                best = self.state.averaged(keep=main)
                if main:
                    save_tensors(self.run / WEIGHTS, best)
                    progress.best_sha256 = sha256(self.run / WEIGHTS)
            metrics_logger.validation(bound / unit, progress.best / unit)
        if watch is not None:
            with clock.paused():
                self._watched(watch)
        return self.others.loss(0.0, stopping.asked)[1]

    def _watched(self, watch: Watch) -> None:
        model = self.state.model
        assert isinstance(model, LatentVariableModel)
        with self.state.average.in_place(), evaluation_mode(model):
            watch(self.progress.step, model)

    def _save(self) -> None:
        main, fault = self.accelerator.is_main_process, None
        tensors = self.state.tensors(keep=main)
        if main:
            try:
                if self.visits is not None:
                    self.visits.save(self.run, self.progress.step)
                checkpoint.save(
                    self.run / CHECKPOINTS, tensors, self.progress, self.config, self.accelerator.num_processes
                )
            except (DiffusionalError, OSError) as error:
                fault = error
        self.others.raise_together(fault)

    def _finished(self) -> bool:
        """Return whether all steps are taken, or the run has ended early; resuming a run that has ended changes nothing."""
        return self.progress.step >= self.config.steps or ended_early(self.config, self.progress) is not None


def ended_early(config: Config, progress: checkpoint.Progress) -> Literal["max_seconds", "patience"] | None:
    """Return the limit of `config` that has ended a run before its last step, None if no limit has.

    `max_seconds` includes the time that another validation would take. The first step is always taken.

    >>> ended_early(Config(steps=100, max_seconds=60.0), checkpoint.Progress(step=40, seconds=55.0, validation_seconds=6.0))
    'max_seconds'
    """
    if progress.step >= config.steps:
        return None
    needed = progress.seconds + progress.validation_seconds
    if config.max_seconds is not None and progress.step > 0 and needed >= config.max_seconds:
        return "max_seconds"
    return "patience" if 0 < config.patience <= progress.stale else None


def _optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW without weight decay for biases, norms and other vectors."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step: a warm-up from 0, a plateau until `flat` of the run, and a cosine decay to 0 at its end.

    >>> [round(learning_rate(OptimizerConfig(lr=1.0, warmup=10, flat=0.5), s, 100), 3) for s in (0, 9, 50, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.001]
    """
    plateau = config.flat * steps
    decay = 1.0 if step < plateau else 0.5 * (1 + math.cos(math.pi * (step - plateau) / (steps - plateau)))
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup)) * decay


def same_so_far(then: Config, now: Config, step: int) -> bool:
    """Return whether two configs that differ in `steps` take the same first `step` steps: whether the learning rate, and the weight of a
    VAE's KL, have been the same in both.

    >>> long, short = (Config(steps=n, optimizer=OptimizerConfig(flat=0.5)) for n in (4000, 2000))
    >>> same_so_far(short, long, 1000), same_so_far(short, long, 2000)
    (True, False)
    """
    if then.steps == now.steps or step == 0:
        return True
    rates = [learning_rate(config.optimizer, step - 1, config.steps) for config in (then, now)]
    # The rate is constant until it falls, so that only the last step needs to be compared.
    constant = rates[0] == rates[1] and all(step - 1 < config.optimizer.flat * config.steps for config in (then, now))
    return constant and then.latent.warmup == 0


def _check_length(then: Config, now: Config, step: int, run: Path, main: bool) -> None:
    """Check the number of steps of a run that is continued, and warn if its learning rate changes.

    Raises DiffusionalError for fewer steps than were taken.
    """
    if now.steps < step:
        raise DiffusionalError(
            f"expected steps of at least {step}, the number of steps that {run} has taken, got {now.steps}. Give more steps to continue the "
            "run, or train another one in a new folder"
        )
    if main and not same_so_far(then, now, step):
        rate = learning_rate(now.optimizer, min(step, now.steps - 1), now.steps)
        before = learning_rate(then.optimizer, min(step, then.steps) - 1, then.steps)
        what = (
            "the learning rate depends"
            if then.latent.warmup == 0
            else "the learning rate and the weight of the KL depend"
        )
        warnings.warn(
            f"{what} on the part of the run that is done: at step {step} of {now.steps} the rate is {rate:.3g}, after {before:.3g} in the run "
            f"of {then.steps} steps. The result differs from that of an uninterrupted run of {now.steps} steps; with optimizer.flat=1 and "
            "without KL warm-up, runs can be extended without a difference",
            stacklevel=3,
        )


class _Clock:
    """Measures the seconds of a run, including those of earlier sessions."""

    def __init__(self, before: float, now: Callable[[], float]) -> None:
        self._now, self._started = now, now() - before

    def seconds(self) -> float:
        return self._now() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent within the block."""
        since = self._now()
        yield
        self._started += self._now() - since


def _share(config: Config, accelerator: Accelerator) -> slice:
    """Return the part of every batch that belongs to this process."""
    n, parts = accelerator.num_processes, config.system.accumulate
    if n * parts > 1 and config.latent.free_bits:
        raise DiffusionalError(
            f"latent.free_bits needs one process and system.accumulate=1, since it depends on the mean over a whole batch, got "
            f"latent.free_bits={config.latent.free_bits}, {n} processes and system.accumulate={parts}: use KL warm-up instead"
        )
    if config.batch % (n * parts):
        raise DiffusionalError(
            f"expected batch to be a multiple of {n * parts}, for equal parts with {n} processes and system.accumulate={parts}, got "
            f"{config.batch}"
        )
    size = config.batch // n
    return slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generator of one device; torch.manual_seed would store every call until a GPU is first used."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _joined(parts: list[Costs]) -> Costs:
    """Join the costs of the parts of a batch, without their graph."""
    if len(parts) == 1:
        (only,) = parts
        terms = {name: term.detach() for name, term in only.terms.items()}
        return Costs(terms, only.position.detach(), only.density.detach())
    names = dict.fromkeys(name for part in parts for name in part.terms)
    zero = [torch.zeros_like(part.total()) for part in parts]
    terms = {
        name: torch.cat([p.terms.get(name, z).detach() for p, z in zip(parts, zero, strict=True)]) for name in names
    }
    return Costs(terms, torch.cat([p.position for p in parts]).detach(), torch.cat([p.density for p in parts]).detach())
