"""What a run records of its text encoder, and the condition of texts by it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffusional.errors import DiffusionalError
from diffusional.text.base import Embeddings, TextEncoder
from diffusional.text.loading import load_encoder

Form = Literal["pooled", "tokens"]


@dataclass(frozen=True)
class TextRecord:
    """A text encoder, and the form of its embeddings as a condition.

    Attributes:
        encoder: its name, for `load_encoder`.
        sha256: its hash.
        form: "pooled" for a vector for each text (N, P), or "tokens" for {"tokens": (N, L, W), "mask": (N, L)}.
        length: L, the largest number of tokens of a text; 0 for "pooled".
        padded: whether all conditions have L tokens. Those of streams, whose longest text is not known, have as many as the longest of
            the texts that are embedded together; L is then the most that the encoder takes.

    >>> from diffusional.text.hashed import HashedEncoder
    >>> record = TextRecord("hashed", HashedEncoder().sha256, "tokens", length=5)
    >>> record.condition(["a thick seven"])["tokens"].shape
    torch.Size([1, 5, 128])
    """

    encoder: str
    sha256: str
    form: Form
    length: int = 0
    padded: bool = True

    def load(self) -> TextEncoder:
        """Load the encoder. Raises DiffusionalError if it cannot be loaded, or has changed since the record was made."""
        encoder = load_encoder(self.encoder)
        self.check(encoder.sha256)
        return encoder

    def check(self, sha256: str) -> None:
        """Raise DiffusionalError if the encoder, which now has this hash, has changed since the record was made."""
        if sha256 != self.sha256:
            raise DiffusionalError(
                f"the text encoder {self.encoder} has changed since the model was trained: expected SHA-256 {self.sha256[:12]}…, got "
                f"{sha256[:12]}…. Restore its files, or train the model again"
            )

    def condition(self, texts: Sequence[str]) -> Any:
        """Return the condition of texts, one row for each. Raises DiffusionalError as `load` does, and for texts that are too long."""
        return self.of(self.load().encode(texts), texts)

    def of(self, found: Embeddings, texts: Sequence[str]) -> Any:
        """Return embeddings as the condition of their texts."""
        if self.form == "pooled":
            return found.pooled
        lengths = found.mask.sum(1)
        if int(lengths.max()) > self.length:
            row = int(lengths.argmax())
            known = "the most that the training data have" if self.padded else f"the most that {self.encoder} takes"
            raise DiffusionalError(
                f"expected texts of at most {self.length} tokens, {known}, got {int(lengths[row])} in {texts[row][:60]!r}; shorten the text"
            )
        length = self.length if self.padded else int(lengths.max())
        return {"tokens": _to_length(found.tokens, length), "mask": _to_length(found.mask, length)}

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values; `padded` only if it is false."""
        return {name: value for name, value in asdict(self).items() if name != "padded" or not value}

    @classmethod
    def from_dict(cls, record: Any) -> "TextRecord":
        """Read what `to_dict` returned. Raises DiffusionalError for anything else.

        >>> TextRecord.from_dict({"encoder": "hashed", "sha256": "0", "form": "pooled", "length": 0}).form
        'pooled'
        """
        wrong = DiffusionalError(f"expected the record of a text encoder, got {record!r:.80}; was it edited by hand?")
        try:
            found = cls(**record)
        except TypeError as error:
            raise wrong from error
        sound = isinstance(found.encoder, str) and isinstance(found.sha256, str) and found.form in get_args(Form)
        sound = sound and isinstance(found.padded, bool)
        if not sound or not isinstance(found.length, int) or (found.form == "tokens") != (found.length > 0):
            raise wrong
        return found


def _to_length(value: Tensor, length: int) -> Tensor:
    """Return a tensor (N, L, …) with zeros appended, or padding removed, to `length`."""
    out = torch.zeros(len(value), length, *value.shape[2:], dtype=value.dtype)
    n = min(length, value.shape[1])
    out[:, :n] = value[:, :n]
    return out
