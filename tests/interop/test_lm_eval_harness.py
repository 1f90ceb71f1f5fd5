"""The adapter in lm-evaluation-harness itself, if it is installed: its registry, its tasks and `simple_evaluate`. Tried with 0.4.13.

test_lm_eval.py has the same methods in a stand-in.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from language import bert, word_piece

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
datasets = pytest.importorskip("datasets")

CHOICES = [
    {"q": "the model", "choices": ["is masked", "is a mask", "masks"], "gold": 0},
    {"q": "the mask", "choices": ["is", "a model"], "gold": 1},
]
TEXTS = [{"text": "the model is masked, and a mask is"}, {"text": "a mask"}]


def _split(rows: list[dict[str, Any]]) -> Any:
    return lambda **_: datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


TASKS: list[dict[str, Any]] = [
    {
        "task": "toy_choice",
        "custom_dataset": _split(CHOICES),
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    },
    {
        "task": "toy_rolling",
        "custom_dataset": _split(TEXTS),
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    {
        "task": "toy_generation",
        "custom_dataset": _split(TEXTS),
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "a",
        "generation_kwargs": {"until": ["zzz"], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
    },
]


def test_tasks_of_the_harness_have_the_numbers_of_the_adapter(tmp_path: Path) -> None:
    from lm_eval.api.registry import get_model

    from diffusional.interop.lm_eval import Harness

    bert(tmp_path / "model", len(word_piece(tmp_path / "model")))
    given: dict[str, Any] = {"pretrained": str(tmp_path / "model"), "visits": 16, "max_length": 12}
    given["errors"] = str(tmp_path / "errors.json")
    assert issubclass(get_model("diffusional"), Harness)
    found = lm_eval.simple_evaluate(model="diffusional", model_args=given, tasks=TASKS, bootstrap_iters=0, device="cpu")
    numbers = json.loads((tmp_path / "errors.json").read_text())["numbers"]
    own = {
        kind: [one for one in numbers if one["request"] == kind] for kind in ("loglikelihood", "loglikelihood_rolling")
    }
    # Five continuations and two documents, each with its number and its error.
    responses = {
        task: [float(response[0][0]) for one in found["samples"][task] for response in one["resps"]]
        for task in ("toy_choice",)
    }
    assert sorted(responses["toy_choice"]) == pytest.approx(
        sorted(one["log_likelihood"] for one in own["loglikelihood"])
    )
    assert len(own["loglikelihood"]) == 5
    # Every error has the place of its number: 3 choices of the first question, 2 of the second.
    for one in own["loglikelihood"]:
        sample = next(each for each in found["samples"]["toy_choice"] if each["doc_id"] == one["document"])
        assert one["task"] == "toy_choice"
        assert float(sample["resps"][one["choice"]][0][0]) == pytest.approx(one["log_likelihood"])
    assert all((one["error"] > 0) == (one["tokens"] > 1) for one in own["loglikelihood"])
    total = -sum(one["log_likelihood"] for one in own["loglikelihood_rolling"])
    size = sum(len(one["text"].encode()) for one in TEXTS)
    assert found["results"]["toy_rolling"]["bits_per_byte,none"] == pytest.approx(total / math.log(2) / size)
    correct = []
    for one in found["samples"]["toy_choice"]:
        best = max(range(len(one["resps"])), key=lambda i, one=one: float(one["resps"][i][0][0]))
        correct.append(best == one["doc"]["gold"])
    assert found["results"]["toy_choice"]["acc,none"] == pytest.approx(sum(correct) / len(correct))
    assert len(found["samples"]["toy_generation"]) == 2
