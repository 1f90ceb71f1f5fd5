"""What can be typed: one dataclass a command. Imports no torch, so that `--help` is instant."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from diffusional.training.config import Config, DataConfig

# Where a command leaves its result as JSON.
Json = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="Write the result as JSON; - for standard output.")]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="The run folder.")]


# What each preset is, in the help of --preset.
_PRESETS = """A config that was found to work; options typed beside it override it.
digits: a diffusion model of the embedded digits, about a minute.
digits-vae: a VAE, for as long.
digits-hierarchical-vae: two layers of latents.
digits-diffusion-prior: the VAE with a diffusion over its latent.
essay, essay-tuned: a chain of five steps with free means and variances; the second has a better schedule.
laptop: MNIST in ten minutes on two cores (--data its folder).
levels: the same system at the size of a GPU, for your images.
sohl-dickstein-2015, sohl-dickstein-2015-binary, ddpm, iddpm, vdm: as their authors defined them, of CIFAR-10 (of binary data).
"""


@dataclass(frozen=True)
class Demo:
    """Train three models on real digits and itemise their bounds. A diffusion model, a VAE and a hierarchical VAE: under five
    minutes on two cores, --quick under two."""

    out: Path = Path("runs/demo")
    """Folder for the run and its pictures; an existing one is left alone and a number is added."""
    steps: int | None = None
    """Optimiser steps of the diffusion model, in place of the recipe's; the others train for as long."""
    quick: bool = False
    """A shorter training, for bounds that are a little worse."""
    seed: int = 0
    """Of weights, batches and noise."""
    max_seconds: float | None = None
    """May stop the training early."""
    json: Json = None


@dataclass(frozen=True)
class Train:
    """Train a model by its ELBO. A diffusion model, or a VAE (--model.kind). A run is a folder; --resume continues it, and --from RUN
    starts a new one from the weights of another."""

    run: Run
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    preset: Annotated[
        Literal[
            "digits",
            "digits-vae",
            "digits-hierarchical-vae",
            "digits-diffusion-prior",
            "essay",
            "essay-tuned",
            "laptop",
            "levels",
            "sohl-dickstein-2015",
            "sohl-dickstein-2015-binary",
            "ddpm",
            "iddpm",
            "vdm",
        ]
        | None,
        tyro.conf.arg(metavar="NAME", help=_PRESETS),
    ] = None
    config_file: Annotated[
        Path | None,
        tyro.conf.arg(
            name="config",
            metavar="FILE",
            help="Read the config from a JSON or TOML file, such as the config.json of a run; options typed beside it override it.",
        ),
    ] = None
    resume: bool = False
    """Continue the run in the folder, with its own config. With --steps N, beyond its end."""
    profile: bool = False
    """Show where a step's time goes, and write it to RUN/profile.json."""
    json: Json = None


@dataclass(frozen=True)
class Evaluate:
    """The bound of a data set, itemised, to a stated error. The NELBO under a trained model; of two runs their difference, paired."""

    run: Run
    other: Annotated[
        Path | None,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="[RUN B]", help="A second run: the difference RUN − RUN B is evaluated, with common noise."
        ),
    ] = None
    data: str | None = None
    """A data set, as for train: all its items are evaluated, in its order. Defaults to the run's own data."""
    columns: tuple[str, ...] | None = None
    """Columns of a table to read, if it has more than the run was trained on. Columns are matched by name."""
    decimal: Literal[".", ","] | None = None
    """The decimal mark of a text table, if its values do not show it."""
    condition: str | None = None
    """The column or key that holds the labels of --data, for a run trained with --data.condition. Defaults to the run's own."""
    levels: int | None = None
    """Number of integer levels of the data; must be the run's."""
    split: Literal["train", "validation", "test", "all"] | None = None
    """Defaults to test for the run's own data, under any file name, and to all for other data."""
    error: float | None = None
    """Monte Carlo error of the data set's mean to reach; 0.01 bits/dim unless another target is given."""
    unit: Literal["bits/dim", "nats"] = "bits/dim"
    """Of --error and --item-error."""
    item_error: float | None = None
    """Draw until every item's own score has this error."""
    visits: int | None = None
    """So many network evaluations for every item, whatever the error."""
    max_evaluations: int | None = None
    """The most network evaluations of the draws and the audit; exit status 3 if they do not suffice. The pilot of the run's plan, which is
    learned once, is not included."""
    importance_weighted: int | None = None
    """Report the importance-weighted bound of so many draws as well. A draw costs T network evaluations of a diffusion, 1 of a VAE."""
    per_item: Path | None = None
    """A .csv or .npz file for the score of every item, with its error, file, row and split; of two runs, both scores and their difference."""
    plan: Path | None = None
    """A plan.json; RUN/plan.json unless given, learned on the run's training data where there is none."""
    sweep: bool = False
    """The reference: every level for every item."""
    draws: int | None = None
    """With --sweep: sweeps over the levels; 1 for T ≥ 50, else 8."""
    cells: int | None = None
    """With --sweep: cells of [0, 1] in continuous time; 1000 unless given."""
    steps: int | None = None
    """Another T than the run's own."""
    continuous: bool = False
    """Continuous time (T = ∞), whatever T the run has."""
    no_audit: bool = False
    """Don't look at every level once for costs that the plan doesn't expect."""
    seed: int = 0
    """Of the noise; the same seed gives the same number."""
    json: Json = None


@dataclass(frozen=True)
class Sample:
    """Draw from a trained model. By its own chain or by DDIM."""

    run: Run
    n: int = 16
    """How many."""
    method: Literal["ancestral", "ddim"] = "ancestral"
    """ancestral: the model's own chain."""
    steps: int | None = None
    """Another T than the run's own (250 for runs in continuous time)."""
    eta: float = 0.0
    """Noise of DDIM, 0 to 1."""
    seed: int = 0
    """Of the noise; the same seed gives the same samples."""
    label: tuple[str, ...] | None = None
    """Class names, or class numbers if the classes have no numbers as names, for a run trained with --data.condition. Several are used in turn, one for each
    sample; `all` stands for every class."""
    out: Path | None = None
    """An .npz file for the samples, as raw data, and the names of a table's columns. Defaults to RUN/samples.npz; images are also drawn
    in a .png beside it."""
    json: Json = None


@dataclass(frozen=True)
class Information:
    """What latents know of the data, I(x; z_t). Of a data set and a schedule, before any training; of a run, where its nats
    go, beside another's; of a VAE's run, what its latents know."""

    data: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="DATA|RUN", help='"digits", or a path, as for train; or a diffusion model\'s run folder.'
        ),
    ]
    reference: Path | None = None
    """For a run: a second run, whose costs its own are compared with, level by level, under the same noise."""
    schedule: Literal["linear", "cosine", "log_snr_linear"] = "linear"
    """DDPM's linear, improved DDPM's cosine, or linear in log SNR."""
    steps: int | None = None
    """T latents; 1000 unless given, and continuous time for log_snr_linear."""
    gamma_min: float | None = None
    """γ_1 = −log SNR of the cleanest latent (log_snr_linear)."""
    gamma_max: float | None = None
    """γ_T (log_snr_linear)."""
    beta_start: float | None = None
    """β_1 (linear)."""
    beta_end: float | None = None
    """β_T (linear)."""
    levels: int | None = None
    """How many integer levels the data have (256 for 8-bit images)."""
    split: Literal["train", "validation", "test", "all"] | None = None
    """train unless given; test for a run."""
    levels_shown: int = 50
    """How many t, evenly spread from 1 to T; of two runs, cells of levels."""
    samples: int = 2000
    """Draws of an item and its noise; each is looked at on every level."""
    seed: int = 0
    """Of the draws."""
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="Draw the curve, as .png.")] = None
    json: Json = None


@dataclass(frozen=True)
class Claims:
    """Measure nine claims about the bound, with controls. C1 to C9, each beside a control that must fail; exit status 1 where one is not so."""

    only: tuple[str, ...] | None = None
    """Some of them, such as C1 C5."""
    seed: int = 0
    """Draws the worlds, networks and noise."""
    json: Json = None


@dataclass(frozen=True)
class NamedData(DataConfig):
    """The options of data, as train has them after --data."""

    name: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="NAME", help="What to look at, as for train's --data.name; the embedded digits unless given."
        ),
    ] = "digits"


@dataclass(frozen=True)
class Data:
    """What is understood of data, before training on them. Splits, shape, type, range, levels, and what looks wrong."""

    config: Annotated[NamedData, tyro.conf.arg(name="")] = field(default_factory=NamedData)
    figure: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help="Draw items, or of a table its columns, as .png.")
    ] = None
    json: Json = None


@dataclass(frozen=True)
class Doctor:
    """What works here: versions, devices, features, folders. Exit status 1 where something essential doesn't."""

    json: Json = None


@dataclass(frozen=True)
class Completion:
    """Print a shell's completion script. Save it where the shell looks, as below, and open a new shell."""

    shell: Annotated[
        Literal["bash", "zsh", "fish"],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="SHELL", help="bash, zsh or fish."),
    ]


# In the order of the help.
COMMANDS: dict[str, type] = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "sample": Sample,
    "information": Information,
    "data": Data,
    "claims": Claims,
    "doctor": Doctor,
    "completion": Completion,
}
Command = Demo | Train | Evaluate | Sample | Information | Data | Claims | Doctor | Completion
