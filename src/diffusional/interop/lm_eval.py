"""Masked diffusions as a model of lm-evaluation-harness, with the Monte Carlo error of every number.

    python -m diffusional.interop.lm_eval --model diffusional --model_args pretrained=FOLDER,visits=32,errors=errors.json --tasks arc_easy

Importing this module registers the model "diffusional" if the harness (`lm_eval`) is installed; the command above imports it first. The harness
has no place for errors: they are in `errors` of the model, one record for each number, and in the JSON file that is named.

    loglikelihood           −NELBO of a continuation given its context, which is never masked
    loglikelihood_rolling   the sum over the harness's windows of a document, each given the tokens of the window that were scored before
    generate_until          the most confident position first, or samples with do_sample

A log-likelihood is a lower bound, as that of every masked diffusion. Its estimate is the mean of independent replicates, in each of which the numbers of
masks are spread over the continuation (evaluation/continuations.py), and its error is their standard error. A continuation of few tokens, F with
2^F − 1 ≤ visits, is exact.
"""

import contextlib
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusional.data.alphabets import load_tokenizer
from diffusional.data.prompts import joint_tokens, moved_spaces
from diffusional.errors import DiffusionalError
from diffusional.evaluation.continuations import drawing, evaluations
from diffusional.files import save_json
from diffusional.interop.masked_lm import PREFIX, load_masked_lm
from diffusional.models.base import evaluation_mode
from diffusional.models.masked import MaskedDiffusion
from diffusional.models.prompted import PromptedDiffusion, prompts
from diffusional.space import Categorical

# The name of the model in the harness.
NAME = "diffusional"
_FORMAT = 1


def windows(tokens: Sequence[int], length: int, prefix: Sequence[int] = ()) -> Iterator[tuple[list[int], list[int]]]:
    """Yield context and predicted tokens of the windows of a document: every token is predicted once, each window has at most `length` tokens,
    and all but a single one are full, so that the last one has as much context as possible.

    With a prefix of one token these are the windows of the harness's `get_rolling_token_windows` for `length` − 1 tokens, a context of at least
    one token, and `make_disjoint_window`. Without a prefix the first window has no context.

    >>> list(windows(range(5), 3))
    [([], [0, 1, 2]), ([2], [3, 4])]
    >>> list(windows(range(6), 3, [9]))
    [([9], [0, 1]), ([1], [2, 3]), ([3], [4, 5])]
    """
    own, done = list(tokens), 0
    while done < len(own):
        new = min(len(own) - done, length - len(prefix) if done == 0 else length - 1)
        end = done + new
        yield list(prefix) if done == 0 else own[max(0, end - length) : done], own[done:end]
        done = end


def _usable(device: str | None) -> torch.device:
    """Return the device of a name. The harness asks for CUDA unless another device is named, also where there is none."""
    found = torch.device(device or "cpu")
    if found.type == "cuda" and not torch.cuda.is_available():
        warnings.warn(f"{device} was asked for, which is not available here: the model runs on cpu", stacklevel=3)
        return torch.device("cpu")
    return found


class Harness:
    """The methods of the harness's `LM`, for a masked language model and its tokenizer. `register` makes it a subclass of `LM`.

    Args:
        pretrained: a folder or a name of the Hub, as for `load_masked_lm`.
        model, tokenizer: instead of `pretrained`, a `MaskedDiffusion` and a tokenizer of transformers, in memory.
        max_length: the most tokens of context and continuation; defaults to 1,024, or to the most that the model takes if that is less.
        visits: network evaluations of each continuation, in `replicates` independent parts, of which none has more than one for each token.
        replicates: at least 2; the error of a number has one degree of freedom fewer.
        mask_token, shift: of `pretrained`.
        prefix: a token (its text or number) in front of every context and document, such as the beginning of a sequence; by default none.
        greedy: whether to find out if a continuation is the most confident one, in as many network evaluations as it has tokens; otherwise
            the answer is False.
        max_gen_toks: the default number of generated tokens.
        steps: of a generation; defaults to one for each token.
        seed: of all draws. The same request has the same number.
        errors: a JSON file for the records of all numbers; by default none is written.
        device, batch_size, max_batch_size: of the harness; without CUDA its default "cuda" becomes "cpu", with a warning. The network takes as
            many rows at once as fit.

    Raises DiffusionalError as `load_masked_lm` does, and for fewer than 2 replicates or visits.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        model: MaskedDiffusion | None = None,
        tokenizer: Any = None,
        max_length: int | None = None,
        visits: int = 32,
        replicates: int = 4,
        mask_token: int | str | None = None,
        shift: bool = False,
        prefix: int | str | None = None,
        greedy: bool = False,
        max_gen_toks: int = 128,
        steps: int | None = None,
        seed: int = 0,
        errors: str | Path | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if (pretrained is None) == (model is None) or (model is not None and tokenizer is None):
            raise DiffusionalError("expected either pretrained, or a model and its tokenizer")
        if replicates < 2 or visits < replicates:
            raise DiffusionalError(
                f"expected at least 2 replicates, and a visit for each, got {replicates} replicates and {visits} visits"
            )
        if model is None:
            assert pretrained is not None
            given: Any = {"mask_token": mask_token, "shift": shift}
            model = load_masked_lm(pretrained, max_length, most=1024, **given)
            tokenizer = load_tokenizer(pretrained.removeprefix(PREFIX))
        assert model is not None
        self._device = _usable(device)
        self.model, self.tokenizer = model.to(self._device), tokenizer
        self.max_length = model.space.shape[0] if max_length is None else max_length
        self.visits, self.replicates, self.greedy, self.seed = visits, replicates, greedy, seed
        self.max_gen_toks, self.steps, self.file = max_gen_toks, steps, None if errors is None else Path(errors)
        self.prefix = [] if prefix is None else [self._number(prefix)]
        self.errors: list[dict[str, Any]] = []

    def _number(self, token: int | str) -> int:
        if isinstance(token, int) or token.isdigit():
            return int(token)
        known = self.tokenizer.get_vocab()
        if token not in known:
            raise DiffusionalError(f"expected prefix to be a token of the tokenizer, or its number, got {token!r}")
        return known[token]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a context and of its continuation, as the harness splits them: spaces at the end of the context belong to the
        continuation, and both are tokenized together.
        """
        context, continuation = moved_spaces(context, continuation)
        before, both = joint_tokens(self._encode, context, continuation)
        return self.prefix + before, both[len(before) :]

    def _of_length(self, length: int) -> PromptedDiffusion:
        space = self.model.space
        return PromptedDiffusion(
            MaskedDiffusion(self.model.network, Categorical(length, space.levels, space.alphabet, space.excluded))
        )

    def _scores(
        self, requests: Sequence[Sequence[tuple[list[int], list[int]]]]
    ) -> list[list[tuple[float, float, int]]]:
        """Return for every context and continuation of each request the log-likelihood, its error and the number of network evaluations.

        Equal pairs of different requests are evaluated once, so that the same request has the same number; those of one request, such as
        windows of a document, have draws of their own.
        """
        out = [[(0.0, 0.0, 0)] * len(own) for own in requests]
        # By length, row, number of free tokens and occurrence within its request: where the number belongs.
        groups: dict[int, dict[tuple[tuple[int, ...], int, int], list[tuple[int, int]]]] = {}
        for r, own in enumerate(requests):
            seen = Counter[tuple[tuple[int, ...], int]]()
            for place, (context, continuation) in enumerate(own):
                if len(continuation) > self.max_length:
                    raise DiffusionalError(
                        f"expected continuations of at most {self.max_length} tokens (max_length), got {len(continuation)} in request {r}"
                    )
                if continuation:
                    row = tuple((context + continuation)[-self.max_length :])
                    pair = (row, len(continuation))
                    groups.setdefault(len(row), {}).setdefault((*pair, seen[pair]), []).append((r, place))
                    seen[pair] += 1
        for members in groups.values():
            x = torch.tensor([row for row, _, _ in members], device=self._device).float()
            free = torch.tensor([number for _, number, _ in members], device=self._device)
            # A model of sequences has at least two positions.
            score = self._first if x.shape[1] == 1 else self._estimated
            with evaluation_mode(self.model), torch.no_grad():
                for places, number in zip(members.values(), score(x, free), strict=True):
                    for r, place in places:
                        out[r][place] = number
        return out

    def _first(self, x: Tensor, free: Tensor) -> list[tuple[float, float, int]]:
        """Return what `_estimated` returns for rows (N, 1) of one token without a context."""
        log_p = self.model.network(torch.full((1, 1), self.model.space.levels, device=x.device))[0, 0]
        return [(value, 0.0, 1) for value in log_p.double().log_softmax(-1)[x[:, 0].long()].tolist()]

    def _estimated(self, x: Tensor, free: Tensor) -> list[tuple[float, float, int]]:
        """Return the log-likelihood, its error and the network evaluations of continuations of `free` (N,) tokens at the ends of x (N, L)."""
        model, each = self._of_length(x.shape[1]), self.visits // self.replicates
        prompt = prompts(x, x.shape[1] - free)
        (parts,), _ = drawing((model,), x, prompt, each, self.replicates, self.seed)(range(self.replicates))
        errors = (parts.std(0) / math.sqrt(self.replicates)).tolist()
        calls = evaluations(free, each, self.replicates).tolist()
        return [(-v, e, n) for v, e, n in zip(parts.mean(0).tolist(), errors, calls, strict=True)]

    def _record(self, kind: str, request: Any, value: float, error: float, **more: Any) -> None:
        # Where the number belongs, if the request is one of a task.
        place = {"task": "task_name", "document": "doc_id", "choice": "idx"}
        known = {name: getattr(request, own) for name, own in place.items() if getattr(request, own, None) is not None}
        self.errors.append({"request": kind, **known, "log_likelihood": value, "error": error} | more)

    def _write(self) -> None:
        if self.file is not None:
            about = {"format": _FORMAT, "unit": "nats", "replicates": self.replicates, "seed": self.seed}
            save_json(self.file, about | {"numbers": self.errors})

    def _cached(self, request: str, args: Any, result: Any) -> None:
        hook = getattr(self, "cache_hook", None)
        if hook is not None:
            hook.add_partial(request, args, result)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each request, whose `args` are (context, continuation), its log-likelihood in nats, and whether it is the most confident
        continuation.

        A context that does not fit is cut at its beginning. Raises DiffusionalError for a continuation that does not fit.
        """
        pairs = [self._pair(*request.args) for request in requests]
        out = []
        scores = [score for (score,) in self._scores([[pair] for pair in pairs])]
        for request, pair, (value, error, calls) in zip(requests, pairs, scores, strict=True):
            sizes = {"context_tokens": len(pair[0]), "tokens": len(pair[1]), "network_evaluations": calls}
            self._record("loglikelihood", request, value, error, **sizes)
            found = (value, self.greedy and self._is_greedy(*pair))
            self._cached("loglikelihood", request.args, found)
            out.append(found)
        self._write()
        return out

    def _is_greedy(self, context: list[int], continuation: list[int]) -> bool:
        if not continuation:
            return True
        if len(context) + len(continuation) < 2:
            logits = self.model.network(torch.tensor([[self.model.space.levels]], device=self._device))
            return int(logits[0, 0].argmax()) == continuation[0]
        row = (context + continuation)[-self.max_length :]
        prompt = prompts(torch.tensor([row], device=self._device), len(row) - len(continuation))
        filled = self._of_length(len(row)).most_confident(prompt)
        return filled[0].long().tolist() == row

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood in nats of each document, whose `args` are (text,): the sum over its `windows`, which are independent."""
        documents = [list(windows(self._encode(request.args[0]), self.max_length, self.prefix)) for request in requests]
        out = []
        for request, own, found in zip(requests, documents, self._scores(documents), strict=True):
            value, error = sum(one[0] for one in found), math.sqrt(sum(one[1] ** 2 for one in found))
            sizes = {"windows": len(own), "tokens": sum(len(predicted) for _, predicted in own)}
            calls = sum(one[2] for one in found)
            self._record("loglikelihood_rolling", request, value, error, **sizes, network_evaluations=calls)
            self._cached("loglikelihood_rolling", request.args, value)
            out.append(value)
        self._write()
        return out

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return for each request, whose `args` are (context, options), the text that is generated up to the first of the strings `until`.

        `max_gen_toks` positions are filled at once: the most confident first, or with `do_sample` at random, from the model whose bound is
        reported unless `steps` is smaller than their number. Raises NotImplementedError for a temperature other than 0 and 1, which is another
        model than the one whose likelihood is reported.
        """
        out = []
        for number, request in enumerate(requests):
            context, options = request.args
            stops = options.get("until") or []
            stops = [stops] if isinstance(stops, str) else list(stops)
            temperature = options.get("temperature")
            sampled = bool(options.get("do_sample", temperature not in (None, 0, 0.0)))
            if sampled and temperature not in (None, 1, 1.0):
                raise NotImplementedError(
                    f"temperature {temperature} was asked for: samples are those of the model whose likelihood is reported, at temperature 1"
                )
            new = int(options.get("max_gen_toks", self.max_gen_toks))
            before = (self.prefix + self._encode(context))[-max(0, self.max_length - new) :]
            row = torch.tensor([before + [0] * new], device=self._device)
            model, prompt = self._of_length(row.shape[1]), prompts(row, len(before))
            if sampled:
                generator = torch.Generator(self._device).manual_seed(self.seed * 1_000_003 + number)
                filled = model.sample(1, generator, prompt, steps=self.steps)
            else:
                filled = model.most_confident(prompt, steps=self.steps)
            text = self.tokenizer.decode(filled[0, len(before) :].long().tolist(), skip_special_tokens=True)
            for stop in stops:
                text = text.split(stop)[0] if stop else text
            self._cached("generate_until", request.args, text)
            out.append(text)
        return out

    # What chat templates need.

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, by which the harness keeps requests."""
        return str(getattr(self.tokenizer, "name_or_path", NAME)).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's template of chats, or None without one."""
        return getattr(self.tokenizer, "chat_template", None) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a chat as a text, by the tokenizer's template."""
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )


def register(name: str = NAME) -> type:
    """Return `Harness` as a subclass of the harness's `LM`, registered there under a name.

    Raises DiffusionalError without the harness.
    """
    try:
        from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
        from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DiffusionalError(f"lm-evaluation-harness is not installed ({error}); pip install lm-eval") from error
    made = type("DiffusionalLM", (Harness, LM), {"__doc__": Harness.__doc__})
    decorate: Callable[[type], type] = register_model(name)
    return decorate(made)


def main() -> None:
    """Run the command line of the harness, with the model registered."""
    register()
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    try:
        cli_evaluate()
    except DiffusionalError as error:
        sys.exit(f"diffusional: error: {error}")


if __name__ == "__main__":
    main()
else:
    # Without the harness, `Harness` works as well.
    with contextlib.suppress(DiffusionalError):
        register()
