"""The shell commands of the pages that a newcomer follows run as they stand, in order, and write the files that they name.

A page runs in a folder of its own with the data and runs that it presumes (`WORLD`). `smaller` is what the test changes in a command, so that it
takes seconds: fewer steps of training and smaller networks, fewer draws and samples, and larger target errors. Everything else is that
of the page. What does not run stands in `NOT_RUN`, with the reason.
"""

import itertools
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from battery import command
from diffusional import cli

ROOT = Path(__file__).parents[1]

# Commands that no test runs as they stand, by a part of them, with the reason.
NOT_RUN = {
    "pip install": "installs packages from the network",
    "python3 -m venv": "makes an environment",
    "tools/kills.py": "kills trainings for minutes; tests/training/test_kills.py",
    "make ": "is a whole battery or demo; CI runs them",
    "google/ddpm-cifar10-32": "downloads from the Hub",
    "hf:distilbert": "downloads from the Hub",
    "hf:owner/images": "downloads from the Hub",
    "minilm": "downloads an encoder of texts from the Hub",
    "--preset vdm": "trains on CIFAR-10, which is downloaded, for days",
    "--composite digits-cascade": "trains two stages; tests/training/test_composites.py runs it",
    "diffusional claims": "takes a minute; tests/test_claims.py checks every claim",
    "hf:FOLDER": "FOLDER and OTHER stand for models; tests/cli/test_language_models.py runs these commands",
    "--preset laptop": "has networks for 28 × 28 pixels, with minutes of training; tests/cli/test_presets.py",
    "path/to/mnist": "trains on MNIST, which is not in the repository",
    "./ddpm": "stands for a checkpoint of diffusers; tests/cli/test_checkpoints.py makes its report",
    "my-pipeline/": "stands for a checkpoint of diffusers; tests/cli/test_check_score.py checks one",
    "runs/mnist": "is a run on MNIST, which is not in the repository",
}
# Commands that may end in status 3, since they doubt their number: networks of two steps give them reason to, here or on another machine.
DOUBTED = ("diffusional evaluate", "diffusional score", "diffusional classify", "diffusional information")
TRAIN = ("--batch", "8", "--steps", "2")
CONVOLUTIONS = ("--model.widths", "8", "8", "--model.blocks", "1")


def commands(page: str) -> list[str]:
    """The commands of a page in their order, without comments, whether they stand in a block or in a table."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    start = "diffusional|pip|python3?|make|torchrun|accelerate"
    found = re.findall(rf"^(?: *|\| [^|\n]* \| `)((?:{start}) [^`\n]*)", text, flags=re.MULTILINE)
    return [line for one in found if "…" not in (line := re.split(r" +#", one)[0].strip()) and "|" not in line]


def why_not(line: str) -> str | None:
    """Why a command is not run; None if it is."""
    return next((reason for part, reason in NOT_RUN.items() if part in line), None)


def _with(args: list[str], option: str, value: str) -> list[str]:
    """The arguments with another value of an option, which is added if it is missing."""
    if option not in args:
        return [*args, option, value]
    at = args.index(option)
    return [*args[: at + 1], value, *args[at + 2 :]]


def smaller(args: list[str]) -> list[str]:
    """The arguments of a command with less work."""
    name = args[0]
    if name == "train":
        kept = [one for one in args if one != "--profile"]
        for option in ("--steps", "--validate-every"):
            if option in kept:
                kept = _with(kept, option, "4" if "--resume" in kept else "2")
        if "--resume" in kept:
            return kept
        kept = _with(_with(kept, "--steps", "2"), "--batch", "8")
        own = "--model.kind" in kept or ("--data.name" in kept and kept[kept.index("--data.name") + 1] == "text")
        return (
            [*kept, "--model.hidden", "8"]
            if own or any(one.endswith(".csv") for one in kept)
            else [*kept, *CONVOLUTIONS]
        )
    if name == "evaluate" and not {
        "--sweep",
        "--visits",
        "--estimator",
        "--witnesses",
        "--item-error",
        "--guidance",
    } & {*args}:
        args = _with(args, "--error", "0.5")
    for commanded, option, value in (
        ("evaluate", "--visits", "2"),
        ("evaluate", "--item-error", "3"),
        ("evaluate", "--k", "2"),
        ("score", "--visits", "2"),
        ("score", "--shown", "1"),
        ("classify", "--max-visits", "4"),
        ("sample", "--n", "10" if "all" in args else "4"),
        ("report", "--samples", "2"),
        ("report", "--items", "4"),
        ("report", "--visits", "2"),
        ("report", "--error", "0.5"),
        ("information", "--timesteps", "3"),
    ):
        given = option in args
        if name == commanded and (
            given or (name in ("score", "classify", "report", "information") and "--saved" not in args)
        ):
            args = _with(args, option, "0" if given and args[args.index(option) + 1] == "0" else value)
    # A classifier's probabilities are for all items.
    if name == "classify" and "--probabilities" not in args:
        args = _with(args, "--most", "6")
    if "--sweep" in args:
        args = [*args, "--draws", "1", "--cells", "8"]
    if name == "evaluate" and {"--witnesses", "--estimator"} & {*args}:
        args = _with(_with(args, "--items", "2"), "--steps", "10")
    # A code of a chain in continuous time takes hundreds of latents.
    return _with(args, "--steps", "20") if name == "compress" else args


def written(args: list[str]) -> list[Path]:
    """The files that a command names."""
    found = [Path(args[1]) / "model.safetensors"] if args[0] == "train" else []
    options = ("-o", "--out", "--json", "--per-item", "--figure", "--html", "--rate-distortion", "--maps")
    return found + [Path(value) for option, value in itertools.pairwise(args) if option in options]


def images(folder: Path, count: int = 40, shape: tuple[int, int] = (8, 8)) -> None:
    """Greyscale PNGs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i:02}.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and tiny runs on the digits: one, one with labels and one of another family."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    np.save(folder / "mine.npy", rng.integers(0, 17, (60, 1, 8, 8), dtype=np.uint8))
    np.save(folder / "images.npy", rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8))
    np.save(folder / "letters.npy", rng.integers(0, 17, (12, 1, 8, 8), dtype=np.uint8))
    np.save(folder / "new.npy", rng.integers(0, 17, (6, 1, 8, 8), dtype=np.uint8))
    chances = rng.random((447, 10))
    np.save(folder / "r.npy", chances / chances.sum(1, keepdims=True))
    np.savez(
        folder / "images.npz", x=rng.integers(0, 256, (60, 1, 8, 8)), emb=rng.normal(size=(60, 3, 8)).astype(np.float32)
    )
    rows = [f"{height:.3f},{age:.2f},{weight:.2f}" for height, age, weight in rng.normal(40, 9, (80, 3))]
    (folder / "rows.csv").write_text("\n".join(["height,age,weight", *rows]), encoding="utf-8")
    (folder / "mine.toml").write_text('[data]\nname = "mine.npy"\nlevels = 17\n', encoding="utf-8")
    images(folder / "my" / "images")
    images(folder / "new" / "images", 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, *options in (
            ("digits", *CONVOLUTIONS),
            ("classes", "--condition", "label", *CONVOLUTIONS),
            ("vae", "--model.kind", "vae", "--model.hidden", "8"),
        ):
            cli.main(["train", f"runs/{name}", "--data", "digits", *options, *TRAIN])
    return folder


# The pages, with the runs that they presume: names by the run of the world that they are copies of.
PAGES: dict[str, dict[str, str]] = {
    "README.md": {"other": "mine"},
    "docs/start.md": {},
    "docs/data.md": {},
    "docs/scores.md": {"digits": "digits", "mine": "digits"},
    "docs/schedules.md": {},
    "docs/report.md": {"digits": "digits", "vae": "vae", "large": "digits", "a": "digits", "b": "digits"},
    "docs/evaluation.md": {"demo": "digits", "other": "vae"},
    "docs/codec.md": {"digits": "digits"},
    "docs/witnesses.md": {"digits": "digits"},
    "docs/training.md": {},
    "docs/autoencoders.md": {},
    "docs/information.md": {"mine": "digits", "larger": "digits"},
    "docs/conditions.md": {"digits": "digits", "labels": "classes", "plain": "digits"},
}


# Pages that take a minute, and commands that run on those only.
SLOW_COMMANDS = ("--witnesses",)
_SLOW = ("docs/codec.md", "docs/witnesses.md", "docs/conditions.md")


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in _SLOW)) for page in PAGES])
def test_the_commands_of_a_page_run(
    page: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world, tmp_path / "page", ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(tmp_path / "page")
    for line in commands(page):
        if why_not(line) is not None or (page not in _SLOW and any(part in line for part in SLOW_COMMANDS)):
            continue
        for name, run in PAGES[page].items():
            # A run that the page presumes: one of the world, or a copy of one that it has trained before.
            if f"runs/{name}" in line and not (place := Path("runs") / name).exists():
                shutil.copytree(world / "runs" / run if (world / "runs" / run).exists() else Path("runs") / run, place)
        program, *args = shlex.split(line)
        assert program == "diffusional", line
        args = smaller(args)
        status, _printed, error = command(capsys, *args)
        assert status in ((0, 3) if any(part in line for part in DOUBTED) else (0,)), (line, args, error)
        assert [path for path in written(args) if not path.exists()] == [], line


def test_what_does_not_run_has_a_reason_that_is_needed() -> None:
    every = [line for page in PAGES for line in commands(page)]
    assert [part for part in NOT_RUN if not any(part in line for line in every)] == []
    run = [line for line in every if why_not(line) is None]
    assert len(run) > 80
    assert len(run) > 2 * (len(every) - len(run))


def test_a_smaller_command_is_the_same_with_less_work() -> None:
    """Options that the page gives keep their place; nothing else of them changes."""
    assert smaller(["evaluate", "runs/a", "runs/b", "--error", "0.01", "--json", "ab.json"]) == [
        *("evaluate", "runs/a", "runs/b", "--error", "0.5", "--json", "ab.json"),
    ]
    assert smaller(["sample", "runs/a", "--n", "64"]) == ["sample", "runs/a", "--n", "4"]
    assert smaller(["plot", "runs/a", "-o", "a.svg"]) == ["plot", "runs/a", "-o", "a.svg"]
    assert written(["plot", "runs/a", "-o", "a.svg", "--json", "a.json"]) == [Path("a.svg"), Path("a.json")]
    assert smaller(["train", "runs/a", "--resume", "--steps", "4000"]) == [
        "train",
        "runs/a",
        "--resume",
        "--steps",
        "4",
    ]
