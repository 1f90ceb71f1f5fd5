"""What can be typed: one dataclass a command. Imports no torch, so that `--help` is instant."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from diffusional.training.config import Config

# Where a command leaves its result as JSON.
Json = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="Write the result as JSON.")]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="The run folder.")]


@dataclass(frozen=True)
class Demo:
    """Train a diffusion model, a VAE and a hierarchical VAE on real digits and itemise their bounds: under five minutes on two
    cores, --quick under two."""

    out: Path = Path("runs/demo")
    """Folder for the run and its pictures; an existing one is left alone and a number is added."""
    steps: int | None = None
    """Optimiser steps of the diffusion model, in place of the recipe's; the others train for as long."""
    quick: bool = False
    """A shorter training, for bounds that are a little worse."""
    seed: int = 0
    max_seconds: float | None = None
    """May stop the training early."""
    json: Json = None


@dataclass(frozen=True)
class Train:
    """Train a model by its ELBO: a diffusion model, or a VAE (--model.kind). A run is a folder; --resume continues it."""

    run: Run
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    resume: bool = False
    """Continue the run in the folder, with its own config."""
    json: Json = None


@dataclass(frozen=True)
class Evaluate:
    """The NELBO of a data set under a trained model, itemised, to a stated error. Two runs: their difference, paired."""

    run: Run
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN B]")] = None
    """A second run: the difference RUN − RUN B is evaluated, with common noise."""
    data: str | None = None
    """A data set, as for train; that of the run unless given."""
    levels: int | None = None
    """How many integer levels the data have; those of the run unless given."""
    split: Literal["train", "validation", "test", "all"] | None = None
    """test for the run's own data, all for other data, unless given."""
    error: float | None = None
    """Monte Carlo error of the data set's mean to reach; 0.01 unless another target is given."""
    unit: Literal["bits/dim", "nats"] = "bits/dim"
    """Of --error and --item-error."""
    item_error: float | None = None
    """Draw until every item's own score has this error."""
    visits: int | None = None
    """So many network evaluations for every item, whatever the error."""
    max_evaluations: int | None = None
    """Network evaluations in all, pilot and audit included; exit status 3 where they don't suffice."""
    importance_weighted: int | None = None
    """Of a VAE: the importance-weighted bound over so many draws beside the NELBO."""
    per_item: Path | None = None
    """A .csv or .npz file for the score of every item, with its error."""
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
    json: Json = None


@dataclass(frozen=True)
class Sample:
    """Draw from a trained model, by its own chain or by DDIM."""

    run: Run
    n: int = 16
    method: Literal["ancestral", "ddim"] = "ancestral"
    steps: int | None = None
    """Another T than the run's own (250 for runs in continuous time)."""
    eta: float = 0.0
    """Noise of DDIM, 0 to 1."""
    seed: int = 0
    out: Path | None = None
    """An .npz file for the samples, as raw data; RUN/samples.npz unless given. Images also become a .png beside it."""
    json: Json = None


@dataclass(frozen=True)
class Information:
    """What the latents of a schedule know of a data set, I(x; z_t), before any training. Of a run: where its nats go,
    beside another's; of a VAE's run, what its latents know."""

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
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="Draw the curve, as .png.")] = None
    json: Json = None


@dataclass(frozen=True)
class Claims:
    """Measure the claims C1 to C9 about the bound, each beside a control that must fail; exit status 1 where one is not so."""

    only: tuple[str, ...] | None = None
    """Some of them, such as C1 C5."""
    seed: int = 0
    """Draws the worlds, networks and noise."""
    json: Json = None


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Information, tyro.conf.subcommand("information")]
    | Annotated[Claims, tyro.conf.subcommand("claims")]
)
