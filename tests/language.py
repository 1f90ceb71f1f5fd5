"""Tiny language models and tokenizers of transformers, in folders as they are downloaded."""

from pathlib import Path
from typing import Any

import torch

# English, and characters of one to four bytes, capitals and white space that a tokenizer may change.
TEXT = (
    "The masked model fills what is hidden, one word after the other. It's 7 o'clock in Zürich — naïve café, 東京, 😀!\n\n"
    "A second paragraph  has two spaces, and\ta tab.\n"
)


def word_piece(folder: Path, text: str = TEXT, extra: tuple[str, ...] = ()) -> Any:
    """Save and return a WordPiece tokenizer as BERT's, of the letters of a text without its last 20 distinct characters, lower case."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({one for one in text.lower() if not one.isspace() and ord(one) < 128})
    words = ["the", "mask", "##ed", "model", "a", "##s", "is"]
    tokens = list(
        dict.fromkeys(["[PAD]", "[UNK]", "[MASK]", *extra, *words, *letters, *(f"##{one}" for one in letters)])
    )
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    found = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]")
    found.save_pretrained(folder)
    return found


def byte_pairs(folder: Path, text: str = TEXT) -> Any:
    """Save and return a byte-level BPE tokenizer as GPT-2's and LLaDA's, trained on a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "<|mdm_mask|>"]
    made.train_from_iterator(
        [text],
        trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    found = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|endoftext|>", eos_token="<|endoftext|>")
    found.save_pretrained(folder)
    return found


def bert(folder: Path, vocabulary: int, seed: int = 0, **more: Any) -> Any:
    """Save and return a masked language model as BERT."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"max_position_embeddings": 64}
    found = BertForMaskedLM(BertConfig(vocab_size=vocabulary, **(sizes | more))).eval()
    found.save_pretrained(folder)
    return found


def llada(folder: Path, vocabulary: int, seed: int = 0) -> Any:
    """Save and return a masked language model of LLaMA's layers without a causal mask, as LLaDA: a EuroBERT."""
    from transformers import EuroBertConfig, EuroBertForMaskedLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 64}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "mask_token_id": 1}
    found = EuroBertForMaskedLM(EuroBertConfig(vocab_size=vocabulary, **sizes, **special)).eval()
    found.save_pretrained(folder)
    return found


def llama(folder: Path, vocabulary: int) -> Any:
    """Save and return a causal language model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    found = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, intermediate_size=16, **sizes)).eval()
    found.save_pretrained(folder)
    return found
