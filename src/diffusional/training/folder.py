"""Access to a run folder: its model, data and plan, and evaluations that use them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffusional.conditions import Condition, concatenated, ignoring_condition
from diffusional.data.dataset import SPLITS, Dataset
from diffusional.errors import DiffusionalError
from diffusional.evaluation.comparison import Comparison, compare
from diffusional.evaluation.evaluation import evaluate, regridded
from diffusional.evaluation.plan import Plan
from diffusional.evaluation.result import Evaluation
from diffusional.evaluation.target import Target
from diffusional.models.base import LatentVariableModel
from diffusional.space import Space
from diffusional.training import metrics_logger
from diffusional.training.config import Config
from diffusional.training.own import own_data, reference_items
from diffusional.training.plans import KeptPlan, Learning
from diffusional.training.run import RunRecord, load, read_run

# The default target for the error of a mean, bits/dim.
ERROR = 0.01


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run folder: the trained model, its data, and the plan for its evaluation. `load_run` opens one.

    Attributes:
        record: config, space and fingerprints of the data, as they are in the folder.
        dataset: the data as they were given to `load_run`, for runs whose data cannot be loaded by name.
        loaded: the model, if it is not to be loaded from the folder.
    """

    record: RunRecord
    dataset: Dataset | None = None
    loaded: LatentVariableModel | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The folder."""
        return self.record.path

    @property
    def config(self) -> Config:
        """Everything that determined the training."""
        return self.record.config

    @property
    def space(self) -> Space:
        """The space of the items: shape, and levels or standardisation."""
        return self.record.space

    @cached_property
    def model(self) -> LatentVariableModel:
        """The trained model, loaded on first use: the averaged weights of the best validation, in evaluation mode."""
        return load(self.path) if self.loaded is None else self.loaded

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl as dicts. Warns of damaged lines, which are left out."""
        return metrics_logger.read(self.path)

    def data(self, splits: tuple[str, ...] = SPLITS) -> Dataset:
        """Return the data set that the run was trained on: the one given to `load_run`, or loaded from its recorded path.

        Raises DiffusionalError if it cannot be loaded, or if one of `splits` has changed since the run was trained.
        """
        return own_data(self.record, splits, dataset=self.dataset)

    def encode(self, split: str = "test") -> Tensor:
        """Return a split of the run's data, encoded for the model, (N, *space.shape); "all" for all splits. Raises as `data` does."""
        parts = SPLITS if split == "all" else (split,)
        dataset = self.data(parts)
        return self.space.encode(torch.cat([dataset.tensor(part) for part in parts]))

    def condition(self, split: str = "test") -> Condition | None:
        """Return the condition of each item of a split, such as its class label; None if the model has none. Raises as `data` does."""
        if not self.record.conditional:
            return None
        parts = SPLITS if split == "all" else (split,)
        dataset = self.data(parts)
        return concatenated([dataset.condition_of(part) for part in parts])

    def embed(self, texts: Sequence[str]) -> Condition:
        """Return texts as a condition, by the text encoder that the run was trained with; one row for each.

        Raises DiffusionalError for a run that was not trained with texts, and for an encoder that has changed or cannot be loaded.
        """
        if self.record.text is None:
            raise DiffusionalError(f"{self.path} was not trained with texts; train a run with condition='caption'")
        return self.record.text.condition(texts)

    def plan(
        self, model: LatentVariableModel | None = None, *, seed: int = 0, learning: Learning | None = None
    ) -> Plan | None:
        """Return the plan by which the model is evaluated, learned once from the training data and kept in the folder.

        The plan in the folder is used if it was learned for these weights, T and variance; otherwise it is learned again, at 3,000
        network evaluations, and replaced. A damaged plan or a folder that cannot be written is a warning, and so is a plan of another
        run, which is not changed. `diffusional evaluate` uses the same plan.

        Args:
            model: the run's model at another T (such as `df.load(run).regrid(500)`); by default `self.model`.
            seed: of the pilot, if a plan has to be learned.
            learning: called with the path of a plan that has to be learned; returns a context manager that is entered meanwhile, to
                show progress.

        Returns None for a model without levels to visit, such as a VAE, and, with a warning, if the training data are not available.

        >>> import tempfile, warnings
        >>> from diffusional.training.config import ModelConfig, ScheduleConfig
        >>> from diffusional.training.loop import train
        >>> from rich.console import Console
        >>> config = Config(steps=2, model=ModelConfig(widths=(8, 8), blocks=1), schedule=ScheduleConfig(steps=20))
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> _ = train(config, folder, console=Console(quiet=True))
        >>> run = load_run(folder)
        >>> plan = run.plan()                                                # learned, and kept
        >>> run.plan().sha256() == plan.sha256()                             # read
        True
        """
        kept = self._kept(model, learning)
        if kept is None:
            return None
        return kept.load() or kept.learn(seed)

    def paired_plans(
        self,
        other: "Run",
        model: LatentVariableModel | None = None,
        other_model: LatentVariableModel | None = None,
        *,
        seed: int = 0,
        learning: Learning | None = None,
        other_condition: Callable[[Condition, int], Condition | None] | None = None,
    ) -> tuple[Plan | None, Plan | None] | None:
        """Return plans for `df.compare` of this run's model with another run's: their pilots made the same visits.

        The first is `plan()`. The second is learned from the same data and kept in the folder of `other`, until `other` is compared with
        another model. Models without levels have no plan: if one of the two has none, the other's is its own. The result is None if both
        have none, if the training data are not available, and if only one of the two was trained with labels. Args as for `plan`.

        With `other_condition`, the plans are for a comparison with another condition of the second model (`compare(…, other_condition=…)`),
        and the second is not kept. It returns the second model's condition of training items, given the first model's and their number,
        or None if it cannot: the result is then None.
        """
        if self.record.conditional != other.record.conditional:
            return None
        mine, theirs = self._kept(model, learning), other._kept(other_model, learning)
        if mine is None or theirs is None:
            own = (
                self.plan(model, seed=seed, learning=learning),
                other.plan(other_model, seed=seed, learning=learning),
            )
            return None if own == (None, None) else own
        first = mine.load(visits=True) or mine.learn(seed, pilot=True)
        if first is None:
            return None
        if other_condition is not None:
            data, condition = reference_items(self.record, self.dataset)
            given = None if condition is None else other_condition(condition, len(data))
            if given is None:
                return None
            second = Plan.fit(
                theirs.model, data, seed=first.provenance["seed"], condition=given, like=first, across=True
            )
            return first.contrasted(second)
        paired = replace(theirs, like=first, dataset=self.dataset, source=self.record)
        second = paired.load() or paired.learn(seed)
        return None if second is None else (first, second)

    def evaluate(
        self,
        data: Tensor | None = None,
        target_error: float | Target | None = None,
        unit: Literal["bits/dim", "nats"] = "bits/dim",
        *,
        split: str = "test",
        steps: int | Literal["continuous"] | None = None,
        **options: Any,
    ) -> Evaluation:
        """Return the NELBO of items under the run's model, by the run's plan: `diffusional evaluate` from Python.

        Args:
            data: encoded items (N, *space.shape); by default a split of the run's own data, with its condition if there is one.
            target_error: the Monte Carlo error to reach, in `unit`, or a `Target`; 0.01 bits/dim unless another target is among the options.
            unit: "bits/dim" or "nats".
            split: the split that is evaluated without `data`: "train", "validation", "test" or "all".
            steps: evaluate at another T, or in "continuous" time.
            options: as for `df.evaluate`: seed, visits, item_error, max_evaluations, …; an `estimator` determines its own plan.

        Raises DiffusionalError as `df.evaluate` does, and if the run's own data cannot be loaded. The full sweep, which needs no plan, is
        `df.evaluate(run.model, run.encode("test"))`.
        """
        model = self.model if steps is None else regridded(self.model, steps)
        x = self.encode(split) if data is None else data
        if data is None and "condition" not in options:
            options["condition"] = self.condition(split)
        if target_error is None and options.get("visits") is None and options.get("item_error") is None:
            target_error, unit = ERROR, "bits/dim"
        if not {"plan", "reference", "estimator"} & {name for name, value in options.items() if value is not None}:
            options["plan"] = self.plan(model)
        return evaluate(model, x, target_error, unit, **options)

    def compare(
        self,
        other: "Run",
        data: Tensor | None = None,
        target_error: float = ERROR,
        unit: Literal["bits/dim", "nats"] = "bits/dim",
        *,
        split: str = "test",
        **options: Any,
    ) -> Comparison:
        """Return NELBO(this run) − NELBO(other) with a paired error, by the plans of both runs: `diffusional evaluate RUN RUN`.

        Args as for `evaluate`, with the options of `df.compare`. Of a run with labels and one without, the latter is compared as a model
        that ignores the condition, and the difference measures the information in the labels. Without `data`, raises DiffusionalError
        if the split of the other run is not the same.
        """
        if data is None and other.record.fingerprints.get(split) != self.record.fingerprints.get(split):
            raise DiffusionalError(
                f"expected the same {split} split in both runs, but {self.path} and {other.path} have different items there; pass the data "
                "to compare on"
            )
        x = self.encode(split) if data is None else data
        a, b = self.model, other.model
        if data is None and "condition" not in options:
            options["condition"] = (self if self.record.conditional else other).condition(split)
        if self.record.conditional != other.record.conditional:
            a, b = (one.model if one.record.conditional else ignoring_condition(one.model) for one in (self, other))
        if "plans" not in options and "reference" not in options:
            options["plans"] = self.paired_plans(other)
        return compare(a, b, x, target_error, unit, **options)

    def _kept(self, model: LatentVariableModel | None, learning: Learning | None) -> KeptPlan | None:
        chain = (self.model if model is None else model).visited()
        return None if chain is None else KeptPlan(self.record, chain, self.dataset, learning=learning)


def load_run(path: str | Path, data: Dataset | None = None) -> Run:
    """Open a run folder: its model, data, plan and evaluations.

    Args:
        path: the folder that `train` wrote.
        data: the data set it was trained on, if that was made in Python and cannot be loaded by name.

    Raises DiffusionalError for a folder without a run, or with a damaged one.

    >>> load_run("runs/nothing")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: runs/nothing is not a folder; give the run folder that `diffusional train` wrote
    """
    return Run(read_run(path), data)
