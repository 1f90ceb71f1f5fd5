"""The embedded encoder of texts: the same numbers on every machine, similar for similar words."""

import hashlib

import numpy as np
import pytest
import torch

from diffusional.errors import DiffusionalError
from diffusional.text import TextRecord, load_encoder
from diffusional.text.hashed import HashedEncoder


def signs(feature: str) -> np.ndarray:
    """The bits of the hash of a feature as ±1, bit by bit."""
    digest = hashlib.blake2b(feature.encode(), digest_size=16).digest()
    return np.array([1.0 if byte >> (7 - bit) & 1 else -1.0 for byte in digest for bit in range(8)])


def test_a_token_is_the_sum_of_its_features_over_the_root_of_their_number() -> None:
    """Of the words "big one", written out."""
    big = 2 * signs("word big") + sum(signs(f"part {p}") for p in ("^bi", "big", "ig$")) + signs("pair  big")
    one = 2 * signs("word one") + sum(signs(f"part {p}") for p in ("^on", "one", "ne$")) + signs("pair big one")
    expected = np.stack([big, one]) / np.sqrt(6)
    found = HashedEncoder().encode(["Big, ONE!"])
    np.testing.assert_allclose(found.tokens[0].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(found.pooled[0].numpy(), expected.sum(0) / np.sqrt(2), rtol=1e-6)


def test_the_embeddings_of_a_text_do_not_depend_on_the_others() -> None:
    encoder = HashedEncoder()
    both = encoder.encode(["one", "a thick seven leaning right"])
    alone = encoder.encode(["one"])
    assert both.mask.sum(1).tolist() == [1, 5]
    assert both.tokens[0, :1].equal(alone.tokens[0])
    assert both.pooled[0].equal(alone.pooled[0])
    assert bool((both.tokens[0, 1:] == 0).all())


def test_texts_with_words_and_their_order_in_common_are_similar() -> None:
    found = HashedEncoder().encode(["a thick seven", "a thickish seven", "an upright four", "seven thick a"]).pooled
    cosine = torch.nn.functional.cosine_similarity(found[0], found[1:], dim=-1)
    assert cosine[0] > 0.6 > 0.3 > cosine[1]
    assert cosine[2] < 0.95  # the same words in another order


@pytest.mark.parametrize(
    ("text", "match"), [("", "at least one word"), ("?!", "at least one word"), ("a " * 257, "256")]
)
def test_texts_that_cannot_be_encoded(text: str, match: str) -> None:
    with pytest.raises(DiffusionalError, match=match):
        load_encoder("hashed").encode(["fine", text])


def test_a_record_pads_tokens_to_the_length_of_the_training_data() -> None:
    record = TextRecord("hashed", HashedEncoder().sha256, "tokens", 3)
    assert TextRecord.from_dict(record.to_dict()) == record
    condition = record.condition(["one", "a b"])
    assert condition["mask"].tolist() == [[True, False, False], [True, True, False]]
    assert condition["tokens"].shape == (2, 3, 128)
    with pytest.raises(DiffusionalError, match=r"at most 3 tokens.* got 4"):
        record.condition(["a b c d"])
    with pytest.raises(DiffusionalError, match=r"hashed has changed.*aaa"):
        TextRecord("hashed", "a" * 64, "pooled").condition(["one"])
    for wrong in ({"encoder": "hashed"}, record.to_dict() | {"form": "words"}, record.to_dict() | {"length": 0}, None):
        with pytest.raises(DiffusionalError, match="record of a text encoder"):
            TextRecord.from_dict(wrong)
