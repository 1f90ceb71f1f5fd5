"""What an HTML report shows of a run: saved results and, if a command computed them, samples and the scores of items, as arrays and texts.

Nothing here needs a model: `diffusional.cli.report` fills these records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from diffusional.evaluation.difference import Comparison
from diffusional.evaluation.result import Evaluation


@dataclass(frozen=True, eq=False)
class ListedItem:
    """An item at an end of the scores.

    Attributes:
        name: of its file, with its row.
        nelbo, error: nats, of draws that did not choose it.
        percentile: the percentage of reference items that cost less; None without a reference.
        image: (C, H, W) in [0, 1]; None for items that are not images.
        cost_map: (H, W) nats; None if it was not computed.
        values: the named values of a row of a table; empty for other items.
        text: of a block of tokens; None for other items.
        prompt: the text that is given before `text`; None for items without one.
    """

    name: str
    nelbo: float
    error: float
    percentile: float | None = None
    image: np.ndarray | None = None
    cost_map: np.ndarray | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    text: str | None = None
    prompt: str | None = None


@dataclass(frozen=True, eq=False)
class ItemScores:
    """The scores of the items of an evaluation.

    Attributes:
        nelbo: (n,) nats, one for each of n items; of continuations given prompts, nats per scored token.
        error: (n,) their Monte Carlo errors.
        of: the number of items of the split, of which the first n are scored.
        easiest, hardest: the most and the least likely items, the most extreme first.
        how: how the scores were drawn, one sentence.
        reference: the items that percentiles refer to, in words; "" without percentiles.
        maps: a remark on the cost maps, such as which stages they belong to, or why there are none; sentences, or "".
        tokens: (n,) the scored tokens of every row of continuations; None for other items.
    """

    nelbo: np.ndarray
    error: np.ndarray
    of: int
    easiest: Sequence[ListedItem] = ()
    hardest: Sequence[ListedItem] = ()
    how: str = ""
    reference: str = ""
    maps: str = ""
    tokens: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a model.

    Attributes:
        how: how they were drawn: method, T and seed, one sentence.
        images: (n, C, H, W) in [0, 1]; None for other items.
        paths: (k, m, C, H, W) in [0, 1], k paths from noise to a sample at m latents, or None.
        path_labels: m labels of the latents.
        columns: names of the columns of a table, D of them.
        drawn: (n, D) samples of a table, in its units.
        data: (N, D) items of the evaluated split, in the same units.
        texts: samples of a model of texts; empty for others.
        stages: (k, m, C, H, W) in [0, 1], the variables of k stages of a system for m samples, brought to the size of x; or None.
        stage_labels: k labels of these stages, such as "base, 7 × 7".
    """

    how: str
    images: np.ndarray | None = None
    paths: np.ndarray | None = None
    path_labels: Sequence[str] = ()
    columns: Sequence[str] = ()
    drawn: np.ndarray | None = None
    data: np.ndarray | None = None
    texts: Sequence[str] = ()
    stages: np.ndarray | None = None
    stage_labels: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Subject:
    """A run or a saved evaluation, as a report shows it.

    Attributes:
        name: what it is called on the page.
        evaluation: its bound; None if it was not evaluated.
        metrics: the lines of its metrics.jsonl.
        config: its config.json (composite.json for a system), and data: its data.json; None for a file.
        baselines: of the same data, by name.
        items, samples: what was drawn from the model; None if nothing was.
        budget: the record of `diffusional information RUN --reference RUN`, or of an exact world: costs, information and gaps.
        notes: further caveats, one sentence each.
        drawn, more: what was computed for the report, and the command that computes more; "" if nothing was.
        stages: the metrics of every stage of a system, by name; {} for a single model.
        weights: the number of weights of its model; None if it was not loaded.
    """

    name: str
    evaluation: Evaluation | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    config: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    baselines: Mapping[str, Evaluation] = field(default_factory=dict)
    items: ItemScores | None = None
    samples: Samples | None = None
    budget: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()
    drawn: str = ""
    more: str = ""
    stages: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    weights: int | None = None


# Entries of a comparison that are not about one of its models, and those with an entry for each.
_OF_BOTH, _OF_EACH = ("runs", "other_condition"), ("check", "trained_on", "condition")


def sides_of(one: Comparison) -> tuple[Evaluation, Evaluation]:
    """Return both evaluations of a comparison with what its record has about their data, such as warnings.

    >>> import math, torch
    >>> from diffusional.ledger import Estimate
    >>> a = Evaluation.from_scores(torch.tensor([3.0, 5.0]), dimensions=2)
    >>> about = {"runs": ["x", "y"], "data": "digits", "trained_on": [0, 7]}
    >>> both = Comparison(Estimate(0.0, 0.0, 0.0, n=2, network_evaluations=0), a, a, math.inf, True, (), about=about)
    >>> sides_of(both)[1].about
    {'data': 'digits', 'trained_on': 7}
    """
    found = []
    for i, (side, result) in enumerate((("a", one.a), ("b", one.b))):
        about = {key: value for key, value in one.about.items() if key not in _OF_BOTH}
        for key in _OF_EACH:
            if isinstance(about.get(key), list) and len(about[key]) == 2:
                about[key] = about[key][i]
        text, prompts = about.get("text"), about.get("prompts")
        if isinstance(text, Mapping) and side in text:
            about["text"] = text[side]
        if isinstance(prompts, Mapping) and isinstance(prompts.get("item_error"), Mapping):
            about["prompts"] = {**prompts, "item_error": prompts["item_error"].get(side)}
        found.append(replace(result, about={**about, **result.about}))
    return found[0], found[1]
