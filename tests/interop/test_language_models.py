"""Masked language models from folders: what is read from their files, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

import diffusional as df
from diffusional.interop.imported import load_reference, save_reference
from diffusional.interop.masked_lm import MaskedLanguageModel, check_shift, load_masked_lm, reads_later_tokens
from diffusional.space import Categorical
from language import bert, byte_pairs, llada, llama, word_piece

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of models with their tokenizers: bert, and llada with a mask that its tokenizer does not name."""
    folder = tmp_path_factory.mktemp("models")
    bert(folder / "bert", len(word_piece(folder / "bert")) + 3)
    llada(folder / "llada", len(byte_pairs(folder / "llada")))
    return folder


def test_the_tokenizer_of_the_folder_is_the_alphabet(folder: Path) -> None:
    model = df.load_checkpoint(f"hf:{folder / 'bert'}", Categorical(8, 5))
    assert isinstance(model, df.MaskedDiffusion)
    network, space = model.network, model.space
    assert isinstance(network, MaskedLanguageModel)
    assert (space.shape, space.excluded, space.alphabet) == ((8,), 2, f"tokenizer:{(folder / 'bert').resolve()}")
    assert space.levels == network.module.config.vocab_size  # type: ignore[union-attr]
    assert "[MASK]" in model.origin["config"]["mask"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(model.origin["files"])
    # The most that it takes, where that is less than 128.
    assert load_masked_lm(folder / "bert").space.shape == (64,)


def test_a_mask_that_the_tokenizer_does_not_name(folder: Path) -> None:
    with pytest.raises(df.DiffusionalError, match="mask_token"):
        load_masked_lm(folder / "llada", 8)
    by_text = load_masked_lm(folder / "llada", 8, mask_token="<|mdm_mask|>")
    by_number = load_masked_lm(folder / "llada", 8, mask_token="1")
    assert by_text.space == by_number.space
    assert by_text.space.excluded == 1
    x = torch.randint(2, by_text.space.levels, (3, 8), generator=torch.Generator().manual_seed(0)).float()
    found = df.evaluate(by_text, x, visits=4, unit="nats", audit=False)
    assert found.nelbo.value > 0
    for token in ("<mask>", "999"):
        with pytest.raises(df.DiffusionalError, match=r"<mask>|999"):
            load_masked_lm(folder / "llada", 8, mask_token=token)


def test_the_convention_of_the_logits_is_checked(folder: Path) -> None:
    """A network whose logits at i − 1 show token i fits only with shift."""

    class Shifted(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            # Tokens are equal in an item: a mask is what is shown anywhere, one position before.
            shown = torch.where(input_ids == 9, -1, input_ids).max(1, keepdim=True).values.clamp(min=0)
            logits = torch.zeros(*input_ids.shape, 10)
            logits[:, :-1] = 9.0 * torch.nn.functional.one_hot(shown, 10)
            return logits

    x = torch.arange(1.0, 7.0)[:, None].expand(6, 8)
    for shift in (True, False):
        model = df.MaskedDiffusion(MaskedLanguageModel(Shifted(), 10, 9, shift), Categorical(8, 10, excluded=9))
        found = check_shift(model, x)
        assert found is not None
        assert found[2] != shift
        assert (found[0] < found[1]) == shift
    # Equal predictions are no reason to change.
    model = df.MaskedDiffusion(MaskedLanguageModel(Constant(), 20, 9), Categorical(8, 20, excluded=9))
    found = check_shift(model, x)
    assert found is not None
    assert not found[2]
    assert check_shift(df.MaskedDiffusion(lambda z: torch.zeros(*z.shape, 10), Categorical(8, 10)), x) is None


def test_weights_of_half_precision_are_evaluated_in_single_precision(tmp_path: Path) -> None:
    bert(tmp_path, 20).to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_masked_lm(tmp_path, 8, mask_token=3)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert "bfloat16" in model.origin["config"]["network"]


def test_causal_models_are_refused(tmp_path: Path, folder: Path) -> None:
    causal = llama(tmp_path / "llama", 20)
    with pytest.raises(df.DiffusionalError, match="LlamaForCausalLM"):
        load_masked_lm(tmp_path / "llama", 8)
    assert reads_later_tokens(causal, 20, 8) is False
    with pytest.raises(df.DiffusionalError, match="no token sees later ones"):
        df.interop.masked_lm.masked_language_model(causal, 8, mask_token=3)
    bert(tmp_path / "decoder", 20, is_decoder=True)
    with pytest.raises(df.DiffusionalError, match="causal"):
        load_masked_lm(tmp_path / "decoder", 8, mask_token=3)
    network = load_masked_lm(folder / "bert", 8).network
    assert isinstance(network, MaskedLanguageModel)
    assert reads_later_tokens(network.module, network.categories, 8) is True
    assert reads_later_tokens(Constant(), 20, 8) is None


class Constant(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*input_ids.shape, 20)


def test_weights_that_the_files_do_not_have_are_refused(tmp_path: Path) -> None:
    made = bert(tmp_path / "whole", 20)
    made.bert.save_pretrained(tmp_path / "headless")
    with pytest.raises(df.DiffusionalError, match="cls"):
        load_masked_lm(tmp_path / "headless", 8, mask_token=3)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(df.DiffusionalError, match="at most 64 tokens"):
        load_masked_lm(folder / "bert", 65)
    byte_pairs(tmp_path)
    bert(tmp_path, 20)
    with pytest.raises(df.DiffusionalError, match="at most 20 tokens"):
        load_masked_lm(tmp_path, 8, mask_token=3)
    with pytest.raises(df.DiffusionalError, match="nothing") as raised:
        load_masked_lm(tmp_path / "nothing", 8)
    assert "\n" not in str(raised.value)
    for option, value in (("levels", 5), ("decoder", "gaussian"), ("variant", "fp16")):
        given: Any = {option: value}
        with pytest.raises(df.DiffusionalError, match=option):
            df.load_checkpoint(f"hf:{folder / 'bert'}", **given)
    with pytest.raises(df.DiffusionalError, match="hf:NAME"):
        df.load_checkpoint(tmp_path, shift=True)


def test_two_models_are_compared_in_one_space_if_their_tokenizers_are_the_same(tmp_path: Path, folder: Path) -> None:
    first = load_masked_lm(folder / "bert", 8)
    bert(tmp_path / "other", len(word_piece(tmp_path / "other")) + 3, seed=1)
    second = df.load_checkpoint(f"hf:{tmp_path / 'other'}", first.space)
    assert second.space == first.space
    word_piece(tmp_path / "third", extra=("##q",))
    bert(tmp_path / "third", first.space.levels)
    for space in (first.space, Categorical(8, first.space.levels, "text8")):
        with pytest.raises(df.DiffusionalError, match="tokens"):
            df.load_checkpoint(f"hf:{tmp_path / 'third'}", space)


def test_a_run_refers_to_its_model(tmp_path: Path, folder: Path) -> None:
    options = {"mask_token": "<|mdm_mask|>", "shift": True}
    model = load_masked_lm(folder / "llada", 8, mask_token="<|mdm_mask|>", shift=True)
    save_reference(tmp_path, model, options)
    again = load_reference(tmp_path, model.space)
    assert isinstance(again, df.MaskedDiffusion)
    assert again.space == model.space
    x = torch.full((2, 8), 7.0)
    z = torch.where(torch.arange(8) % 2 == 0, float(model.process.mask), x)
    assert torch.equal(again.log_probs(z), model.log_probs(z))
    config = folder / "llada" / "tokenizer_config.json"
    old = config.read_text()
    config.write_text(old + " ")
    try:
        with pytest.raises(df.DiffusionalError, match=r"tokenizer_config\.json"):
            load_reference(tmp_path, model.space)
    finally:
        config.write_text(old)
