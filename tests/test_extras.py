"""The core works without the packages that only parts of the library need, and those parts name what to install."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from battery import HANGS, environment
from diffusional.errors import DiffusionalError
from diffusional.extras import MissingPackageError, needed_for

ROOT = Path(__file__).parents[1]
CORE = {"torch", "numpy", "scipy", "safetensors", "jaxtyping"}

# Trains a model by hand and evaluates it to a target with only the core; then prints the error of every other part.
SCRIPT = """
import sys
BLOCKED = sys.argv[1].split(",")
sys.modules.update(dict.fromkeys(BLOCKED))

import torch
import diffusional as df
from diffusional import baselines, exact, networks, schedule

torch.manual_seed(0)
space = df.Continuous((2,))
net = networks.MLP((2,), hidden=16, depth=1)
process = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=20))
model = df.DiffusionModel(process, df.Denoiser(net, "v"), df.likelihood.GaussianLikelihood(space))
x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
adam = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(5):
    loss = model.loss(x)
    adam.zero_grad()
    loss.backward()
    adam.step()
result = df.evaluate(model, x, 0.3, "nats")
assert result.reached and result.nelbo.error <= 0.3
baselines.FullGaussian.fit(x, space)
loaded = [name for name in BLOCKED if sys.modules.get(name) is not None]
assert not loaded, loaded
print("evaluated")

for code in (
    "from diffusional.training.loop import train",
    "from diffusional import cli",
    "import diffusional.data; diffusional.data.load('digits')",
    "import diffusional.data.tables",
    "import diffusional.report.figures",
    "networks.ddpm_unet(1, (8, 8), widths=(32,), attention=())",
):
    try:
        exec(code)
    except df.DiffusionalError as error:
        print(error)
"""


def test_the_core_trains_and_evaluates_without_the_rest() -> None:
    blocked = ("diffusers", "tyro", "matplotlib", "sklearn", "pyarrow", "rich", "accelerate", "datasets")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ",".join(blocked)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    first, *errors = done.stdout.splitlines()
    assert first == "evaluated"
    wanted = ("training", "cli", "digits", "tables", "report", "diffusers")
    assert len(errors) == len(wanted)
    for error, extra in zip(errors, wanted, strict=True):
        assert f'pip install "diffusional[{extra}]"' in error


NOT_BY_DEFAULT = {"codec", "dev", "docs", "hub", "minilm", "tensorboard", "text"}


def test_extras_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = project["optional-dependencies"]
    extras = {name: rows for name, rows in every.items() if name not in NOT_BY_DEFAULT}
    # A plain `pip install` has all of these.
    assert {row for rows in extras.values() for row in rows} | {
        row for row in project["dependencies"] if row.partition(">")[0] in CORE
    } == set(project["dependencies"])
    used = [
        text
        for path in (ROOT / "src").rglob("*.py")
        for text in path.read_text(encoding="utf-8").split('needed_for("')[1:]
    ]
    assert set(extras) <= {text.partition('"')[0] for text in used} <= set(every)


def test_other_errors_of_an_import_are_left_as_they_are() -> None:
    with pytest.raises(MissingPackageError, match="scikit-learn") as caught, needed_for("digits"):
        raise ModuleNotFoundError("no", name="sklearn.datasets")
    assert isinstance(caught.value, DiffusionalError)
    with pytest.raises(ModuleNotFoundError, match="own"), needed_for("digits"):
        raise ModuleNotFoundError("own", name="diffusional.none")
    with pytest.raises(ZeroDivisionError), needed_for("digits"):
        _ = 1 / 0
