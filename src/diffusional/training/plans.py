"""The plans in a run folder: they are fitted once to the run's training data, and checked whenever they are used.

    plan.json             for the run's own T
    plan-500.json         for T = 500; plan-continuous.json for continuous time
    plan-guided.json      for the model with guidance, of the last weight and options
    plan-paired.json      for a comparison, with the visits of the other run's plan (`Plan.fit(…, like=…)`)

Each of them has a .safetensors file with its exact numbers.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusional.conditions import Condition
from diffusional.errors import DiffusionalError
from diffusional.evaluation import ranks
from diffusional.evaluation.plan import Plan, about, same_pilot
from diffusional.evaluation.provenance import tensor_hash
from diffusional.evaluation.recorded import FEWEST, plan_from_visits
from diffusional.files import load_json
from diffusional.models.chain import Chain
from diffusional.models.guidance import Guided
from diffusional.training.own import reference_items
from diffusional.training.run import RunRecord
from diffusional.training.visit_log import VISITS, kept_visits

# Called with the path of a plan that is about to be learned; entered while it is.
Learning = Callable[[Path], AbstractContextManager[None]]

# Entries of a plan's provenance that the cache adds: the training split it was learned from and its condition, what the costs depend on
# besides tensors, and the plan whose visits it shares.
_TRAIN, _LABELS, _IDENTITY, _PARTNER = "train_sha256", "train_condition_sha256", "identity_sha256", "paired_with"


@dataclass(eq=False)
class KeptPlan:
    """The plan of a run for one model: the run's own, or the run's at another T.

    Args:
        record: the run in whose folder the plan is kept.
        model: the run's model.
        dataset: the run's data, for runs whose data were made in Python.
        like: the plan of another run's model, in a comparison: this plan then shares its visits.
        source: the run whose training data the plan is learned from; by default `record`.
        learning: shows progress while the plan is learned.
    """

    record: RunRecord
    model: Chain
    dataset: Any = None
    like: Plan | None = None
    source: RunRecord | None = None
    learning: Learning | None = None

    def __post_init__(self) -> None:
        name = "plan" if self.like is None else "plan-paired"
        if self.model.steps != self.record.config.schedule.steps:
            name += f"-{'continuous' if self.model.steps is None else self.model.steps}"
        denoiser = getattr(self.model, "denoiser", None)
        if isinstance(denoiser, Guided) and denoiser.to_identity():
            name += "-guided"
        self.path = self.record.path / f"{name}.json"
        self._replaceable = True

    def load(self, visits: bool = False) -> Plan | None:
        """Return the plan in the folder if it is for this model; None if there is none.

        A plan for other weights, another variance or other settings of the model is outdated: None is returned, and `learn` replaces
        it. A damaged plan is treated alike, with a warning. A plan of another run (another space, decoder, T or other training data) is
        ignored with a warning, and `learn` does not replace it.

        Args:
            visits: whether the plan must have a record of its pilot's visits, which plans of early versions and plans of training visits do
                not have.
        """
        self._replaceable = True
        if not self.path.exists():
            return None
        try:
            provenance = load_json(self.path).get("provenance")
            if not isinstance(provenance, dict):
                raise DiffusionalError(f"{self.path} has no provenance")
            if foreign := self._foreign(provenance):
                self._replaceable = False
                _warn(
                    f"{self.path} is the plan of another run ({foreign}). It is ignored and not replaced; remove it to keep this run's plan"
                )
                return None
            if self._outdated(provenance):
                return None
            plan = Plan.load(self.path, self.model)
        except DiffusionalError as error:
            _warn(f"{error}. The plan is learned again")
            return None
        repeatable = len(plan.met.left) > 0 and plan.provenance.get("method") == "pilot"
        return plan if repeatable or not visits else None

    def learn(self, seed: int = 0, pilot: bool = False) -> Plan | None:
        """Learn the plan from the training data, and keep it in the folder unless another run's plan or a read-only folder prevents it. A run
        of masked sequences has kept visits of its training: its plan is learned from them, without network evaluations.

        Args:
            seed: of a pilot.
            pilot: whether a pilot is made in any case.

        Returns None, with a warning, if the training data are not available. Where several processes evaluate together, all learn the
        same plan, and one of them writes it.
        """
        source = self.source or self.record
        try:
            reference, condition = reference_items(source, self.dataset)
        except (DiffusionalError, OSError) as error:
            _warn(
                f"no plan can be learned from the training data of {source.path}, which are not available ({error}). The pilot uses the "
                "evaluated items instead, at each evaluation"
            )
            return None
        with nullcontext() if self.learning is None else self.learning(self.path):
            plan = None if pilot or condition is not None else self._of_training(reference)
            if plan is None:
                plan = self._learned(reference, condition, seed)
        if self._replaceable and ranks.is_main():
            try:
                plan.save(self.path)
            except DiffusionalError as error:
                _warn(f"{error}. The plan is used, but not kept")
        return plan

    def _of_training(self, reference: Tensor) -> Plan | None:
        """Return the plan from the visits that the run has kept of its training; None if it has none for this model."""
        own = self.record if self.source is None else self.source
        if self.like is not None or own is not self.record or self.model.masks is None:
            return None
        visits = kept_visits(self.record.path, self.model)
        if visits is None or len(visits.row) < FEWEST or self.record.items.get("train") != len(reference):
            return None
        try:
            plan = plan_from_visits(self.model, reference, visits)
        except DiffusionalError as error:
            _warn(f"{self.record.path / VISITS}: {error}. A pilot is made")
            return None
        return replace(plan, provenance=plan.provenance | self._own())

    def _learned(self, reference: Tensor, condition: Condition | None, seed: int) -> Plan:
        if self.like is None:
            plan = Plan.fit(self.model, reference, seed=seed, condition=condition)
            return replace(plan, provenance=plan.provenance | self._own())
        # The same items, seed and number of evaluations as those of the other plan, so that the pilots' costs are paired.
        theirs = self.like.provenance
        plan = Plan.fit(
            self.model, reference, theirs["evaluations"], theirs["seed"], condition=condition, like=self.like
        )
        return replace(plan, provenance=plan.provenance | self._own())

    def _own(self) -> dict[str, Any]:
        """Return the entries for this model that the cache adds to the provenance."""
        identity = hashlib.sha256(json.dumps(self.model.identity(), sort_keys=True).encode()).hexdigest()
        source = self.source or self.record
        own = {_TRAIN: source.fingerprints.get("train"), _IDENTITY: identity}
        if source.conditions.get("train"):
            own[_LABELS] = source.conditions["train"]
        return own | ({} if self.like is None else {_PARTNER: self.like.sha256()})

    def _foreign(self, provenance: dict[str, Any]) -> str | None:
        """Return why a plan cannot have been learned for this run, whatever its weights; None if it can."""
        mine = about(self.model) | self._own()
        named = {"space": "another space", "decoder": "another decoder", "latents": "another T"}
        if self.like is None:  # a paired plan was learned from the data of the run that it was last compared with
            named[_TRAIN] = "other training data"
        found = [what for key, what in named.items() if key in provenance and provenance[key] != mine[key]]
        return ", ".join(found) or None

    def _outdated(self, provenance: dict[str, Any]) -> bool:
        """Return whether a plan was learned for other weights, or for the same weights in another model."""
        own = self._own()
        if provenance.get("weights_sha256") != tensor_hash(self.model.whole().state_dict()):
            return True
        # Plans of early versions have none of these entries.
        if any(key in provenance and provenance[key] != own[key] for key in (_TRAIN, _IDENTITY)):
            return True
        if provenance.get(_LABELS) != own.get(_LABELS):
            return True
        if self.like is None:
            return False
        return provenance.get(_PARTNER) != own[_PARTNER] or not same_pilot(provenance, self.like.provenance)


def _warn(text: str) -> None:
    if ranks.is_main():
        warnings.warn(text, stacklevel=4)
