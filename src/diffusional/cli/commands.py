"""The commands and their options: one dataclass for each command. Does not import torch, so that `--help` is fast."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from diffusional.extras import needed_for
from diffusional.training.config import Config, DataConfig

with needed_for("cli"):
    import tyro

# The option for the result as JSON.
Json = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="Write the result as JSON; - for standard output.")]
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="The run folder.")]
RunOrCheckpoint = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="RUN",
        help="The run folder; or a checkpoint: a folder of diffusers, a Hub id, owner/name, or hf:NAME for a masked language model of "
        "transformers.",
    ),
]
# The option for a split of the data; the docstring of each field has its default.
Split = Literal["train", "validation", "test", "all"] | None


Revision = Annotated[str | None, tyro.conf.arg(metavar="NAME", help="For a Hub id: the branch, tag or commit.")]


@dataclass(frozen=True)
class CheckpointOptions:
    """How a checkpoint from elsewhere is read."""

    decoder: Annotated[
        Literal["discretized-gaussian", "openai", "level-posterior", "bernoulli", "gaussian"] | None,
        tyro.conf.arg(
            help="For a checkpoint: p(x|z_1). Defaults to discretized-gaussian with the variance σ_1²; openai has that of q(z_1|z_2, x)."
        ),
    ] = None
    decoder_variance: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="VALUE",
            help="For a checkpoint: the variance of a Gaussian p(x|z_1), in the units of encoded x; fit, with --decoder gaussian, for the mean "
            "squared residual of --training-data.",
        ),
    ] = None
    training_data: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="DATA",
            help="For a checkpoint: data of its training, on the first 512 items of which γ_1 of a flow and --decoder-variance fit are fitted.",
        ),
    ] = None
    variance: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help="For a checkpoint: the variance of p instead of its scheduler's: posterior, transition or learned, or a variance_type of "
            "diffusers.",
        ),
    ] = None
    unclipped: bool = False
    """For a checkpoint: leave out what its scheduler does to x̂ (clip_sample, thresholding)."""
    variant: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help="For a checkpoint: the variant of the weights, such as fp16.")
    ] = None
    weights: Annotated[
        Literal["ema", "raw"] | None,
        tyro.conf.arg(
            help="For a checkpoint that has both: the moving average of the weights (unet_ema/), or those of training (unet/)."
        ),
    ] = None
    revision: Revision = None


@dataclass(frozen=True)
class TextModelOptions:
    """How a masked language model of transformers, hf:NAME, is read."""

    length: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="TOKENS",
            help="For hf:NAME: the number of tokens of a block. Defaults to 128, or to the most that the model takes.",
        ),
    ] = None
    mask_token: Annotated[
        str | None,
        tyro.conf.arg(metavar="TOKEN", help="For hf:NAME: the mask, its text or number, instead of the tokenizer's."),
    ] = None
    shift: bool = False
    """For hf:NAME: the logits at position i − 1 predict token i (Dream)."""


# Groups of options, whose names have no prefix.
ForCheckpoints = Annotated[CheckpointOptions, tyro.conf.arg(name="")]
ForTextModels = Annotated[TextModelOptions, tyro.conf.arg(name="")]


# The options of classifier-free guidance.
Threshold = Annotated[
    float | None,
    tyro.conf.arg(
        metavar="QUANTILE",
        help="With guidance: dynamic thresholding of x̂ (Imagen): the quantile of |x̂| in each image to which it is clipped, such as 0.995.",
    ),
]
Rescale = Annotated[
    float,
    tyro.conf.arg(
        metavar="PART",
        help="With guidance: the part, from 0 to 1, by which the spread of a prediction is set back to that of the conditional one.",
    ),
]
GuidanceStages = Annotated[
    tuple[str, ...] | None,
    tyro.conf.arg(
        metavar="STAGE",
        help="With guidance of a system of several stages: the names of the stages that are guided. Defaults to those that take the condition.",
    ),
]

# The help of --preset.
_PRESETS = """A tested config. Other options override its values.
digits: a diffusion model of the embedded digits; about a minute.
digits-vae: a VAE of the digits; about a minute.
digits-hierarchical-vae: a VAE with two layers of latents.
digits-diffusion-prior: the VAE with a diffusion model as the prior of its latent.
essay, essay-tuned: a chain of five steps with free means and variances; the second has a better schedule.
laptop: a model of MNIST, trained for ten minutes on two cores (give its folder as --data).
images: the same system in a size for a GPU, for your own images.
sohl-dickstein-2015, sohl-dickstein-2015-binary, ddpm, iddpm, vdm: the systems of these papers, for CIFAR-10 (or binary data).
imagen-small, latent-small, unclip-small, digits-cascade, unclip, imagen: systems of several stages, the same as --composite NAME.
"""


@dataclass(frozen=True)
class Demo:
    """Train three models on digits and compare their bounds. The models are a diffusion model, a VAE and a hierarchical VAE. This takes
    less than five minutes on two cores, or less than two with --quick."""

    out: Path = Path("runs/demo")
    """The folder for the run and its pictures. If it exists, a number is added to the name."""
    steps: int | None = None
    """Number of optimiser steps of the diffusion model, instead of that of the preset. The other models are trained for the same time."""
    quick: bool = False
    """Train for a shorter time, with slightly worse bounds."""
    seed: int = 0
    """The seed of weights, batches and noise."""
    max_seconds: float | None = None
    """Stop training after this number of seconds."""
    json: Json = None


@dataclass(frozen=True)
class Train:
    """Train a model by its ELBO. The model is a diffusion model, or a VAE (--model.kind). A run is a folder: --resume continues a run, and
    --from RUN starts a new one from the weights of another."""

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
            "images",
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
            help="Read the config from a JSON or TOML file, such as the config.json of a run. Other options override its values.",
        ),
    ] = None
    composite: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME|FILE",
            help="Train a system of several stages, each in RUN/stages/NAME: imagen-small, latent-small, unclip-small, digits-cascade, unclip, imagen, or the JSON "
            "file of its config. Of the options of the config only --data.* apply.",
        ),
    ] = None
    resume: bool = False
    """Continue the run in the folder with its own config. Use --steps N to continue beyond its end."""
    profile: bool = False
    """Measure the time of each part of a step, and write it to RUN/profile.json."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, to RUN/tensorboard. Needs the extra `tensorboard`."""
    json: Json = None


@dataclass(frozen=True)
class Evaluate:
    """Estimate the bound of a data set to a given error. The bound is the NELBO of a trained model, and is printed with its terms. For two
    runs, the difference of their bounds on the same items is estimated. A checkpoint of diffusers can take the place of a run; what its
    bound depends on is then printed first."""

    run: RunOrCheckpoint
    other: Annotated[
        Path | None,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="[RUN B]", help="A second run. The difference RUN − RUN B is estimated with common noise."
        ),
    ] = None
    data: str | None = None
    """A data set, as for train. All its items are evaluated, in its order. Defaults to the run's own data. For a model of text also a .jsonl
    or .csv of prompts and continuations."""
    columns: tuple[str, ...] | None = None
    """Columns of a table to read, if it has more than the run was trained on. Columns are matched by name."""
    decimal: Literal[".", ","] | None = None
    """The decimal mark of a text table, if its values are ambiguous."""
    prompt_column: str | None = None
    """For a text model and --data FILE.jsonl or FILE.csv: the field with the prompts, which are never masked. Defaults to prompt."""
    continuation_column: str | None = None
    """For a text model and --data FILE.jsonl or FILE.csv: the field with the texts whose bound is estimated. Defaults to continuation."""
    condition: str | None = None
    """The column or key of the labels in --data, for a run trained with --data.condition. Defaults to that of the run."""
    other_condition: Annotated[
        tuple[str, ...] | None,
        tyro.conf.arg(
            metavar="CONDITION",
            help="With two runs: another condition for RUN B, as for sample --condition, or `shuffled` for those of other items. RUN RUN "
            "--other-condition 3 compares conditions of one model with a paired error.",
        ),
    ] = None
    guidance: Annotated[
        tuple[float, ...] | None,
        tyro.conf.arg(
            metavar="WEIGHT",
            help="The weight of classifier-free guidance: the bound of the guided chain. 1 means none, and 0 ignores the condition. With "
            "several weights, the bounds of all of them are estimated from the same draws.",
        ),
    ] = None
    guidance_threshold: Threshold = None
    guidance_rescale: Rescale = 0.0
    guidance_stages: GuidanceStages = None
    levels: int | None = None
    """Number of integer levels of the data, which must be that of the run."""
    split: Split = None
    """The split to evaluate. Defaults to test for the run's own data, under any file name, and to all for other data."""
    error: float | None = None
    """Target for the Monte Carlo error of the mean. Defaults to 0.01 bits/dim, unless another target is given."""
    unit: Literal["bits/dim", "nats"] = "bits/dim"
    """The unit of --error and --item-error."""
    item_error: float | None = None
    """Target for the Monte Carlo error of the score of each item."""
    visits: int | None = None
    """A fixed number of network evaluations for each item, instead of a target error."""
    max_evaluations: int | None = None
    """The maximum number of network evaluations of draws and audit. The exit status is 3 if it is too small for the target. The pilot of
    the run's plan, which is fitted once, is not included."""
    importance_weighted: int | None = None
    """Also report the importance-weighted bound with this number of draws. A draw takes T network evaluations of a diffusion model, and 1 of
    a VAE."""
    estimator: Literal["replicates", "iwae", "ode"] | None = None
    """replicates: the NELBO from independent replicates of visits that depend on each other, which has less variance for masked diffusions.
    iwae: the importance-weighted bound with K draws. ode: the likelihood of the probability flow, which is an estimate of another model with
    the same network."""
    k: int | None = None
    """With --estimator: draws of each item, K. Defaults to 64 for iwae; for ode to 8 for discrete data, and to none for real values."""
    replicates: int | None = None
    """With --estimator replicates: a fixed number of replicates of every item, instead of a target error. Each has --visits visits, by
    default 8. With --error, the number to begin with, by default 2."""
    probes: int = 8
    """With --estimator ode or --witnesses: random probes of the trace, if the data have more than 16 dimensions."""
    tolerance: float = 1e-3
    """With --estimator ode or --witnesses: the error of the solver to reach for each item, in bits/dim."""
    interpolate: bool = False
    """With --estimator ode or --witnesses: for a network that reads the number of a level, interpolate it between levels."""
    witnesses: bool = False
    """Compare the NELBO, importance-weighted bounds with K = 1, 8 and 64, and the probability flow, and check which is above which."""
    items: int | None = None
    """With --estimator or --witnesses: evaluate a random part of the items, of this number. Defaults to 32 for --witnesses."""
    per_item: Path | None = None
    """A .csv or .npz file for the score of each item, with its error, file, row and split. For two runs, it has both scores and their
    difference."""
    html: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="An .html file for a report of this evaluation; `diffusional report` also has samples and items.",
        ),
    ] = None
    plan: Path | None = None
    """The plan of the evaluation. Defaults to RUN/plan.json, which is fitted on the run's training data if it does not exist."""
    sweep: bool = False
    """Evaluate every level for every item, as a reference."""
    draws: int | None = None
    """With --sweep: number of sweeps over the levels. Defaults to 1 for T ≥ 50, otherwise to 8."""
    cells: int | None = None
    """With --sweep: number of cells of [0, 1] in continuous time. Defaults to 1000."""
    steps: int | None = None
    """The number of latents T. Defaults to that of the run."""
    continuous: bool = False
    """Evaluate in continuous time (T = ∞), whatever the T of the run."""
    checkpoint_options: ForCheckpoints = field(default_factory=CheckpointOptions)
    text_options: ForTextModels = field(default_factory=TextModelOptions)
    no_audit: bool = False
    """Omit the audit, which visits every level once to detect costs that the plan does not expect."""
    deterministic: bool = False
    """Evaluate in batches of a fixed shape, so that scores are equal to the last bit whatever the number of processes (torchrun)."""
    no_check: bool = False
    """For a checkpoint: omit the check whether its network is read as it was trained, which takes about a thousand network evaluations."""
    seed: int = 0
    """The seed of the noise. The same seed gives the same result."""
    json: Json = None


@dataclass(frozen=True)
class Import:
    """Make a run of a checkpoint of diffusers. The run refers to the checkpoint, with the hashes of its files, and other commands work on
    it. What its config determines, what is assumed and what is given is printed."""

    checkpoint: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="CHECKPOINT",
            help="A folder of diffusers, a Hub id, owner/name, or hf:NAME for a masked language model of transformers.",
        ),
    ]
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="The new run folder.")]
    data: str | None = None
    """The data that the model was trained on, as for train: plans are fitted on them, and their test split is evaluated by default."""
    levels: int | None = None
    """Number of integer levels of the data. Defaults to 256, and to 17 for digits."""
    size: int | None = None
    """The side to which images of --data are scaled, in pixels."""
    condition: str | None = None
    """The column or key of the labels in --data, for a model of classes."""
    checkpoint_options: ForCheckpoints = field(default_factory=CheckpointOptions)
    text_options: ForTextModels = field(default_factory=TextModelOptions)
    steps: int | None = None
    """The number of latents T, for a model in continuous time."""
    json: Json = None


@dataclass(frozen=True)
class Check:
    """Find out whether a network is read as it was trained. Its output, the scaling of its input, its clock, and the range
    and the channels of the data are searched together; what a scheduler does to x̂ is left out. The exit status is 1 if another reading
    fits the network better."""

    run: RunOrCheckpoint
    data: str | None = None
    """Data of the kind that the network was trained on, as for train. Defaults to the run's own data."""
    levels: int | None = None
    """Number of integer levels of the data."""
    split: Split = None
    """The split to use, as for evaluate."""
    condition: str | None = None
    """The column or key of the labels in --data, for a model of classes."""
    items: int = 16
    """Number of items on which readings are compared."""
    slopes_only: bool = False
    """Check the declared reading only, in few network evaluations: for large networks."""
    checkpoint_options: ForCheckpoints = field(default_factory=CheckpointOptions)
    seed: int = 0
    """The seed of the noise."""
    json: Json = None


@dataclass(frozen=True)
class Score:
    """Score items and find outliers. Every item has its cost with an error, its percentile among reference items, and scores of how untypical
    it is. The most and the least likely items are listed with their files."""

    run: RunOrCheckpoint
    data: str | None = None
    """The items to score, as for train. Defaults to the run's own data."""
    split: Split = None
    """The split to score, as for evaluate."""
    levels: int | None = None
    """Number of integer levels of the data."""
    condition: str | None = None
    """The column or key of the labels in --data, for a model of classes."""
    reference: str | None = None
    """The data that percentiles refer to. Defaults to the validation split of the run's own data."""
    outliers: str | None = None
    """Further data, of outliers: the AUROC of telling them from the items of --data is printed for each score."""
    most: int = 1000
    """The largest number of items of the reference and of --outliers; the first are used."""
    visits: int = 8
    """Network evaluations of each item."""
    bands: int | None = None
    """The number of bands of noise levels in the profile of an item, for the score of that name. By default there is no profile."""
    shown: int = 5
    """Number of items that are listed at each end."""
    per_item: Path | None = None
    """A .csv or .npz file for the scores of each item, with its file, row and split."""
    figure: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help="A .png, .svg or .pdf file with the most and the least likely images."),
    ] = None
    maps: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="A .npz file for the cost of every position (pixel, column) of the listed items, in nats, with its error; or a .png, .svg "
            "or .pdf file that draws them (images only). It takes 64 network evaluations, or those of --visits if they are more, of each listed item.",
        ),
    ] = None
    checkpoint_options: ForCheckpoints = field(default_factory=CheckpointOptions)
    text_options: ForTextModels = field(default_factory=TextModelOptions)
    seed: int = 0
    """The seed of the noise. The same seed gives the same scores."""
    json: Json = None


@dataclass(frozen=True)
class Classify:
    """Classify items by likelihood, with a model of classes. The answer is the class whose bound is best, by common noise for all classes;
    classes are dropped as soon as the paired error allows."""

    run: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="RUN", help="The run folder; or a checkpoint: a folder of diffusers, or a Hub id, owner/name."
        ),
    ]
    data: str | None = None
    """The items to classify, as for train. Defaults to the run's own data."""
    split: Literal["train", "validation", "test", "all"] | None = None
    """The split to classify, as for evaluate."""
    levels: int | None = None
    """Number of integer levels of the data."""
    unlabelled: bool = False
    """The items of --data have no labels. Otherwise their labels are read, and the accuracy is reported."""
    condition: str | None = None
    """The column or key of the labels in --data. Defaults to that of the run."""
    confidence: float = 0.95
    """The probability with which the class of the best bound is found before an item is finished, unless --max-visits ends it."""
    max_visits: int = 64
    """The largest number of network evaluations for a class of an item."""
    weighting: Literal["bound", "unweighted"] = "bound"
    """Compare the bounds of the classes, or the errors of the predicted noise without weights, which are not likelihoods."""
    prior: Literal["uniform", "train"] = "uniform"
    """The probabilities p(c) of the classes: uniform, or those of the run's training data."""
    evidence_visits: int = 0
    """Also estimate a lower bound of ln p(x) over the classes, with this number of network evaluations for each class that remains."""
    probabilities: Path | None = None
    """An .npy file (items, classes) with the class probabilities of a classifier, for the lower bound of ln p(x), whose weights r(c) they are. By
    default r is that of the classification."""
    most: int | None = None
    """The largest number of items; the first are used. Defaults to all."""
    per_item: Path | None = None
    """A .csv or .npz file for the answer of each item, with its confidence, bounds, file, row and split."""
    checkpoint_options: ForCheckpoints = field(default_factory=CheckpointOptions)
    seed: int = 0
    """The seed of the noise. The same seed gives the same answers."""
    json: Json = None


@dataclass(frozen=True)
class Export:
    """Write a run's model as a pipeline of diffusers. DiffusionPipeline.from_pretrained loads and samples it, `diffusional evaluate` and
    `import` read it back, and its model card has the run's bound."""

    run: Run
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help="The new folder.")]
    to: Literal["diffusers", "custom"] = "diffusers"
    """The format: diffusers, a DDPMPipeline; or custom, with a pipeline.py of its own for models that no scheduler expresses (levels heads,
    class labels, learned schedules, continuous time)."""
    steps: int | None = None
    """With --to custom: the T of samples. Defaults to that of the run, or to 250 in continuous time."""
    json: Json = None


@dataclass(frozen=True)
class Compress:
    """Compress items to the length of the bound. The coder is lossless, by a run's model and bits back; the file is decoded and compared
    before it is written. --rate-distortion draws what the first bits of a file show."""

    run: Run
    data: str | None = None
    """The items, as for evaluate. Defaults to the run's own data."""
    split: Literal["train", "validation", "test", "all"] | None = None
    """The split to compress, as for evaluate."""
    out: Path | None = None
    """The file to write; -o for short. Defaults to items.dfz, or to none with --rate-distortion."""
    steps: int | Literal["auto"] | None = None
    """T, the number of latents to code with, or auto for the one with the shortest file. Defaults to that of the run, and to auto in
    continuous time. More latents lower the bound and take longer."""
    rows: int = 16
    """The largest number of items of one call of a network."""
    most: int | None = None
    """The largest number of items; the first are used. Defaults to all."""
    seed: int = 0
    """The seed of the bits that the first item borrows, and of the noise of --rate-distortion."""
    rate_distortion: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="A .png, .svg or .pdf file that draws the distance of x̂(z_t) from x against the bits of z_T … z_t: a progressive decoding by a "
            "Gaussian diffusion. It takes T + 40 network evaluations of each item. No items are coded unless --out is given too.",
        ),
    ] = None
    json: Json = None


@dataclass(frozen=True)
class Decompress:
    """Decompress items to a .npy file. They are raw levels, decoded with the run, version of torch and kind of machine of the coding."""

    run: Run
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help="The file that compress wrote.")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help="The .npy file to write.")]
    json: Json = None


@dataclass(frozen=True)
class Push:
    """Upload a run to the Hugging Face Hub. Its files are uploaded as one commit, with a model card that has the run's bound, and without
    checkpoints. Log in with `hf auth login` first."""

    run: Run
    repo_id: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="REPO_ID", help="The repository, owner/name; created if it does not exist."),
    ]
    private: bool = False
    """Make a new repository private."""
    checkpoints: bool = False
    """Upload checkpoints/ too, with the states of the optimiser, with which a pulled run can be resumed."""
    replace: bool = False
    """Replace files of a repository that is not empty by a new commit."""
    json: Json = None


@dataclass(frozen=True)
class Pull:
    """Download a run from the Hugging Face Hub. It is what `push` uploaded, in a new folder."""

    repo_id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO_ID", help="The repository, owner/name.")]
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="The new run folder.")]
    revision: Annotated[str | None, tyro.conf.arg(metavar="NAME", help="The branch, tag or commit.")] = None
    json: Json = None


@dataclass(frozen=True)
class Sample:
    """Sample from a trained model. Samples are drawn by the model's own reverse chain, or by DDIM."""

    run: Run
    n: int = 16
    """Number of samples."""
    method: Literal["ancestral", "ddim"] = "ancestral"
    """The method of sampling; ancestral is the model's own reverse chain."""
    steps: int | None = None
    """The number of latents T. Defaults to that of the run, or to 250 in continuous time."""
    eta: float = 0.0
    """The amount of noise of DDIM, from 0 to 1."""
    seed: int = 0
    """The seed of the noise. The same seed gives the same samples."""
    condition: Annotated[
        tuple[str, ...] | None,
        tyro.conf.arg(
            metavar="CLASS|TEXT",
            help="Names of classes (or their numbers, unless names are numbers), or texts, for a run trained with a condition. Several are "
            "used in turn, one for each sample; `all` means every class. --label is the same.",
        ),
    ] = None
    guidance: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="WEIGHT",
            help="The weight of classifier-free guidance, for a run trained with --condition-dropout. 1 means none; with 0 the condition "
            "is ignored and may be left out.",
        ),
    ] = None
    guidance_threshold: Threshold = None
    guidance_rescale: Rescale = 0.0
    guidance_stages: GuidanceStages = None
    interpolate: Annotated[
        tuple[str, str] | None,
        tyro.conf.arg(
            metavar="ITEM ITEM",
            help="For a system with a frozen encoder such as unCLIP: n samples for embeddings between those of two items of its data, such as "
            "test:3 test:8.",
        ),
    ] = None
    upsample: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="ITEM|FILE",
            help="For a cascade: n samples given one low resolution: that of an item of its data, such as test:5, or the image in an .npy "
            "file, in raw levels.",
        ),
    ] = None
    out: Path | None = None
    """An .npz file for the samples, as raw data, and the names of a table's columns. Defaults to RUN/samples.npz. Images are also drawn as
    a .png of the same name. For a run trained on a table, also a .csv or .parquet file, with the columns and units of the table."""
    json: Json = None


@dataclass(frozen=True)
class Information:
    """Estimate the information in latents about the data. For a data set, this is the mutual information I(x; z_t) of a schedule, without
    any training. For the run of a diffusion model, its costs are divided into information and gaps relative to a reference run. For the
    run of a VAE, it is the information of its latents."""

    data: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="DATA|RUN", help='"digits" or a path, as for train, or the folder of a run.'),
    ]
    reference: Path | None = None
    """For a run: a second run, with whose costs those of the run are compared at each level, with common noise."""
    schedule: Literal["linear", "cosine", "log_snr_linear"] = "linear"
    """The noise schedule: linear (DDPM), cosine (improved DDPM), or linear in log-SNR."""
    steps: int | None = None
    """The number of latents T. Defaults to 1000, or to continuous time for log_snr_linear."""
    gamma_min: float | None = None
    """γ_1 = −log SNR of the least noisy latent (log_snr_linear)."""
    gamma_max: float | None = None
    """γ_T = −log SNR of the noisiest latent (log_snr_linear)."""
    beta_start: float | None = None
    """The first β (linear)."""
    beta_end: float | None = None
    """The last β (linear)."""
    levels: int | None = None
    """Number of integer levels of the data (256 for 8-bit images)."""
    split: Split = None
    """The split to use. Defaults to train, or to test for a run."""
    timesteps: int = 50
    """Number of timesteps t, evenly spaced from 1 to T; for two runs, number of cells of timesteps."""
    samples: int = 2000
    """Number of draws of an item and its noise; each is used at every level."""
    seed: int = 0
    """The seed of the draws."""
    pointwise: bool = False
    """For a run that was trained with --condition-dropout: estimate the information of the condition about each item, i(x; c)."""
    visits: int = 32
    """With --pointwise: draws of each item; a draw takes three network evaluations."""
    map: bool = False
    """With --pointwise and --per-item FILE.npz: also write i(x; c) of every position of an item."""
    per_item: Path | None = None
    """With --pointwise: a .csv or .npz file for i(x; c) of each item, with its error, file, row and split."""
    figure: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help="A .png, .svg or .pdf file for a plot of the curve.")
    ] = None
    json: Json = None


@dataclass(frozen=True)
class Plot:
    """Draw runs or saved results. For a run, these are the terms and the noise levels of its evaluation, with errors, and its training; for
    several, their bounds, and the costs of the noise levels of all of them on the same axes; for a JSON file of evaluate, information or
    compress, what it contains."""

    what: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="RUN|FILE",
            help="The run folder, or the JSON file of an evaluation, of a comparison of two runs, of an information curve, or of compress "
            "--rate-distortion. Give up to six runs or evaluations to draw them together.",
        ),
    ]
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="A .png, .svg or .pdf file for the figure; -o FILE for short. Defaults to RUN/plot.png, or to the name of the JSON file "
            "with .png; for several, to plot.png.",
        ),
    ] = None
    split: Split = None
    """For a run: the split whose evaluation is drawn. Defaults to test, or to another one that was evaluated."""
    unit: Literal["bits/dim", "nats"] = "bits/dim"
    """The unit of the terms."""
    json: Json = None


@dataclass(frozen=True)
class Report:
    """Write a report of runs as one HTML file. It has the caveats first, then the bound with its errors beside baselines, its costs, the
    training, samples, items, and how to reproduce it; of several runs also their paired differences. What is missing is computed: an
    evaluation, samples and scores of items, each of which can be left out."""

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="RUN",
            help="Run folders; checkpoints of diffusers and masked language models of transformers (hf:NAME), with --data; or JSON files of "
            "`diffusional evaluate` (of one run, or of two for their difference), or of `diffusional information RUN --reference RUN`.",
        ),
    ]
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="The .html file; -o FILE for short. Defaults to RUN/report.html, or to report.html for several runs.",
        ),
    ] = None
    data: str | None = None
    """For checkpoints from elsewhere: the data to evaluate them on, as for evaluate. Runs are shown with their own data."""
    text_options: ForTextModels = field(default_factory=TextModelOptions)
    revision: Revision = None
    split: Split = None
    """The split whose evaluation is shown. Defaults to test, or to another one that was evaluated."""
    error: float | None = None
    """Target for the Monte Carlo error of an evaluation or a comparison that is missing, bits/dim. Defaults to 0.01, that of evaluate; of items
    with more than 256 dimensions and networks of more than 10 million parameters to 0.02."""
    samples: int | None = None
    """Number of samples to draw from each run; 0 for none. Defaults to 16, or 8 for the larger ones."""
    items: int | None = None
    """The largest number of items to score, of which the easiest and the hardest are shown; 0 for none. Defaults to 500, or 100 for the larger
    ones."""
    visits: int = 16
    """Network evaluations of each of these items."""
    shown: int = 5
    """Number of items that are shown at each end."""
    no_compare: bool = False
    """Do not compare the runs on the same items and noise; their difference then has a larger error."""
    saved: bool = False
    """Use saved results only: draw nothing from the models and evaluate nothing."""
    title: str | None = None
    """The title of the report."""
    seed: int = 0
    """The seed of samples and scores."""
    json: Json = None


@dataclass(frozen=True)
class Claims:
    """Test claims about the bound, C1 to C17, with controls. Each of them must hold and its negative control must fail; otherwise the exit
    status is 1."""

    only: tuple[str, ...] | None = None
    """The claims to test, such as C1 C5. Defaults to all."""
    seed: int = 0
    """The seed of data distributions, networks and noise."""
    json: Json = None


@dataclass(frozen=True)
class NamedData(DataConfig):
    """The options of train that begin with --data."""

    name: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="NAME", help="The data, as for --data.name of train. Defaults to the embedded digits."),
    ] = "digits"


@dataclass(frozen=True)
class Data:
    """Inspect data before training on them. This prints splits, shape, type, range and levels, and warns of likely faults."""

    config: Annotated[NamedData, tyro.conf.arg(name="")] = field(default_factory=NamedData)
    figure: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="A .png, .svg or .pdf file for a picture of items, or for histograms of a table's columns.",
        ),
    ] = None
    json: Json = None


@dataclass(frozen=True)
class Doctor:
    """Check the installation: versions, devices, folders. The exit status is 1 if an essential component does not work."""

    json: Json = None


@dataclass(frozen=True)
class Completion:
    """Print the completion script of a shell. Save it in the folder that the shell reads, as in the examples, and open a new shell."""

    shell: Annotated[
        Literal["bash", "zsh", "fish"],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="SHELL", help="The shell: bash, zsh or fish."),
    ]


# In the order of the help.
COMMANDS: dict[str, type] = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "import": Import,
    "export": Export,
    "compress": Compress,
    "decompress": Decompress,
    "push": Push,
    "pull": Pull,
    "check": Check,
    "score": Score,
    "classify": Classify,
    "sample": Sample,
    "information": Information,
    "plot": Plot,
    "report": Report,
    "data": Data,
    "claims": Claims,
    "doctor": Doctor,
    "completion": Completion,
}
Command = (
    Demo
    | Train
    | Evaluate
    | Import
    | Export
    | Compress
    | Decompress
    | Push
    | Pull
    | Check
    | Score
    | Classify
    | Sample
    | Information
    | Plot
    | Report
    | Data
    | Claims
    | Doctor
    | Completion
)
