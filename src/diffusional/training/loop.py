"""The training loop, on Accelerate: sample levels, take a step, average the weights, validate now and then.

Everything random in a step is a function of (seed, step) and of an item's place in the batch: a run of several processes, or of
batches in parts, takes the same steps as a run of one, its levels stratified over all of them.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor, nn

from diffusional.data.dataset import Dataset
from diffusional.errors import DiffusionalError, Interrupted
from diffusional.evaluation import processes
from diffusional.files import save_json, save_tensors
from diffusional.ledger import Costs, per_unit
from diffusional.models.base import LatentVariableModel
from diffusional.models.diffusion import DiffusionModel, batch_rows
from diffusional.models.vae import Autoencoder
from diffusional.training import checkpoint
from diffusional.training.average import WeightAverage
from diffusional.training.build import build_dataset, build_model, build_sampler, prepare_networks
from diffusional.training.config import Config, OptimizerConfig
from diffusional.training.diagnosis import diagnose
from diffusional.training.feed import Feed
from diffusional.training.journal import Journal
from diffusional.training.run import CHECKPOINTS, CONFIG, PROFILE, WEIGHTS, begin, load
from diffusional.training.seeds import seed_of
from diffusional.training.stopping import Stopping
from diffusional.training.stopwatch import Stopwatch

# Draws per validation item. They are the same at every validation, so that bounds compare with little noise.
_VALIDATION_DRAWS = 16
# Fewer where the validation split is large: its size does then what draws would.
_VALIDATION_ROWS = 8_192

Draws = dict[str, Tensor]


def train(
    config: Config,
    run: str | Path,
    data: Dataset | None = None,
    resume: bool = False,
    console: Console | None = None,
    watch: Callable[[int, LatentVariableModel], None] | None = None,
    profile: bool = False,
) -> LatentVariableModel:
    """Train a model by its ELBO and leave everything in the folder `run`; returns the best model, as `load(run)` does.

    The metrics go to metrics.jsonl, a line per 10 steps and per validation; the averaged weights with the best validation
    bound to model.safetensors. `resume` continues a run with the same config and data, to the same bits on the same machine.
    Under `accelerate launch` or torchrun every process calls this; `config.batch` is that of all of them together.

    Args:
        data: a Dataset in hand; `config.data` is loaded unless given.
        console: where the progress bar goes; standard error unless given.
        watch: called with (step, averaged model) before the first step and after each validation; its time doesn't count.
        profile: write profile.json, where a step's time goes (on a GPU this makes steps wait for one another).

    Raises DiffusionalError for a used folder without `resume`, another config or other data with it, another process that
    trains in the folder, a disk that takes no more, and a loss that is not finite (the last good checkpoint stays in every
    case); Interrupted, after a checkpoint, on SIGINT and SIGTERM.

    >>> import tempfile
    >>> from diffusional.training.config import ModelConfig
    >>> config = Config(steps=2, batch=8, model=ModelConfig(widths=(8, 8), blocks=1))
    >>> model = train(config, tempfile.mkdtemp() + "/run", console=Console(quiet=True))
    >>> model.space.levels
    17
    """
    run = Path(run)
    console = console or Console(stderr=True)
    # The network alone is cast: see _Objective. Without a GPU, Accelerate sees several processes only if told that it is so.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
    share = _share(config, accelerator)
    dataset = data or build_dataset(config.data)
    set_seed(config.seed)
    # Before the folder is claimed: a config that makes no model leaves none behind.
    model = build_model(config, dataset.space)
    optimizer = _optimizer(model, config.optimizer)
    with begin(run, config, dataset, resume, accelerator.is_main_process), _lost_process_named(run):
        accelerator.wait_for_everyone()
        prepare_networks(model, config.system, accelerator.device)
        objective, optimizer = accelerator.prepare(_Objective(model, config), optimizer)
        whole = accelerator.unwrap_model(objective).model
        state = checkpoint.State(whole, WeightAverage(whole, config.optimizer.ema), optimizer, build_sampler(config))
        progress = checkpoint.Progress()
        if (found := checkpoint.newest(run / CHECKPOINTS)) is not None:
            progress = checkpoint.restore(found, state, config, accelerator.num_processes)
            if accelerator.is_main_process:
                checkpoint.tidy(found, config.keep_checkpoints)
                checkpoint.put_back_best(found)
        if accelerator.is_main_process:
            # What may differ, does from now on.
            save_json(run / CONFIG, config.to_dict())
        feed = Feed(dataset, config.seed, config.batch, share, accelerator.device, config.steps)
        feed.seek(progress.step, (progress.epoch, progress.of_epoch))
        trainer = _Trainer(config, run, dataset, accelerator, objective, state, progress, feed, share)
        try:
            trainer.run_to_the_end(console, watch, Stopwatch(profile, accelerator.device))
        finally:
            feed.close()
        accelerator.wait_for_everyone()
    return load(run)


@dataclass
class _Trainer:
    """A run in motion."""

    config: Config
    run: Path
    dataset: Dataset
    accelerator: Accelerator
    objective: nn.Module
    state: checkpoint.State
    progress: checkpoint.Progress
    feed: Feed
    share: slice

    def run_to_the_end(
        self, console: Console, watch: Callable[[int, LatentVariableModel], None] | None, stopwatch: Stopwatch
    ) -> None:
        """Steps, validations and checkpoints until the run has ended or is asked to stop."""
        config, progress, main = self.config, self.progress, self.accelerator.is_main_process
        unit = per_unit("bits/dim", self.dataset.space.dimensions)
        # L_simple is already per dimension, and no bound: its number gets no unit.
        scale = 1.0 if config.objective == "simple" else unit
        clock = _Clock(progress.seconds)
        if watch is not None and progress.step == 0:
            with clock.paused():
                self._watched(watch)
        taken = agreed = 0
        with Stopping() as stopping, Journal(self.run, config, progress, console, main) as journal:
            while not self._finished() and not agreed:
                rate = learning_rate(config.optimizer, progress.step, config.steps)
                loss, norm, agreed = self._step(rate, scale, stopwatch, stopping)
                progress.step += 1
                progress.epoch, progress.of_epoch = self.feed.place(progress.step)
                progress.seconds = self._agreed(clock.seconds())
                taken += 1
                last = self._finished()
                journal.step(loss, rate, norm, last)
                if last or progress.step % config.validate_every == 0:
                    with stopwatch("validation"):
                        self._validate(unit, journal)
                    if watch is not None:
                        with clock.paused():
                            self._watched(watch)
                if self._finished() or agreed or progress.step % config.checkpoint_every == 0:
                    with stopwatch("checkpoint"):
                        journal.flush()
                        self._save()
        if stopwatch.on and main and taken:
            _write_profile(self.run, stopwatch, taken)
        if agreed and not self._finished():
            raise Interrupted(
                f"stopped after step {progress.step} of {config.steps}, with a checkpoint; go on with --resume",
                agreed,
            )

    def _step(
        self, rate: float, scale: float, stopwatch: Stopwatch, stopping: Stopping
    ) -> tuple[float | None, float, int]:
        """One optimiser step: its loss over all processes (None where it was skipped), its gradient's norm, and the number of a
        signal that any process was sent: all stop at the same step.
        """
        config, progress, state, accelerator = self.config, self.progress, self.state, self.accelerator
        step, parts = progress.step, config.system.accumulate
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        with stopwatch("data"):
            x, rows = self.feed(step)
        with stopwatch("draws"):
            # For the whole batch, on every process the same: a share of it is then a share of one stratified sample.
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
                    loss, costs = self.objective(x[part], mine, step / config.steps)
                with stopwatch("backward"):
                    accelerator.backward(loss / (scale * parts))  # bits/dim: gradients of order one, whatever D
            total += float(loss.detach()) / (scale * parts)
            seen.append(costs)
        with stopwatch("clip"):
            norm = accelerator.clip_grad_norm_(state.model.parameters(), config.optimizer.clip)
            norm = float(checkpoint.whole(torch.as_tensor(norm)))
        costs = _joined(seen)
        with stopwatch("processes"):
            loss_of_all, asked = self._together(total, stopping.asked)
        if not (math.isfinite(loss_of_all) and math.isfinite(norm)):
            self._skip_or_stop(loss_of_all, norm, costs, draws, rows)
            return None, norm, asked
        with stopwatch("optimiser"):
            state.optimizer.step()
        with stopwatch("average"):
            state.average.update()
        with stopwatch("level sampler"):
            state.sampler.update(*self._gathered(costs))
        return loss_of_all, norm, asked

    def _draw(self, x: Tensor, generator: torch.Generator) -> Draws:
        model, n = self.state.model, self.config.batch
        if self.config.objective == "simple":
            assert isinstance(model, DiffusionModel)
            return model.simple_draw(x, generator, n)
        assert isinstance(model, LatentVariableModel)
        return model.draw(x, self.state.sampler, generator, n)

    def _skip_or_stop(self, loss: float, norm: float, costs: Costs, draws: Draws, rows: Tensor) -> None:
        """Leave the step out while `skip_nonfinite` allows it; else say what was not finite, and where."""
        progress, allowed = self.progress, self.config.skip_nonfinite
        if progress.skipped < allowed:
            progress.skipped += 1
            return
        found = diagnose(costs, draws, rows, self.state.model)
        if self.accelerator.num_processes > 1:
            found = [line for lines in _gathered_objects(found) for line in lines]
        enough = f" ({allowed} such steps were skipped before it)" if allowed else ""
        raise DiffusionalError(
            f"step {progress.step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}{enough}: {'; '.join(found)}. The "
            f"last good checkpoint in {self.run / CHECKPOINTS} is intact. Try a lower optimizer.lr or optimizer.clip, or leave "
            "out such steps with skip_nonfinite"
        )

    # Between steps.

    def _validate(self, unit: float, journal: Journal) -> None:
        with self.state.average.in_place():
            bound = validate(self.state.model, self.dataset, self.config.seed, self.objective)
        self.progress.record(bound)
        if self.progress.stale == 0:
            best = self.state.averaged()
            if self.accelerator.is_main_process:
                save_tensors(self.run / WEIGHTS, best)
        journal.validation(bound / unit, self.progress.best / unit)

    def _watched(self, watch: Callable[[int, LatentVariableModel], None]) -> None:
        assert isinstance(self.state.model, LatentVariableModel)
        # The weights move on: what is watched has a copy of today's.
        with self.state.average.in_place():
            watch(self.progress.step, self.state.model)

    def _save(self) -> None:
        tensors = self.state.tensors()
        fault = None
        if self.accelerator.is_main_process:
            try:
                checkpoint.save(
                    self.run / CHECKPOINTS, tensors, self.progress, self.config, self.accelerator.num_processes
                )
            except DiffusionalError as error:
                fault = error
        if self.accelerator.num_processes > 1:
            # All end together where the one that writes could not.
            fault = next((f for f in _gathered_objects(fault) if f is not None), None)
        if fault is not None:
            raise fault

    def _finished(self) -> bool:
        """All steps taken, out of time, or out of patience; so that resuming a run that has ended changes nothing."""
        config, progress = self.config, self.progress
        out_of_time = config.max_seconds is not None and progress.step > 0 and progress.seconds >= config.max_seconds
        return progress.step >= config.steps or out_of_time or 0 < config.patience <= progress.stale

    # Between processes.

    def _together(self, loss: float, asked: int) -> tuple[float, int]:
        """The mean loss of all processes, and the largest number of a signal that one was sent."""
        n = self.accelerator.num_processes
        if n == 1:
            return loss, asked
        told = torch.tensor([[loss, float(asked)]], dtype=torch.float64, device=self.accelerator.device)
        everyone = self.accelerator.gather(told)
        assert isinstance(everyone, Tensor)
        return float(everyone[:, 0].mean()), int(everyone[:, 1].max())

    def _agreed(self, seconds: float) -> float:
        """The main process's clock where a time limit hangs on it: all must stop at the same step."""
        if self.accelerator.num_processes == 1 or self.config.max_seconds is None:
            return seconds
        told = torch.tensor([seconds], dtype=torch.float64, device=self.accelerator.device)
        dist.broadcast(told, 0)
        return float(told)

    def _gathered(self, costs: Costs) -> tuple[Tensor, Tensor]:
        """Positions and densities of all processes' visits, in the order of the batch: one proposal for all."""
        position, density = costs.position.detach().cpu(), costs.density.detach().cpu()
        if self.accelerator.num_processes == 1:
            return position, density
        parts = _gathered_objects((position, density))
        return torch.cat([p for p, _ in parts]), torch.cat([d for _, d in parts])


class _Objective(nn.Module):
    """The loss as a forward pass, which is what wrappers of modules hook into; and the costs that it is made of."""

    def __init__(self, model: LatentVariableModel, config: Config) -> None:
        super().__init__()
        self.model, self.latent = model, config.latent
        self.simple, self.bf16 = config.objective == "simple", config.precision == "bf16"

    def forward(self, x: Tensor, draws: Draws, part: float | None) -> tuple[Tensor, Costs]:
        """`part` of the run lies behind; None: the plain bound in full precision, for a validation."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16 and part is not None):
            if self.simple and part is not None:
                assert isinstance(self.model, DiffusionModel)
                costs = self.model.simple_costs(x, draws)
            else:
                costs = self.model.costs(x, draws)
            if isinstance(self.model, Autoencoder) and part is not None:
                weight = 1.0 if part >= self.latent.warmup else (part / self.latent.warmup) ** 2
                return self.model.objective(costs, weight, self.latent.free_bits), costs
            return costs.total().mean(), costs


def _optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms and other vectors are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Warm-up from 0, a plateau until `flat` of the run, a cosine to 0 at its end.

    >>> [round(learning_rate(OptimizerConfig(lr=1.0, warmup=10, flat=0.5), s, 100), 3) for s in (0, 9, 50, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.001]
    """
    plateau = config.flat * steps
    decay = 1.0 if step < plateau else 0.5 * (1 + math.cos(math.pi * (step - plateau) / (steps - plateau)))
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup)) * decay


def validate(
    model: nn.Module, dataset: Dataset, seed: int, objective: Callable[..., tuple[Tensor, Costs]] | None = None
) -> float:
    """The validation NELBO in nats: up to 16 draws of the noise (and of stratified t) per item, the same at every call.

    Several processes share the blocks of items, each counted once. `objective` is what sharded weights are called through.
    """
    assert isinstance(model, LatentVariableModel)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    n = len(dataset.validation)
    draws = max(1, min(_VALIDATION_DRAWS, _VALIDATION_ROWS // n))
    size = max(1, batch_rows(model.space) // draws)
    blocks = -(-n // size)
    totals = torch.zeros(blocks, dtype=torch.float64)
    mine = processes.share(blocks).tolist()
    # Sharded weights are gathered by all at once: a process that has no block left computes its last again.
    rounds = -(-blocks // dist.get_world_size()) if processes.several() else blocks
    with torch.inference_mode():
        for i in range(rounds):
            block = mine[i] if i < len(mine) else blocks - 1
            x = dataset.encode("validation", slice(block * size, (block + 1) * size)).to(device)
            repeated = x.repeat(draws, *(1,) * (x.ndim - 1))
            generator = torch.Generator(device).manual_seed(seed_of(seed, "validation", block))
            random = model.draw(repeated, None, generator)
            costs = model.costs(repeated, random) if objective is None else objective(repeated, random, None)[1]
            if i < len(mine):
                totals[block] = float(costs.total().mean()) * len(x)
    model.train(was_training)
    return float(processes.collect(totals).sum()) / n


class _Clock:
    """Seconds of training, those of earlier sessions included."""

    def __init__(self, before: float) -> None:
        self._started = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.monotonic()
        yield
        self._started += time.monotonic() - since


def _share(config: Config, accelerator: Accelerator) -> slice:
    """The part of every batch that is this process's."""
    n, parts = accelerator.num_processes, config.system.accumulate
    if config.batch % (n * parts):
        raise DiffusionalError(
            f"batch={config.batch} came with {n} processes and system.accumulate={parts}; it is cut into equal parts: give a "
            f"multiple of {n * parts}"
        )
    size = config.batch // n
    return slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)


def _seed_dropout(seed: int, device: torch.device) -> None:
    """torch.manual_seed for one device: that of all keeps a note of every call until a GPU is first used."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _joined(parts: list[Costs]) -> Costs:
    """The costs of a batch, from those of its parts, without their graph."""
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


def _gathered_objects(mine: Any) -> list[Any]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


@contextmanager
def _lost_process_named(run: Path) -> Iterator[None]:
    """A process that died takes the others' next exchange with it; say so, in place of a transport's error."""
    try:
        yield
    except RuntimeError as error:
        lost = ("Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe", "Socket Timeout")
        if processes.several() and any(word in str(error) for word in lost):
            raise DiffusionalError(
                f"another process of this run has ended ({str(error).splitlines()[0]}); the last good checkpoint in "
                f"{run / CHECKPOINTS} is intact: go on with --resume, on as many processes as there are"
            ) from error
        raise


def _write_profile(run: Path, stopwatch: Stopwatch, steps: int) -> None:
    save_json(run / PROFILE, {"steps": steps, "seconds": stopwatch.seconds})
