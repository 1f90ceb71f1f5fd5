"""Text encoders by name."""

from diffusional.text.base import TextEncoder
from diffusional.text.hashed import NAME, HashedEncoder


def load_encoder(name: str | None = None) -> TextEncoder:
    """Load the text encoder of a name: "hashed" (the default), "minilm", or the name or folder of a model of transformers.

    Raises DiffusionalError for a model that is not there and cannot be downloaded, and MissingPackageError if transformers, or the
    package of minilm, is not installed.

    >>> load_encoder().encode(["a thick seven"]).pooled.shape
    torch.Size([1, 128])
    """
    if name is None or name == NAME:
        return HashedEncoder()
    from diffusional.text.pretrained import MINILM, load_minilm, load_pretrained

    return load_minilm() if name == MINILM else load_pretrained(name)
