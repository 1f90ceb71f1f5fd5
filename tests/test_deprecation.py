"""Old names work for one more version, with a DeprecationWarning."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import diffusional as df
from diffusional import deprecation, evaluation, information, timesteps
from diffusional.cli.commands import Information, Train
from diffusional.cli.parse import parse
from diffusional.data import formats
from diffusional.evaluation import ranks, visit_records
from diffusional.information import estimates
from diffusional.models.binomial import BinomialDiffusionModel
from diffusional.training import batches, metrics_logger, process_group, recipes

SCHEDULE = df.schedule.log_snr_linear(-4.0, 4.0, steps=9)
LINE = torch.tensor([[-1.0], [1.0]])
HALVES = df.exact.Finite(LINE)


def model() -> df.DiffusionModel:
    space = df.Discrete((1,), 2)
    return df.DiffusionModel(
        df.GaussianDiffusion(SCHEDULE), df.Denoiser(lambda z, log_snr: z, "data"), df.likelihood.LevelPosterior(space)
    )


class Reversible(BinomialDiffusionModel):
    """Its reverse step returns what it is given."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def reverse(self, *args: Any) -> Any:
        return args


# By the old name, and by the new one.
NAMES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "df.levels": (lambda: df.levels, lambda: df.timesteps),
    "levels.LevelSampler": (lambda: timesteps.LevelSampler, lambda: timesteps.TimestepSampler),
    "levels.SampledLevels": (lambda: timesteps.SampledLevels, lambda: timesteps.SampledTimesteps),
    "information.Chain": (lambda: information.Chain, lambda: information.ChainRule),
    "information.Draws": (lambda: information.Draws, lambda: information.Estimates),
    "information.chain": (lambda: information.chain, lambda: information.chain_rule),
    "recipes.levels": (lambda: recipes.levels, lambda: recipes.images),
    "kinds.kind_of": (lambda: formats.kind_of, lambda: formats.format_of),
    "draws.Draws": (lambda: visit_records.Draws, lambda: visit_records.VisitRecords),
    "information.draws.Draws": (lambda: estimates.Draws, lambda: estimates.Estimates),
    "processes.count": (lambda: ranks.count, lambda: ranks.world_size),
    "exchange.Exchange": (lambda: process_group.Exchange, lambda: process_group.ProcessGroup),
    "feed.Feed": (lambda: batches.Feed, lambda: batches.BatchLoader),
    "journal.Journal": (lambda: metrics_logger.Journal, lambda: metrics_logger.MetricsLogger),
    "Chain.levels": (lambda: model().levels, lambda: model().timesteps),
    "BinomialDiffusionModel.backward": (lambda: Reversible().backward(1, 2), lambda: Reversible().reverse(1, 2)),
    "curve(levels=)": (
        lambda: information.curve(HALVES, SCHEDULE, levels=3, samples=2, generator=generator()).to_json(),
        lambda: information.curve(HALVES, SCHEDULE, timesteps=3, samples=2, generator=generator()).to_json(),
    ),
    **{
        f"{name}.sample(levels=)": (
            lambda made=made: made().sample(4, levels=3, generator=generator()).level.tolist(),
            lambda made=made: made().sample(4, timesteps=3, generator=generator()).level.tolist(),
        )
        for name, made in (
            ("Uniform", timesteps.Uniform),
            ("Adaptive", timesteps.Adaptive),
            ("SecondMoment", timesteps.SecondMoment),
        )
    },
    "SecondMoment.mass(levels=)": (
        lambda: timesteps.SecondMoment().mass(levels=3).tolist(),
        lambda: timesteps.SecondMoment().mass(timesteps=3).tolist(),
    ),
    "position(levels=)": (
        lambda: timesteps.position(torch.tensor(2), levels=4).item(),
        lambda: timesteps.position(torch.tensor(2), timesteps=4).item(),
    ),
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", NAMES)
def test_old_names_work_and_warn(name: str) -> None:
    old, new = NAMES[name]
    with pytest.warns(DeprecationWarning, match="is now called"):
        found = old()
    assert found == new()


@pytest.mark.parametrize("old", deprecation.MODULES)
def test_old_modules_are_the_new_ones(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {deprecation.MODULES[old]}"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(deprecation.MODULES[old])
    assert found.__spec__ is not None
    assert found.__spec__.name == found.__name__ == deprecation.MODULES[old]
    sys.modules.pop(old, None)


def test_overrides_of_old_names_are_used() -> None:
    with pytest.warns(DeprecationWarning, match="Six overrides Chain.levels, which is now called timesteps"):

        class Six(df.Chain):
            @property
            def levels(self) -> int:
                return 6

    assert Six().timesteps == Six().levels == 6


def test_overrides_of_old_methods_can_call_those_above() -> None:
    with pytest.warns(DeprecationWarning, match="Counting overrides BinomialDiffusionModel.backward"):

        class Counting(Reversible):
            def backward(self, *args: Any) -> Any:
                with pytest.warns(DeprecationWarning, match=r"BinomialDiffusionModel\.backward is now called"):
                    return 1, *super().backward(*args)

    with pytest.warns(DeprecationWarning, match="Twice overrides BinomialDiffusionModel.backward"):

        class Twice(Counting):
            def backward(self, *args: Any) -> Any:
                return 2, *super().backward(*args)

    assert Counting().reverse(5) == Counting().backward(5) == (1, 5)
    assert Twice().reverse(5) == Twice().backward(5) == (2, 1, 5)


# A line for each kind of name. Python shows a DeprecationWarning only if it points to code in __main__.
KINDS = """import diffusional as df
from diffusional.data.kinds import format_of
df.levels
df.training.recipes.levels
df.timesteps.Uniform().sample(4, levels=3)
df.BinomialDiffusionModel.__new__(df.BinomialDiffusionModel).backward
class Nine(df.Chain): levels = 9
class Costs(df.Chain): _kl_at = None
"""


def test_warnings_point_to_the_code_that_uses_the_old_name() -> None:
    done = subprocess.run([sys.executable, "-c", KINDS], capture_output=True, text=True, check=True)
    for line in range(2, 9):
        assert f"<string>:{line}: DeprecationWarning" in done.stderr


def test_both_names_of_an_argument_are_refused() -> None:
    with pytest.raises(TypeError, match="timesteps and levels"):
        timesteps.Uniform().sample(4, levels=3, timesteps=3)  # type: ignore[call-arg]


def test_old_words_of_the_command_line() -> None:
    with pytest.warns(FutureWarning, match="--levels-shown is now called --timesteps"):
        shown = parse(["information", "digits", "--levels-shown", "7"])
    assert isinstance(shown, Information)
    assert shown.timesteps == 7
    for typed in (["--preset", "levels"], ["--preset=levels"]):
        with pytest.warns(FutureWarning, match="--preset levels is now called --preset images"):
            named = parse(["train", "runs/a", *typed])
        assert isinstance(named, Train)
        assert (named.preset, named.config) == ("images", recipes.images())


def test_ambiguous_keys_have_a_second_name() -> None:
    result = evaluation.Evaluation.from_scores(torch.ones(3), dimensions=4, provenance={"levels": 17})
    record = result.to_json()
    assert record["data_levels"] == record["levels"] == 17
    # Records without it, written by earlier versions, are read.
    del record["data_levels"]
    assert evaluation.Evaluation.from_json(record).to_json()["data_levels"] == 17
