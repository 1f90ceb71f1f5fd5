"""Words of other libraries: models accept those that mean one thing; elsewhere, they are refused with the word of ours that means the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffusional as df
from diffusional import cli, words
from diffusional.errors import DiffusionalError
from diffusional.files import load_json, save_json
from diffusional.models.parameterization import PREDICTS, Prediction
from diffusional.models.reverse import VARIANCES, check_variance
from diffusional.training import config as configs
from diffusional.training.config import Config, ModelConfig, ScheduleConfig

MEANT = [
    ("predicts", "epsilon", "noise"),
    ("predicts", "eps", "noise"),
    ("predicts", "v_prediction", "v"),
    ("predicts", "sample", "data"),
    ("predicts", "x0", "data"),
    ("predicts", "START_X", "data"),
    ("variance", "fixed_small", "posterior"),
    ("variance", "fixed_small_log", "posterior"),
    ("variance", "fixedlarge", "transition"),
    ("variance", "fixed_large", "transition"),
    ("variance", "learned_range", "learned"),
    ("schedule.kind", "squaredcos_cap_v2", "cosine"),
    ("objective", "vlb", "elbo"),
    ("sampler", "loss-second-moment", "second-moment"),
    ("precision", "fp32", "no"),
]


def bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without the type checks of the tests, which would refuse the word first."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


@pytest.mark.parametrize(("option", "word", "ours"), MEANT)
def test_every_word_has_one_meaning(option: str, word: str, ours: str) -> None:
    name = option.rpartition(".")[2]
    for prefix in ("", "model."):
        if "." not in option or not prefix:
            assert f"{name}={ours!r}" in str(words.hint(prefix + option, word))


def test_no_word_is_ours_for_another_thing_or_has_two_meanings() -> None:
    own = {"predicts": PREDICTS, "variance": VARIANCES}
    for option, meanings in words._OTHERS.items():
        every = [words._plain(other) for others in meanings.values() for other in others]
        every += [words._plain(noted) for noted in words._NOTES.get(option, {})]
        assert len(every) == len(set(every)), option
        assert not set(every) & set(own.get(option, meanings)), option
        assert set(meanings) <= set(own.get(option, meanings))


def test_words_that_could_mean_two_things_are_explained() -> None:
    said = str(words.hint("predicts", "velocity"))
    assert "flow" in said
    assert "predicts=" not in said
    assert words.hint("predicts", "nonsense") is None
    assert words.hint("hidden", "epsilon") is None


@pytest.mark.parametrize(("word", "ours"), [(w, o) for option, w, o in MEANT if option == "predicts"])
def test_in_python_predictions(word: str, ours: str) -> None:
    assert df.Denoiser(torch.nn.Identity(), word).predicts == ours
    with pytest.raises(DiffusionalError, match=f"{word}.*predicts='{ours}'"):
        Prediction(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1), word)


def test_words_that_no_model_knows_are_refused() -> None:
    with pytest.raises(DiffusionalError, match=r"velocity.*df\.wrap\.flow"):
        df.Denoiser(torch.nn.Identity(), "velocity")
    with pytest.raises(DiffusionalError, match="nonsense"):
        df.Denoiser(torch.nn.Identity(), "nonsense")
    with pytest.raises(DiffusionalError, match="5"):
        words.our_word("predicts", 5, PREDICTS)


@pytest.mark.parametrize(("word", "ours"), [(w, o) for option, w, o in MEANT if option == "variance"])
def test_in_python_variances(word: str, ours: str) -> None:
    process, decoder = df.GaussianDiffusion(df.schedule.linear(10)), df.likelihood.LevelPosterior(df.Discrete((1,), 2))
    denoiser = df.Denoiser(torch.nn.Identity(), learns_variance=ours == "learned")
    assert df.DiffusionModel(process, denoiser, decoder, word).variance == ours
    with pytest.raises(DiffusionalError, match=f"{word}.*variance='{ours}'"):
        check_variance(word)


@pytest.mark.parametrize(
    ("kind", "field", "word", "ours"),
    [
        (ModelConfig, "predicts", "epsilon", "noise"),
        (ModelConfig, "variance", "fixed_large", "transition"),
        (ScheduleConfig, "kind", "squaredcos_cap_v2", "cosine"),
        (Config, "objective", "l_simple", "simple"),
    ],
)
def test_in_python_configs(kind: type, field: str, word: str, ours: str) -> None:
    made = object.__new__(kind)
    for name, value in vars(kind()).items():
        object.__setattr__(made, name, value)
    object.__setattr__(made, field, word)
    section = {ModelConfig: "model", ScheduleConfig: "schedule"}.get(kind, "")
    with pytest.raises(DiffusionalError, match=f"{field}.*{word}.*{field}='{ours}'"):
        configs._check_words(section, made)
    with pytest.raises(DiffusionalError, match=f"{field}.*{word}.*{field}='{ours}'"):
        bare(kind.__post_init__)(made)  # type: ignore[attr-defined]


def test_in_saved_configs_and_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", run, "--model.predicts", "v_prediction"])
    assert stop.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "--model.predicts v_prediction" in said
    assert "predicts='v'" in said
    assert "noise, data, v, score, levels" in said
    assert not (tmp_path / "run").exists()
    save_json(tmp_path / "config.json", {"model": {"variance": "fixed_small"}, "schedule": {"steps": 10}})
    with pytest.raises(DiffusionalError, match=r"model\.variance.*fixed_small.*variance='posterior'"):
        Config.load(tmp_path / "config.json")
    save_json(tmp_path / "config.json", Config(model=ModelConfig(predicts="noise")).to_dict())
    assert load_json(tmp_path / "config.json")["model"]["predicts"] == "noise"
