"""Masked language models of other libraries as masked diffusions: any module from token numbers with masks to logits.

What differs between such models is stated, not guessed:

    mask_token    the number of the mask in the vocabulary (LLaDA 126336, BERT's [MASK], the last one of MDLM)
    shift         whether the logits at position i − 1 predict token i, as in models that were made from autoregressive ones (Dream)
    time          a module whose `forward` has a parameter `timesteps` receives zeros: the models are used without time, as MDLM's

The vocabulary keeps its numbers. The mask is one of them but not a category: the network never predicts it, and data that have it are refused.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.data.alphabets import load_tokenizer
from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import sha256
from diffusional.interop.record import Origin
from diffusional.models.masked import MaskedDiffusion
from diffusional.space import Categorical, Space

# Prefix of the names of models of transformers.
PREFIX = "hf:"
# The default number of tokens of an item, and what stands for no limit.
_LENGTH, _ANY = 128, 10**9
_CAUSAL = "A causal language model is not a masked diffusion: it predicts a token from earlier ones only, and its own likelihood is exact"


class MaskedLanguageModel(nn.Module):
    """A masked language model as the network of a `MaskedDiffusion`: tokens (B, L) of 0 … K, K being the mask, to logits (B, L, K).

    Args:
        module: called as module(input_ids=…), with `timesteps` if it has this parameter; it returns logits (B, L, ≥ K), or an object with
            `logits`.
        categories: K, the size of the vocabulary.
        mask_token: the number of the mask, 0 … K − 1, or K for a mask behind the vocabulary.
        shift: whether the logits at i − 1 predict token i. The first position then keeps its own logits, as in Dream's code.
    """

    def __init__(self, module: nn.Module, categories: int, mask_token: int, shift: bool = False) -> None:
        super().__init__()
        if not 0 <= mask_token <= categories:
            raise DiffusionalError(
                f"expected mask_token from 0 to {categories}, the size of the vocabulary, got {mask_token}"
            )
        self.module, self.categories, self.mask_token, self.shift = module, categories, mask_token, shift
        self.timed = "timesteps" in inspect.signature(module.forward).parameters

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of every position, with −∞ for the mask."""
        given = torch.where(tokens == self.categories, self.mask_token, tokens)
        timed = {"timesteps": torch.zeros(len(tokens), device=tokens.device)} if self.timed else {}
        out: Any = self.module(input_ids=given, **timed)
        logits = out if isinstance(out, Tensor) else out.logits
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape or logits.shape[2] < self.categories:
            raise DiffusionalError(
                f"expected logits {(*tokens.shape, self.categories)} of the language model, got shape {tuple(logits.shape)}"
            )
        logits = logits[..., : self.categories]
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
        if self.mask_token < self.categories:
            never = torch.arange(self.categories, device=logits.device) == self.mask_token
            logits = logits.masked_fill(never, -torch.inf)
        return logits


def masked_language_model(
    module: nn.Module,
    length: int,
    *,
    mask_token: int,
    categories: int | None = None,
    shift: bool = False,
    alphabet: str | None = None,
) -> MaskedDiffusion:
    """Return a masked language model in memory as a masked diffusion over sequences of `length` tokens.

    Args:
        module: see `MaskedLanguageModel`.
        length: the number of tokens of an item.
        mask_token, shift: see `MaskedLanguageModel`.
        categories: the size of the vocabulary; defaults to `module.config.vocab_size`.
        alphabet: of the space, such as "tokenizer:NAME", in which `diffusional.data` then writes texts.

    Raises DiffusionalError without a size of the vocabulary, for a mask outside it, and for a causal language model, whose logits do not depend
    on later tokens.

    >>> from transformers import BertConfig, BertForMaskedLM
    >>> tiny = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    >>> model = masked_language_model(BertForMaskedLM(tiny).eval(), 6, mask_token=4)
    >>> model.elbo(torch.zeros(2, 6)).kl.shape
    torch.Size([2, 5])
    """
    k = getattr(getattr(module, "config", None), "vocab_size", None) if categories is None else categories
    if k is None:
        raise DiffusionalError(
            "expected categories, the size of the vocabulary, for a module without config.vocab_size, got none"
        )
    network = MaskedLanguageModel(module, k, mask_token, shift)
    if reads_later_tokens(module, k, length) is False:
        raise DiffusionalError(
            f"expected a masked language model, got a {type(module).__name__} in which no token sees later ones. {_CAUSAL}"
        )
    return MaskedDiffusion(network, Categorical(length, k, alphabet, excluded=mask_token if mask_token < k else None))


def load_masked_lm(
    name: str | Path,
    length: int | None = None,
    *,
    space: Space | None = None,
    mask_token: int | str | None = None,
    shift: bool = False,
    revision: str | None = None,
    most: int = _LENGTH,
) -> MaskedDiffusion:
    """Load a masked language model of transformers, a local folder or a name of the Hub, as a masked diffusion. No code of the repository is run:
    load models that need their own code yourself, and pass them to `masked_language_model`.

    Its `origin` lists what its files determine, what was assumed and what was given. The alphabet is its tokenizer, if it has one.

    Args:
        name: a folder or a name of the Hub, with or without "hf:".
        length: the number of tokens of an item; defaults to `most`, or to the most that the model takes if that is less.
        space: of another model that it is to be compared with, instead of `length`: a space of the same vocabulary and tokenizer.
        mask_token: the number of the mask, or its text, instead of the tokenizer's.
        shift: see `MaskedLanguageModel`.
        revision: branch, tag or commit of a repository of the Hub.
        most: the default of `length`, 128.

    Raises DiffusionalError for a model that cannot be loaded, causal language models, weights that are missing in the files, a model without a
    mask, a tokenizer with more tokens than the model, more tokens than the model takes, and another space.
    """
    name = str(name).removeprefix(PREFIX)
    folder = Path(name).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else name
    if revision is not None and folder.is_dir():
        raise DiffusionalError(
            f"revision={revision!r} was given for the folder {name}; it is for Hub ids, leave it out"
        )
    (module, stored), tokenizer = _module(name, revision), _tokenizer(name, revision)
    config: Any = module.config
    k = int(config.vocab_size)
    room = min(
        int(getattr(config, "max_position_embeddings", None) or _ANY), getattr(tokenizer, "model_max_length", _ANY)
    )
    length = space.dimensions if space is not None else min(most, room) if length is None else length
    if length > room:
        raise DiffusionalError(
            f"expected at most {room} tokens for {name!r}, the most that the model takes, got length {length}"
        )
    if tokenizer is not None and len(tokenizer) > k:
        raise DiffusionalError(
            f"expected a tokenizer of at most {k} tokens in {name!r}, the vocabulary of the model, got {len(tokenizer)}: it is another model's"
        )
    mask, text = _mask(name, tokenizer, mask_token, k)
    alphabet = None if tokenizer is None else f"tokenizer:{name}"
    model = masked_language_model(module.eval(), length, mask_token=mask, shift=shift, alphabet=alphabet)
    if space is not None:
        model = MaskedDiffusion(model.network, _shared(name, model.space, space, tokenizer))
    model.origin = _origin(
        name, model, tokenizer, text, stored, given={"mask": mask_token is not None, "shift": shift}
    ).to_dict()
    return model.eval()


def _module(name: str, revision: str | None) -> tuple[Any, str]:
    """Load the network in float32, and return it with the type in which its weights are stored. Raises DiffusionalError for anything but a masked language model with all its weights."""
    with needed_for("text"):
        from transformers import AutoConfig, AutoModelForMaskedLM
    expected = f"expected a masked language model of transformers in {name!r}"
    try:
        config: Any = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        kinds = [str(kind) for kind in getattr(config, "architectures", None) or ()]
        causal = [kind for kind in kinds if kind.endswith(("ForCausalLM", "LMHeadModel")) and "MaskedLM" not in kind]
        if getattr(config, "is_decoder", False) or (causal and type(config) not in AutoModelForMaskedLM._model_mapping):
            raise DiffusionalError(f"{expected}, got {', '.join(kinds) or 'a decoder'}. {_CAUSAL}")
        with _silent():
            module, info = AutoModelForMaskedLM.from_pretrained(
                name, revision=revision, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
            )
    except DiffusionalError:
        raise
    except (OSError, ValueError, KeyError) as error:
        # What transformers raises has several lines of advice.
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DiffusionalError(f"{expected}, which could not be loaded: {reason}") from error
    if missing := sorted(info["missing_keys"]):
        raise DiffusionalError(
            f"{expected}, got files without the weights {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''} of a "
            f"{type(module).__name__}, which would be random; they are of another model, such as one without a head"
        )
    return module, str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from printing progress and reports: what matters raises an error."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _tokenizer(name: str, revision: str | None) -> Any:
    """Return the tokenizer, or None if there is none: without its files transformers makes an empty one. Data are then arrays of tokens."""
    with needed_for("text"):
        from transformers.utils.hub import cached_file
    config = cached_file(name, "tokenizer_config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if config is None else load_tokenizer(name)


def _mask(name: str, tokenizer: Any, given: int | str | None, categories: int) -> tuple[int, str | None]:
    """Return the number of the mask, and its text if it is known."""
    if isinstance(given, str) and given.lstrip("-").isdigit():
        given = int(given)
    if isinstance(given, str):
        known = {} if tokenizer is None else tokenizer.get_vocab()
        if given not in known:
            raise DiffusionalError(
                f"expected mask_token to be a token of the tokenizer of {name!r}, or its number, got {given!r}"
            )
        return known[given], given
    found = getattr(tokenizer, "mask_token_id", None) if given is None else given
    if found is None:
        raise DiffusionalError(
            f"expected mask_token, the number of the mask, for {name!r}, whose tokenizer names none, got None"
        )
    text = None if tokenizer is None or not 0 <= found < len(tokenizer) else tokenizer.convert_ids_to_tokens(int(found))
    return int(found), text


def _shared(name: str, own: Categorical, space: Space, tokenizer: Any) -> Categorical:
    """Return the space of another model, if it has the same tokens. Raises DiffusionalError otherwise."""
    same = False
    if isinstance(space, Categorical):
        theirs = space.alphabet or ""
        same = (space.shape, space.levels, space.excluded) == (own.shape, own.levels, own.excluded)
        if theirs != (own.alphabet or ""):
            # The same tokenizer in another folder.
            same = same and tokenizer is not None and theirs.startswith("tokenizer:")
            same = same and _rules(load_tokenizer(theirs.removeprefix("tokenizer:"))) == _rules(tokenizer)
        if same:
            return space
    raise DiffusionalError(
        f"expected {name!r} to have the tokens of {space}, those of the model that it is compared with, got {own}; bounds of different tokens "
        "cannot be compared"
    )


def _rules(tokenizer: Any) -> tuple[str, dict[str, int]]:
    """Return the rules and the vocabulary of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(tokenizer).__name__ if backend is None else backend.to_str(), tokenizer.get_vocab()


def _origin(
    name: str, model: MaskedDiffusion, tokenizer: Any, text: str | None, stored: str, given: dict[str, bool]
) -> Origin:
    """Return what the model's number rests on."""
    network: Any = model.network
    origin = Origin(f"{PREFIX}{name}", "transformers", getattr(network.module.config, "_commit_hash", None))
    folder = Path(name)
    if folder.is_dir():
        files = sorted(
            path
            for path in folder.iterdir()
            if path.is_file() and path.suffix in (".json", ".safetensors", ".txt", ".model")
        )
        origin.files |= {path.name: sha256(path) for path in files}
    length, k = model.space.shape[0], model.space.levels
    origin.config["network"] = (
        f"{type(network.module).__name__}, {k:,} tokens, weights of {stored}, computed in float32"
    )
    if tokenizer is not None:
        origin.config["tokenizer"] = (
            f"its tokenizer has {len(tokenizer):,} tokens; no special tokens are added to a text"
        )
    named = f" ({text})" if text is not None else ""
    sentence = f"the mask is token {network.mask_token}{named}: it is never predicted, and not part of data"
    (origin.given if given["mask"] else origin.config)["mask"] = sentence
    where = "i − 1 predict token i" if network.shift else "i predict token i"
    origin.choose("shift", f"the logits at position {where}", given["shift"])
    if network.timed:
        origin.assumed["time"] = "the network takes a time, and receives 0"
    origin.assumed["blocks"] = (
        f"a text is cut into blocks of {length} tokens, one after the other, each evaluated without the others"
    )
    return origin


@torch.no_grad()
def reads_later_tokens(module: nn.Module, categories: int, length: int) -> bool | None:
    """Return whether the logits at a position depend on the tokens after it; None if they do not depend on other positions at all, so that
    there is no answer. A causal language model returns False.
    """
    network = MaskedLanguageModel(module, categories, categories - 1)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    place = torch.arange(min(length, 8), device=device)
    first = (place * 7 + 1) % (categories - 1)
    last, begin = first.clone(), first.clone()
    last[-1] = begin[0] = (first[-1] + 1) % (categories - 1)
    if int(begin[0]) == int(first[0]):
        begin[0] = (first[0] + 1) % (categories - 1)
    plain, changed, before = network(torch.stack([first, last, begin]))[..., : categories - 1].double()
    later = bool((plain[0] != changed[0]).any())
    earlier = bool((plain[-1] != before[-1]).any())
    return True if later else False if earlier else None


@torch.no_grad()
def check_shift(model: MaskedDiffusion, x: Tensor) -> tuple[float, float, bool] | None:
    """Return the nats per masked token with the model's own convention for `shift` and with the other one, at half-masked items x (N, L); and
    whether the other one is better, by more than 5 % and three standard errors of the items' differences. The better one is the convention
    with which the network was trained, if the data are like those of its training. None for a network that is not a `MaskedLanguageModel`
    and for fewer than two items.
    """
    network = model.network
    if not isinstance(network, MaskedLanguageModel) or len(x) < 2:
        return None
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
    level = torch.full((len(x),), max(1, model.space.shape[0] // 2), device=x.device)
    z = MaskedDiffusion(network, model.space).noisy(x, level, noise)
    found = []
    for shift in (network.shift, not network.shift):
        other = MaskedLanguageModel(network.module, network.categories, network.mask_token, shift)
        found.append(MaskedDiffusion(other, model.space).hidden_map(x, z).sum(1) / level)
    own, theirs = found
    gain, error = float((own - theirs).mean()), float((own - theirs).std()) / len(x) ** 0.5
    return float(own.mean()), float(theirs.mean()), gain > max(3 * error, 0.05 * float(own.mean()))
