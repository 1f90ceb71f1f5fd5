"""Stages that get the variable of the stage before and the condition of the system; dropout of conditions in other models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import diffusional as df
from battery import command
from diffusional.condition_form import ConditionForm
from diffusional.conditions import dropped
from diffusional.data.joint import split_condition
from diffusional.errors import DiffusionalError
from diffusional.networks import MLP, JointAdapter
from diffusional.training.build import build_model
from diffusional.training.composite_config import CompositeConfig
from diffusional.training.composites import train_composite
from diffusional.training.config import Config, DataConfig, LatentConfig, ModelConfig, ScheduleConfig
from diffusional.training.own import own_data
from diffusional.training.run import read_run

QUIET = Console(quiet=True)
SMALL = Config(
    model=ModelConfig(widths=(8, 8), blocks=1),
    schedule=ScheduleConfig(gamma_min=-6.0, gamma_max=6.0, steps=6),
    steps=2,
    batch=16,
    validate_every=2,
)
FREE = replace(SMALL, condition_dropout=0.5)
VAE = replace(
    SMALL, model=ModelConfig(kind="vae", hidden=8, blocks=1), schedule=ScheduleConfig(), latent=LatentConfig(sizes=(3,))
)
PRIOR = replace(SMALL, model=ModelConfig(network="mlp", predicts="v", hidden=8, blocks=1))
LABELS, CAPTIONS = DataConfig(condition="label"), DataConfig(condition="caption")
TOKENS = replace(CAPTIONS, text_form="tokens")
CONFIGS = {
    "labels": CompositeConfig("cascade", {"a": FREE, "b": FREE}, LABELS, (2,), conditional=("b",)),
    "captions": CompositeConfig("cascade", {"a": SMALL, "b": FREE}, CAPTIONS, (2,), -1.0, conditional=("b",)),
    "tokens": CompositeConfig("cascade", {"a": SMALL, "b": SMALL}, TOKENS, (2,), handover=3, conditional=("b",)),
    "unclip": CompositeConfig(
        "unclip", {"encoder": VAE, "prior": PRIOR, "decoder": FREE}, CAPTIONS, conditional=("decoder",)
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_later_stages_get_the_condition_of_the_system(name: str, tmp_path: Path) -> None:
    config, folder = CONFIGS[name], tmp_path / "run"
    assert CompositeConfig.from_dict(config.to_dict()) == config
    model: Any = train_composite(config, folder, console=QUIET)
    stage = list(config.stages)[-1]
    key = "latent" if name == "unclip" else "low"
    record = read_run(folder / "stages" / stage)
    assert record.form is not None
    assert record.form.kind == "joint"
    assert record.form.parts[0][0] == key
    # What the system gives its stage is what the stage was trained with.
    run, trained = df.load_run(folder), own_data(record)
    x, c = run.encode("test")[:5], run.condition("test")
    assert c is not None
    some = c[:5] if isinstance(c, torch.Tensor) else {part: value[:5] for part, value in c.items()}
    encoded = model.encoded(x)
    item, given = model.given(stage, x, x.new_zeros(5, model.drawn), some, encoded)
    own = trained.condition_of("test", slice(0, 5))
    assert item.equal(x)
    assert set(given) == set(own)
    for part, value in own.items():
        torch.testing.assert_close(given[part], value, rtol=1e-5, atol=1e-5)
    assert trained.captions_of("test") == run.data(("test",)).captions_of("test")
    result = run.evaluate(visits=2, plan=df.Plan.uniform(run.model), audit=False)
    assert result.nelbo.n == 447
    # The later stage depends on the condition.
    with torch.no_grad():
        for parameter in model.stages[stage].parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))))
        order = torch.arange(5).roll(1)
        other = some[order] if isinstance(some, torch.Tensor) else {part: value[order] for part, value in some.items()}
        ledgers = [model.elbo(x, torch.Generator().manual_seed(0), one).totals() for one in (some, other)]
    kl = [{term: float(value.sum()) for term, value in ledger.items() if term.startswith(stage)} for ledger in ledgers]
    assert kl[0] != kl[1]
    assert model.sample(5, torch.Generator().manual_seed(0), some).shape == (5, 1, 8, 8)
    if name == "labels":
        # Both stages are guided, and the later one keeps the low resolution.
        guided = model.guided(2.0).sample(5, torch.Generator().manual_seed(0), some)
        assert guided.shape == (5, 1, 8, 8)
        assert not guided.equal(model.sample(5, torch.Generator().manual_seed(0), some))
    again = train_composite(config, folder, resume=True, console=QUIET)
    assert list(again.state_dict()) == list(df.load(folder).state_dict())


def test_samples_of_a_system_by_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_composite(CONFIGS["captions"], tmp_path / "run", console=QUIET)
    one = ["sample", tmp_path / "run", "--n", 2, "--condition", "a thick seven", "--out", tmp_path / "a.npz"]
    status, _, err = command(capsys, *one)
    assert status == 0, err
    assert (tmp_path / "a.a.png").exists()
    # A stage by itself needs the variable of the stage before as well.
    stage = ["sample", tmp_path / "run" / "stages" / "b", "--n", 2, "--out", tmp_path / "b.npz", "--condition"]
    status, _, err = command(capsys, *stage, "a thick seven")
    assert (status, "expected a split of the run's data" in err) == (2, True)
    assert command(capsys, *stage, "test:3")[0] == 0


def test_the_variable_of_the_stage_before_is_not_dropped() -> None:
    condition = {"low": torch.ones(2, 1, 2, 2), "condition": torch.tensor([3, 4])}
    some = dropped(condition, torch.tensor([False, True]), ("low",))
    assert some["low"].equal(condition["low"])
    assert some["condition"].tolist() == [3, -1]
    # The network sees that the condition is missing, in a row or in all.
    form = ConditionForm.of({"latent": torch.randn(9, 3), "condition": torch.arange(9)})
    torch.manual_seed(0)
    network = JointAdapter(MLP((4,), hidden=8, condition_dim=JointAdapter.numbers(form, True)), form, null=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    z, latent = torch.randn(2, 4), torch.randn(2, 3)
    without = network(z, torch.zeros(2), {"latent": latent})
    found = network(z, torch.zeros(2), {"latent": latent, "condition": torch.tensor([0, -1])})
    assert found[1].equal(without[1])
    assert not found[0].allclose(without[0])
    strict = JointAdapter(MLP((4,), hidden=8, condition_dim=JointAdapter.numbers(form, False)), form)
    for given, match in (
        ({"latent": latent}, "only 'latent'"),
        (None, "'latent' was not given"),
        (latent, "'latent' was not given"),
    ):
        with pytest.raises(DiffusionalError, match=match):
            strict(z, torch.zeros(2), given)
    with pytest.raises(DiffusionalError, match="label 9"):
        strict(z, torch.zeros(2), {"latent": latent, "condition": torch.tensor([0, 9])})
    with pytest.raises(DiffusionalError, match=r"shape \(2, 3\)"):
        strict(z, torch.zeros(2), {"latent": latent[:, :2], "condition": torch.tensor([0, 1])})


def test_forms_of_two_conditions() -> None:
    tokens = {
        "low": torch.zeros(3, 1, 4, 4),
        "tokens": torch.zeros(3, 5, 2),
        "mask": torch.ones(3, 5, dtype=torch.bool),
    }
    form = ConditionForm.of(tokens)
    assert [part.kind for _, part in form.parts] == ["image", "tokens"]
    assert ConditionForm.from_dict(form.to_dict()) == form
    form.check(tokens, 3)
    with pytest.raises(DiffusionalError, match=r"tokens \(3, 5, 2\)"):
        form.check({**tokens, "tokens": torch.zeros(3, 5, 4)}, 3)
    with pytest.raises(DiffusionalError, match="low"):
        form.check(torch.zeros(3, 1), 3)
    for wrong in ({"kind": "joint"}, {"kind": "joint", "parts": {"a": {}, "b": {}}}):
        with pytest.raises(DiffusionalError, match="form of a condition"):
            ConditionForm.from_dict(wrong)


def test_combinations_that_do_not_fit() -> None:
    for wrong in ("label + quantised:2", "label + caption", "quantised:2 + "):
        with pytest.raises(DiffusionalError, match="before the"):
            split_condition(wrong)
    stages = {"a": SMALL, "b": SMALL}
    with pytest.raises(DiffusionalError, match=r"among b .*'a'"):
        CompositeConfig("cascade", stages, LABELS, (2,), conditional=("a",))
    with pytest.raises(DiffusionalError, match=r"among none .*'prior'"):
        CompositeConfig("latent", {"autoencoder": VAE, "prior": PRIOR}, LABELS, conditional=("prior",))
    with pytest.raises(DiffusionalError, match="without a condition"):
        CompositeConfig("cascade", stages, DataConfig(), (2,), conditional=("b",))
    record = CONFIGS["labels"].to_dict()
    with pytest.raises(DiffusionalError, match="conditional to be a list"):
        CompositeConfig.from_dict(record | {"conditional": "b"})
    del record["conditional"]
    assert CompositeConfig.from_dict(record).conditional == ()
    form = ConditionForm.of({"low": torch.zeros(3, 1, 4, 4), "condition": torch.arange(3)})
    config = replace(
        SMALL, data=DataConfig(condition="quantised:2 + label"), model=replace(SMALL.model, network="ddpm")
    )
    with pytest.raises(DiffusionalError, match="unet or vdm"):
        build_model(config, df.Discrete((1, 8, 8), 17), form=form)


@pytest.mark.parametrize("kind", ["binomial-diffusion", "gaussian-chain"])
def test_condition_dropout_of_other_models(kind: Any, tmp_path: Path) -> None:
    raw = {
        split: torch.randint(0, 2, (n, 4), generator=torch.Generator().manual_seed(n))
        for split, n in (("train", 90), ("validation", 30), ("test", 30))
    }
    condition = {split: items[:, 0].long() for split, items in raw.items()}
    data = df.data.Dataset("bits", df.Discrete((4,), 2), **raw, condition=condition, classes=("no", "yes"))
    model = ModelConfig(kind=kind, network="mlp", hidden=16, blocks=1, dropout=0.0)
    config = Config(model=model, schedule=ScheduleConfig(steps=4), batch=30, steps=60, condition_dropout=0.3)
    found = df.train(replace(config, validate_every=60), tmp_path / "run", data, console=QUIET)
    x, c = data.encode("test"), data.condition_of("test")

    def bound(condition: Any) -> float:
        with torch.no_grad():
            return float(found.elbo(x, torch.Generator().manual_seed(0), condition).nelbo.mean())

    assert bound(c) < bound(1 - c)
    assert bound(None) == bound(dropped(c)) != bound(c)


def test_condition_dropout_is_refused_where_the_networks_need_a_condition() -> None:
    for kind in ("vae", "hierarchical-vae"):
        with pytest.raises(DiffusionalError, match=f"condition_dropout.*{kind}"):
            Config(model=ModelConfig(kind=kind), condition_dropout=0.1)  # type: ignore[arg-type]
