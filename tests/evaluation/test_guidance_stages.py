"""The table over guidance weights of systems of several stages."""

import pytest
import torch

import diffusional as df
from diffusional import likelihood
from diffusional.errors import DiffusionalError
from diffusional.evaluation import guidance
from models.test_guided_composite import DATA, LABEL, diffusion, systems

SYSTEMS = ["frozen encoder", "frozen posterior", "cascade"]


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("stages", [None, ["decoder"]])
def test_a_table_of_a_system_has_the_numbers_of_its_guided_evaluations(
    name: str, stages: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guidance, "_STAGES_BLOCK", 12)  # two items
    model, c = systems()[name], {"label": LABEL}
    for stage in model.modules():
        if isinstance(stage, df.DiffusionModel):
            stage.likelihood = likelihood.GaussianLikelihood(stage.space, assisted=False)
    weights = (-0.5, 0.0, 1.0, 2.5)
    plan = df.Plan.fit(model.visited(), DATA, 200, condition=c)
    table = df.guidance_table(model, DATA, weights, condition=c, visits=6, plan=plan, seed=3, stages=stages)
    for w, nelbo, column in zip(weights, table.nelbo, table.items.T, strict=True):
        guided = model.guided(w, stages=stages)
        result = df.evaluate(guided, DATA, visits=6, plan=plan, condition=c, seed=3, audit=False)
        assert column == pytest.approx(result.per_item["nelbo"], abs=1e-8, rel=1e-8)
        assert nelbo.value == pytest.approx(result.nelbo.value, abs=1e-8, rel=1e-8)
    assert set(table.stages) == set(stages or ("prior", "decoder"))
    for k, rise in enumerate(table.rise):
        assert sum(rises[k].value for rises in table.stages.values()) == pytest.approx(rise.value, abs=1e-9)
    # The least value of the quadratic through the three bounds of other weights.
    a, b, c2 = torch.linalg.solve(
        torch.tensor([[1.0, w, w * w] for w in weights[:3]], dtype=torch.float64),
        torch.tensor([one.value for one in table.nelbo[:3]], dtype=torch.float64),
    ).tolist()
    assert table.curvature.value == pytest.approx(c2, rel=1e-6)
    assert table.optimum == pytest.approx(-b / (2 * c2), rel=1e-6)
    assert table.nelbo[3].value == pytest.approx(a + b * 2.5 + c2 * 2.5**2, rel=1e-8)
    least, most = (len(DATA) * 6 * n for n in (1, 2))
    assert least < table.direct.network_evaluations <= most
    assert (table.direct.network_evaluations == most) == (stages is None)


def test_the_decoder_of_a_stage_that_takes_the_network_is_no_quadratic() -> None:
    model, c, weights = systems()["cascade"], {"label": LABEL}, (0.5, 3.0)
    plan = df.Plan.fit(model.visited(), DATA, 200, condition=c)
    table = df.guidance_table(model, DATA, weights, condition=c, visits=6, plan=plan)
    assert table.optimum is None
    for w, column in zip(weights, table.items.T, strict=True):
        result = df.evaluate(model.guided(w), DATA, visits=6, plan=plan, condition=c, audit=False)
        assert column == pytest.approx(result.per_item["nelbo"], abs=1e-8, rel=1e-8)
    assert "prior" in str(table)
    assert set(table.to_dict()["stages"]) == {"prior", "decoder"}


def test_what_a_table_of_a_system_refuses() -> None:
    model = systems()["cascade"]
    with pytest.raises(DiffusionalError, match="4 rows for 5"):
        df.guidance_table(model, DATA, condition={"label": LABEL[:4]})
    with pytest.raises(DiffusionalError, match="base"):
        df.guidance_table(model, DATA, condition={"label": LABEL}, stages=["base"])
    single = diffusion(3)
    with pytest.raises(DiffusionalError, match="stages"):
        df.guidance_table(single, DATA, condition={"label": LABEL}, stages=["prior"])
