"""Two copies of a network's weights: those of its training, and their moving average (EMA), by which models are usually sampled.

From one copy nobody can find out which it is. What can be found is where a checkpoint has both:

    diffusers        unet/ and unet_ema/ (EMAModel.save_pretrained); or weights beside *.non_ema.*, or *.ema.*, in one folder
    lucidrains       model-N.pt of its Trainer, with "model" and, in "ema", the keys ema_model.*
    OpenAI           modelNNNNNN.pt and ema_RATE_NNNNNN.pt in one folder
    CompVis          one state dict with model.* and model_ema.*, whose names have no dots (LitEma)

The loader states which copy it took, and `check_weights` compares both by their loss on data, with a paired error.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.conditions import Condition, check_condition, moved, rows_of
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular, sha256
from diffusional.forward import alpha, sigma
from diffusional.interop.check import denoiser_of, noise_levels
from diffusional.interop.diagnosis import NOT_FOUND, NOT_FOUND_OF_BOTH, Diagnosis
from diffusional.interop.place import COPIES, MEANS, OTHER, Copy
from diffusional.models.base import LatentVariableModel, device_of, evaluation_mode
from diffusional.seeds import check_seed
from diffusional.shapes import align

# One copy is better if its loss is lower by this many standard errors.
_ERRORS = 4.0
# A batch of calls has about this many values.
_BATCH = 2**20
_OPENAI = (re.compile(r"model(\d+)\.pt"), re.compile(r"ema_([\d.]+)_(\d+)\.pt"))
# Where the networks keep what `copies_of` returns.
_KEPT = "_diffusional_copies"

State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Copies:
    """The two copies of a network's weights.

    Attributes:
        taken: the copy that the network has.
        names: where each copy is, for messages.
        load: returns the state dict of a copy for the network.
        option: how the other copy is chosen, in the words of the user.
        files: SHA-256 of the file of the copy that was taken, by its name; of a folder, the origin of the model has them.
    """

    taken: Copy
    names: Mapping[Copy, str]
    load: Callable[[Copy], State]
    option: str = 'weights="{0}"'
    files: Mapping[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Copies":
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        # Where to read the other copy is not known in another process, which gets None.
        return type(None), ()

    def sentence(self) -> str:
        """Return which copy was taken, and where the other one is."""
        other = OTHER[self.taken]
        return (
            f"the weights are {MEANS[self.taken]} ({self.names[self.taken]}); {self.names[other]} has {MEANS[other]} "
            f"({self.option.format(other)})"
        )


@dataclass(frozen=True)
class WeightsCheck:
    """Which of two copies of a network's weights has the lower loss on some items: what `check_weights` returns.

    Attributes:
        taken: the copy that the model has.
        names: where each copy is.
        option: how the other copy is chosen.
        loss: of each copy, the mean of ‖ε − ε̂‖²/D over items and noise levels γ.
        difference, error: the loss of `taken` less that of the other copy, and the standard error of this over items: both copies see the
            same items and the same noise.
        bits_per_dim: the difference as bits per dimension of the bound between the lowest and the highest γ, where the integrand is
            ½ E‖ε − ε̂‖².
        items, network_evaluations: of both copies together.
    """

    taken: Copy
    names: Mapping[Copy, str]
    option: str
    loss: Mapping[Copy, float]
    difference: float
    error: float
    bits_per_dim: float
    items: int
    network_evaluations: int

    @property
    def better(self) -> Copy | None:
        """The copy whose loss is lower by four standard errors, or None."""
        if not abs(self.difference) > _ERRORS * self.error:
            return None
        return self.taken if self.difference < 0 else OTHER[self.taken]

    @property
    def finding(self) -> str | None:
        """What is wrong, if the other copy is better; otherwise None."""
        return str(self) if self.better == OTHER[self.taken] else None

    @property
    def remedy(self) -> str:
        """What to do if the other copy is better."""
        other = OTHER[self.taken]
        why = (
            ""
            if other == "ema"
            else ", or train for longer: an average over more steps than there were remembers the start"
        )
        return f"take {MEANS[other]} ({self.option.format(other)}){why}"

    def to_json(self) -> dict[str, Any]:
        """Return the record that `diffusional check --json` writes as `weights`."""
        return {
            "taken": self.taken,
            "names": dict(self.names),
            "loss": dict(self.loss),
            "difference": self.difference,
            "error": self.error,
            "bits_per_dim": self.bits_per_dim,
            "better": self.better,
            "items": self.items,
            "network_evaluations": self.network_evaluations,
        }

    def __str__(self) -> str:
        other = OTHER[self.taken]
        which = {
            None: "no difference between the two copies was found",
            self.taken: f"the loaded weights, {MEANS[self.taken]} ({self.names[self.taken]}), are the better ones",
            other: f"{MEANS[self.taken]} was loaded ({self.names[self.taken]}), and {MEANS[other]} is better ({self.names[other]})",
        }[self.better]
        gap = self.difference if self.taken == "raw" else -self.difference
        bits = self.bits_per_dim if self.taken == "raw" else -self.bits_per_dim
        return (
            f"{which}: the loss of the last step's weights less that of their moving average is {gap:.4g} ± {self.error:.2g}, {bits:.2g} bits/dim "
            f"of the bound ({self.items} items)"
        )


def joined(found: Diagnosis, weights: WeightsCheck) -> Diagnosis:
    """Return a diagnosis with what was found of the two copies of the weights."""
    finding = weights.finding
    return replace(
        found,
        findings=found.findings + (() if finding is None else (finding,)),
        remedies=found.remedies + (() if finding is None else (weights.remedy,)),
        notes=tuple(NOT_FOUND_OF_BOTH if note == NOT_FOUND else note for note in found.notes),
        network_evaluations=found.network_evaluations + weights.network_evaluations,
    )


def keep_copies(network: nn.Module, copies: Copies) -> None:
    """Attach to a network the two copies of its weights, for `copies_of`."""
    # A plain attribute: it is not a parameter, and is neither saved nor moved.
    object.__setattr__(network, _KEPT, copies)


def copies_of(model: nn.Module) -> tuple[nn.Module, Copies] | None:
    """Return the network inside a model of whose weights there are two copies, with these; None if there is none."""
    for module in model.modules():
        found = vars(module).get(_KEPT)
        if isinstance(found, Copies):
            return module, found
    return None


def check_weights(
    model: LatentVariableModel,
    data: Tensor,
    *,
    condition: Condition | None = None,
    items: int = 64,
    levels: int = 14,
    seed: int = 0,
) -> WeightsCheck | None:
    """Compare the two copies of a network's weights, of training and of its moving average, by their loss on data.

    Both copies see the same noise of the same items at the same noise levels, and the error is that of the paired difference. The loss is the
    mean of ‖ε − ε̂‖²/D, which is in proportion to the bound's integrand over γ. The model keeps the copy that it has.

    Args:
        model: of `load_checkpoint`, or with a network that was filled by `load_weights`.
        data: (N, *space.shape), encoded, N ≥ 2, of the kind that the network was trained on; the first `items` are used.
        condition: (N, …) for conditional models.
        items, levels: number of items and of noise levels.
        seed: of the noise.

    Returns None for a model of whose weights no second copy is known. Raises DiffusionalError for models without a Gaussian denoiser, for
    data that the space refuses, and for fewer than 2 items or levels.

    >>> import tempfile, torch, diffusional as df
    >>> net = torch.nn.Linear(2, 2)
    >>> state = {name: value.clone() for name, value in net.state_dict().items()}
    >>> path = Path(tempfile.mkdtemp()) / "model-1.pt"
    >>> torch.save({"model": state, "ema": {f"ema_model.{name}": 0 * value for name, value in state.items()}}, path)
    >>> load_weights(net, path).taken
    'ema'
    >>> denoiser = df.Denoiser(lambda z, log_snr: net(z), "data")        # a function hides its network
    >>> forward, decoder = df.GaussianDiffusion(df.schedule.linear()), df.likelihood.GaussianLikelihood(df.Continuous((2,)))
    >>> check_weights(df.DiffusionModel(forward, denoiser, decoder), torch.randn(9, 2)) is None
    True
    """
    found = copies_of(model)
    if found is None:
        return None
    network, copies = found
    denoiser_of(model)
    model.space.check(data)
    check_condition(condition, len(data))
    check_seed(seed)
    count = min(len(data), items)
    if count < 2 or levels < 2:
        raise DiffusionalError(f"expected at least 2 items and 2 noise levels, got {count} and {levels}")
    # Clones, since a state dict shares the memory of the parameters that are overwritten.
    own = {name: value.clone() for name, value in network.state_dict().items()}
    losses = {}
    try:
        for copy in COPIES:
            network.load_state_dict(own if copy == copies.taken else copies.load(copy))
            losses[copy] = _losses(model, data[:count], condition, levels, seed)
    finally:
        network.load_state_dict(own)
    gaps = losses[copies.taken] - losses[OTHER[copies.taken]]
    gamma = noise_levels(model, levels)
    value = float(gaps.mean())
    return WeightsCheck(
        copies.taken,
        dict(copies.names),
        copies.option,
        {copy: float(loss.mean()) for copy, loss in losses.items()},
        value,
        float(gaps.std() / math.sqrt(count)),
        0.5 * float(gamma[-1] - gamma[0]) * value / math.log(2),
        count,
        2 * count * len(gamma),
    )


def _losses(model: LatentVariableModel, data: Tensor, condition: Condition | None, levels: int, seed: int) -> Tensor:
    """Return the mean of ‖ε − ε̂‖²/D over noise levels, for each item (N,), float64."""
    denoiser: Any = getattr(model, "denoiser", None)
    device, gamma = device_of(model, data), noise_levels(model, levels)
    noise = torch.randn(len(gamma), *data.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = max(1, _BATCH // max(1, data[0].numel()))
    found = torch.zeros(len(gamma), len(data), dtype=torch.float64)
    with torch.inference_mode(), evaluation_mode(model):
        for level, value in enumerate(gamma):
            for some in torch.arange(len(data)).split(size):
                x, eps = data[some].to(device), noise[level, some].to(device)
                rows = value.to(device).expand(len(some))
                z = align(alpha(rows), x) * x.double() + align(sigma(rows), x) * eps
                given = moved(rows_of(condition, some), device)
                implied = denoiser(z.to(x.dtype), rows, given).noise
                found[level, some] = (implied.double() - eps).square().flatten(1).mean(1).cpu()
    return found.mean(0)


# State dicts of other packages.


def load_weights(network: nn.Module, path: str | Path, weights: Copy | None = None) -> Copies | None:
    """Fill a network with the weights of a file of another package, and report which copy was taken where there are two.

    The names of all weights must be those of the network, or of the object round it with the network as its part. `check_weights` of a model
    with this network then compares the two copies, and evaluations record which one was taken.

    Args:
        network: such as OpenAI's UNetModel, or lucidrains' GaussianDiffusion.
        path: a file that torch.save or safetensors wrote: a state dict, modelNNNNNN.pt or ema_RATE_NNNNNN.pt of OpenAI, model-N.pt of
            lucidrains' Trainer, or a state dict with model.* and model_ema.*. It is read by torch.load(weights_only=True), which runs no code.
        weights: "ema" for the moving average, "raw" for the weights of training. By default the copy in the file that was named; of a file
            with both, the moving average.

    Returns the copies, or None if there is only one. Raises DiffusionalError for a file that is missing, damaged or a pickle that needs code,
    for weights that do not fit the network, and for a copy that is not there.

    >>> import tempfile
    >>> folder, net = Path(tempfile.mkdtemp()), nn.Linear(2, 1)
    >>> torch.save(net.state_dict(), folder / "model010000.pt")
    >>> torch.save({name: torch.zeros_like(one) for name, one in net.state_dict().items()}, folder / "ema_0.9999_010000.pt")
    >>> copies = load_weights(net, folder / "ema_0.9999_010000.pt")
    >>> copies.taken, copies.names["raw"], net.bias.item()
    ('ema', 'model010000.pt', 0.0)
    """
    if weights is not None and weights not in COPIES:
        raise DiffusionalError(f'expected weights to be "ema" or "raw", got {weights!r}')
    path = Path(path).expanduser()
    readers, named = _readers(path)
    taken = weights or named
    if taken is not None and taken not in readers:
        raise DiffusionalError(
            f"{path} has no copy {taken!r} of the weights, {MEANS[taken]}: expected it {_WHERE[taken]}, got only {MEANS[OTHER[taken]]}; leave "
            "weights out"
            if OTHER[taken] in readers
            else f"{path} has one copy of the weights, and it is not known which it is: expected the other one beside it, as "
            "model010000.pt and ema_0.9999_010000.pt, or both in one file, got weights="
            f"{taken!r}; leave weights out"
        )
    if taken is None:
        _filled(network, path, _tensors(path, _read(path)))
        return None
    source, read = readers[taken]
    _filled(network, source, read())
    if len(readers) < len(COPIES):
        return None
    files = {source.name: sha256(source)}
    names: dict[Copy, str] = {copy: _called(copy, where, path) for copy, (where, _) in readers.items()}
    for part, prefix in ((network, ""), *((child, f"{name}.") for name, child in network.named_children())):
        keep_copies(part, Copies(taken, names, _loader(network, readers, prefix), files=files))
    found = vars(network)[_KEPT]
    assert isinstance(found, Copies)
    return found


_WHERE: dict[Copy, str] = {
    "ema": 'in a file ema_RATE_NNNNNN.pt beside it, or under "ema" or the keys model_ema.*',
    "raw": 'in a file modelNNNNNN.pt beside it, or under "model" or the keys model.*',
}
_Reader = tuple[Path, Callable[[], State]]


def _called(copy: Copy, where: Path, named: Path) -> str:
    """Return where a copy is: the name of its file, with the part of it if both are in one."""
    return where.name if _numbered(named) else f"{copy} of {where.name}"


def _numbered(path: Path) -> bool:
    return any(pattern.fullmatch(path.name) for pattern in _OPENAI)


def _readers(path: Path) -> tuple[dict[Copy, _Reader], Copy | None]:
    """Return the copies that a file, or files beside it, have, each with a function that reads it; and the one that was named."""
    check_regular(path)
    raw, ema = (pattern.fullmatch(path.name) for pattern in _OPENAI)
    if raw or ema:
        number = raw.group(1) if raw else ema.group(2)  # type: ignore[union-attr]
        averages = sorted(
            (float(match.group(1)), one)
            for one in path.parent.glob(f"ema_*_{number}.pt")
            if (match := _OPENAI[1].fullmatch(one.name))
        )
        files: dict[Copy, Path] = {"raw": path if raw else path.with_name(f"model{number}.pt")}
        if ema or averages:
            files["ema"] = path if ema else averages[-1][1]
        found: dict[Copy, _Reader] = {
            copy: (file, lambda file=file: _tensors(file, _read(file)))
            for copy, file in files.items()
            if file == path or file.is_file()
        }
        return found, "raw" if raw else "ema"
    # Read again when needed: two copies of a large network need not be in memory.
    there = _parts(path, _read(path)).keys()
    readers: dict[Copy, _Reader] = {
        copy: (path, lambda copy=copy: _parts(path, _read(path))[copy]) for copy in COPIES if copy in there
    }
    return readers, ("ema" if "ema" in there else "raw" if there else None)


def _parts(path: Path, content: Any) -> dict[Copy, State]:
    """Return the copies inside one file; {} if it names none."""
    if not isinstance(content, Mapping):
        return {}
    if isinstance(average := content.get("ema"), Mapping) and isinstance(model := content.get("model"), Mapping):
        inner = {key.removeprefix("ema_model."): one for key, one in average.items() if key.startswith("ema_model.")}
        return {"raw": _tensors(path, model)} | ({"ema": _tensors(path, inner)} if inner else {})  # type: ignore[dict-item]
    state = content["state_dict"] if isinstance(content.get("state_dict"), Mapping) else content
    if any(str(key).startswith("model_ema.") for key in state):
        # LitEma: the parameters of `model` without the dots in their names; buffers are those of training.
        raw = {key.removeprefix("model."): one for key, one in state.items() if key.startswith("model.")}
        average = {key.removeprefix("model_ema."): one for key, one in state.items() if key.startswith("model_ema.")}
        inner = {key: average.get(key.replace(".", ""), one) for key, one in raw.items()}
        return {"raw": _tensors(path, raw), "ema": _tensors(path, inner)}
    return {}


def _read(path: Path) -> Any:
    """Return what a file holds, without running code."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, among them refusals of code
        lines = str(error).strip().splitlines()
        raise DiffusionalError(
            f"{path} could not be read as safetensors, or by torch.load(weights_only=True) ({lines[0][:150] if lines else type(error).__name__}); "
            "a pickle can run code, and it was not loaded. Convert it where you trust it: safetensors.torch.save_file(state_dict, path)"
        ) from error


def _tensors(path: Path, state: Any) -> State:
    """Return the tensors of a state dict, or of one under "state_dict" or "model"; raises DiffusionalError if it has others."""
    for name in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not state or not all(isinstance(one, Tensor) for one in state.values()):
        raise DiffusionalError(
            f"expected {path} to hold tensors by name, a state dict, got {type(state).__name__} "
            f"{sorted(map(str, state))[:4] if isinstance(state, Mapping) else ''}; save the network's state_dict()"
        )
    return state


def _fitted(network: nn.Module, state: State) -> State:
    """Return a state dict with the names of a network: as it is, or a part of it, such as `model.*` of a lucidrains diffusion."""
    own = network.state_dict().keys()
    if own == state.keys():
        return state
    heads = sorted({name.split(".")[0] for name in state})
    for head in heads:
        part = {name.removeprefix(f"{head}."): one for name, one in state.items() if name.startswith(f"{head}.")}
        if part.keys() == own:
            return part
    return state


def _filled(network: nn.Module, path: Path, state: State) -> None:
    state, own = _fitted(network, state), network.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in own]
    wrong += [
        f"{name} has shape {tuple(one.shape)} there, {tuple(own[name].shape)} here"
        for name, one in state.items()
        if name in own and one.shape != own[name].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise DiffusionalError(
            f"the weights in {path} do not fit the {type(network).__name__}: {shown}. Build the network with the settings of its training"
        )
    if broken := [name for name, one in state.items() if one.is_floating_point() and not one.isfinite().all()]:
        raise DiffusionalError(f"the weights in {path} are not finite: {broken[0]} and {len(broken) - 1} others")
    network.load_state_dict(dict(state))


def _loader(network: nn.Module, readers: dict[Copy, _Reader], prefix: str) -> Callable[[Copy], State]:
    """Return a function that reads a copy for a network, or for its part whose weights have a prefix."""

    def load(copy: Copy) -> State:
        state = _fitted(network, readers[copy][1]())
        return {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}

    return load
