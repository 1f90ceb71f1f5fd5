"""The adapter for lm-evaluation-harness, with a stand-in for the harness: its base class, registry and requests have the same signatures."""

import abc
import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import diffusional as df
from diffusional.interop import lm_eval
from diffusional.interop.lm_eval import Harness, windows
from diffusional.interop.masked_lm import load_masked_lm
from diffusional.models.prompted import PromptedDiffusion, prompts
from diffusional.space import Categorical
from language import bert, byte_pairs, word_piece

pytest.importorskip("transformers")


@dataclass
class Instance:
    """lm_eval.api.instance.Instance, as far as models see it."""

    arguments: tuple[Any, ...]

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


class LM(abc.ABC):
    """lm_eval.api.model.LM: the methods that a model has to define, and what it finds there."""

    def __init__(self) -> None:
        self._rank, self._world_size, self._device = 0, 1, None

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...
    @abc.abstractmethod
    def loglikelihood_rolling(self, requests: Any) -> Any: ...
    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
        return cls(**arg_dict, **(additional_config or {}))

    @property
    def device(self) -> Any:
        return self._device


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """The stand-in, and the models that are registered there."""
    found: dict[str, type] = {}

    def register_model(*names: str) -> Any:
        def decorate(made: type) -> type:
            assert issubclass(made, LM)
            found.update(dict.fromkeys(names, made))
            return made

        return decorate

    modules = {
        name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry")
    }
    modules["lm_eval.api.model"].LM = LM  # type: ignore[attr-defined]
    modules["lm_eval.api.registry"].register_model = register_model  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    bert(folder, len(word_piece(folder)))
    return folder


@pytest.fixture(scope="module")
def harness(folder: Path) -> Harness:
    return Harness(str(folder), max_length=8, visits=4, greedy=True)


@torch.no_grad()
def exact(harness: Harness, context: list[int], continuation: list[int]) -> float:
    row = torch.tensor([context + continuation]).float()
    if row.shape[1] == 1:
        return float(
            harness.model.network(torch.tensor([[harness.model.space.levels]]))[0, 0].log_softmax(0)[continuation[0]]
        )
    space = harness.model.space
    model = df.MaskedDiffusion(harness.model.network, Categorical(row.shape[1], space.levels, excluded=space.excluded))
    return -float(PromptedDiffusion(model).exact_ledger(row, prompts(row, len(context))).nelbo)


def test_it_is_registered_only_with_the_harness(
    registry: dict[str, type], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.reload(lm_eval)
    assert list(registry) == ["diffusional"]
    made: Any = registry["diffusional"]
    # The command line of the harness asks for CUDA unless --device is given.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="runs on cpu"):
        model = made.create_from_arg_obj({"pretrained": str(folder), "visits": 8}, {"batch_size": 1, "device": "cuda"})
    assert model.max_length == 64
    assert str(model.device) == "cpu"
    assert model.loglikelihood([Instance(("the", " model"))])[0][1] is False
    for name in [name for name in sys.modules if name.startswith("lm_eval")]:
        del sys.modules[name]
    importlib.reload(lm_eval)
    with pytest.raises(df.DiffusionalError, match="lm-eval"):
        lm_eval.register()


REQUESTS = [
    ("the model", " is masked"),
    ("the", " model"),
    ("the model ", "is"),  # the space belongs to the continuation
    ("", "the mask"),
    ("", "a"),
    ("is is is is the model", " is masked"),  # the beginning of the context does not fit
    ("the a is the is the is a is a a", " model"),  # nor here; exact
    ("the", ""),
]


def test_a_log_likelihood_is_that_of_the_continuation_given_its_context(harness: Harness) -> None:
    harness.errors.clear()
    found = harness.loglikelihood([Instance(args) for args in REQUESTS])
    known = harness.tokenizer
    for (context, continuation), (value, greedy), record in zip(REQUESTS, found, harness.errors, strict=True):
        before = known(context.rstrip(), add_special_tokens=False)["input_ids"]
        after = known(continuation, add_special_tokens=False)["input_ids"]
        if not after:
            assert (value, record["error"], greedy) == (0.0, 0.0, True)
            continue
        row = (before + after)[-8:]
        wanted = exact(harness, row[: len(row) - len(after)], after)
        assert abs(value - wanted) <= 8 * record["error"] + 1e-5, (context, continuation)
        assert (record["error"] == 0) == (len(after) <= 2)
        assert record["tokens"] == len(after)
        # All masks of one or two tokens, or four replicates of a visit.
        assert record["network_evaluations"] == {1: 1, 2: 3}.get(len(after), 4)
    # The same request has the same number, whatever is beside it, be it the same one.
    again = harness.loglikelihood([Instance(REQUESTS[0])])
    assert again[0] == found[0]
    twice = harness.loglikelihood([Instance(REQUESTS[i]) for i in (0, 1, 0)])
    assert twice == [found[0], found[1], found[0]]


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(folder: Path, tmp_path: Path) -> None:
    """Seen by a tokenizer that keeps spaces."""
    pairs = byte_pairs(tmp_path)
    made = Harness(model=load_masked_lm(folder, 8), tokenizer=pairs)
    before, after = made._pair("the model ", "is")
    assert (pairs.decode(before), pairs.decode(after)) == ("the model", " is")


def test_the_most_confident_continuation_is_greedy(harness: Harness) -> None:
    context = harness._encode("the model")
    row = torch.tensor([[*context, 0, 0]])
    filled = harness._of_length(len(context) + 2).most_confident(prompts(row, len(context)))[0].long().tolist()
    assert harness._is_greedy(context, filled[-2:])
    assert not harness._is_greedy(context, [(filled[-2] + 1) % 20, filled[-1]])


def test_errors_cover_the_exact_numbers(folder: Path) -> None:
    """Of many seeds: the mean is exact, and the errors are those of the spread."""
    made = Harness(str(folder), max_length=8, visits=4)
    pair = made._pair("the model", " is masked")
    found = []
    for seed in range(40):
        made.seed = seed
        found.append(made._scores([[pair]])[0][0])
    values, errors = torch.tensor([one[0] for one in found]), torch.tensor([one[1] for one in found])
    wanted = exact(made, *pair)
    assert abs(float(values.mean()) - wanted) < 4.5 * float(values.std()) / 40**0.5
    assert 0.65 < float(errors.square().mean().sqrt() / values.std()) < 1.5


def harness_windows(tokens: list[int], prefix: int, most: int) -> list[tuple[list[int], list[int]]]:
    """The rule of lm_eval.utils (4e7e0d4): windows of `most` inputs with one token of context, made disjoint."""
    found, done = [], 0
    while done < len(tokens):
        new = min(most, len(tokens) - done)
        end = done + new
        inputs = [prefix, *tokens[: end - 1]] if done == 0 else tokens[max(0, end - most - 1) : end - 1]
        found.append((inputs[: len(inputs) - (new - 1)], tokens[done:end]))
        done = end
    return found


@pytest.mark.parametrize("n", [1, 4, 7, 8, 9, 20, 23])
def test_rolling_windows_are_those_of_the_harness(n: int) -> None:
    tokens = list(range(n))
    for length in (2, 4, 8):
        found = list(windows(tokens, length, [99]))
        assert found == harness_windows(tokens, 99, length - 1)
        for prefix in ([99], []):
            found = list(windows(tokens, length, prefix))
            assert [token for _, predicted in found for token in predicted] == tokens
            assert all(len(before) + len(predicted) <= length for before, predicted in found)
            assert all(len(before) + len(predicted) == length for before, predicted in found[1:])


def test_a_document_is_the_sum_over_its_windows(folder: Path, tmp_path: Path) -> None:
    made = Harness(str(folder), max_length=6, visits=64, errors=tmp_path / "errors.json", prefix="[PAD]")
    documents = ["the model is masked, and a mask is", "a"]
    values = made.loglikelihood_rolling([Instance((one,)) for one in documents])
    record = json.loads((tmp_path / "errors.json").read_text())
    assert [one["log_likelihood"] for one in record["numbers"]] == values
    for document, value, one in zip(documents, values, made.errors, strict=True):
        own = list(windows(made._encode(document), 6, made.prefix))
        assert own[0][0] == [0]
        wanted = sum(exact(made, *pair) for pair in own)
        assert abs(value - wanted) <= 8 * one["error"] + 1e-5
        assert one["windows"] == len(own)
        (scores,) = made._scores([own])
        assert one["error"] == pytest.approx(sum(error**2 for _, error, _ in scores) ** 0.5)
    assert made._pair("the", " model")[0] == [0, *made._encode("the")]


def test_equal_windows_of_a_document_have_draws_of_their_own(folder: Path) -> None:
    """Their errors add up as those of independent numbers; another document with these windows has the same numbers."""
    made = Harness(str(folder), max_length=4, visits=8)
    pair = (made._encode("the"), made._encode(" model is masked"))
    (one, other), (alone,) = made._scores([[pair, pair], [pair]])
    assert one == alone
    assert one[0] != other[0]


def test_generation_keeps_the_context_and_stops(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"until": ["zzz"], "max_gen_toks": 4}
    (greedy,) = harness.generate_until([Instance(("the model", options))])
    assert greedy == harness.generate_until([Instance(("the model", options))])[0]
    sampled = harness.generate_until([Instance(("the model", options | {"do_sample": True, "temperature": 1.0}))])
    assert isinstance(sampled[0], str)
    cut = harness.generate_until([Instance(("the model", options | {"until": greedy[1]}))])
    assert cut[0] == greedy.split(greedy[1])[0]
    with pytest.raises(NotImplementedError, match=r"0\.7"):
        harness.generate_until([Instance(("the", {"do_sample": True, "temperature": 0.7}))])
    # Of a context that is too long the last tokens are kept, here 8 − 4.
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        PromptedDiffusion, "most_confident", lambda self, prompt, steps: seen.append(prompt) or prompt.clamp(min=0)
    )
    long = "a the is a the model is masked"
    harness.generate_until([Instance((long, options))])
    assert seen[0].tolist() == [[*harness._encode(long)[-4:], -1, -1, -1, -1]]


def test_refusals(folder: Path) -> None:
    with pytest.raises(df.DiffusionalError, match="replicates"):
        Harness(str(folder), visits=8, replicates=1)
    with pytest.raises(df.DiffusionalError, match="pretrained"):
        Harness()
    with pytest.raises(df.DiffusionalError, match="prefix"):
        Harness(str(folder), prefix="<s>")
    with pytest.raises(df.DiffusionalError, match="max_length"):
        Harness(str(folder), max_length=3).loglikelihood([Instance(("the", " model is masked"))])
