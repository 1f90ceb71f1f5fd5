"""Masked language models of other libraries as masked diffusions: any module from token numbers with masks to logits.

What differs between such models is stated, not guessed:

    mask_token    the number of the mask in the vocabulary (LLaDA 126336, BERT's [MASK], the last one of MDLM)
    shift         whether the logits at position i − 1 predict token i, as in models that were made from autoregressive ones (Dream)
    time          a module whose `forward` has a parameter `timesteps` receives zeros: the models are used without time, as MDLM's

The vocabulary keeps its numbers. The mask is one of them but not a category: the network never predicts it, and data that have it are refused.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.models.masked import MaskedDiffusion
from diffusional.space import Categorical

# Prefix of the names of models of transformers.
PREFIX = "hf:"


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

    Raises DiffusionalError without a size of the vocabulary, and for a mask outside it.

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
    return MaskedDiffusion(network, Categorical(length, k, alphabet, excluded=mask_token if mask_token < k else None))


def load_masked_lm(
    name: str | Path, length: int, *, mask_token: int | None = None, shift: bool = False
) -> MaskedDiffusion:
    """Load a masked language model of transformers, a local folder or a name of the Hub, as a masked diffusion. No code of the repository is run:
    load models that need their own code yourself, and pass them to `masked_language_model`.

    The mask defaults to that of its tokenizer, and the alphabet is its tokenizer, if it has one. Raises DiffusionalError for a model that cannot
    be loaded, and without a mask.
    """
    name = str(name).removeprefix(PREFIX)
    with needed_for("text"):
        from transformers import AutoModelForMaskedLM, AutoTokenizer
        from transformers.utils.hub import cached_file
    try:
        module: Any = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DiffusionalError(
            f"expected a masked language model of transformers in {name!r}, which could not be loaded: {error}"
        ) from error
    # Without its files transformers makes an empty tokenizer: data are then arrays of tokens.
    tokenizer: Any = None
    if cached_file(name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False) is not None:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    found = getattr(tokenizer, "mask_token_id", None) if mask_token is None else mask_token
    if found is None:
        raise DiffusionalError(
            f"expected mask_token, the number of the mask, for {name!r}, whose tokenizer names none, got None"
        )
    alphabet = None if tokenizer is None else f"tokenizer:{name}"
    return masked_language_model(module.eval(), length, mask_token=int(found), shift=shift, alphabet=alphabet)
