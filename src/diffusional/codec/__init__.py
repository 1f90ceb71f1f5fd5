"""A lossless codec whose files are as long as the bound of the model: bits back along the latents, MATH (33).

>>> import torch
>>> from diffusional import Denoiser, DiffusionModel, GaussianDiffusion, Discrete, likelihood, schedule
>>> space = Discrete((2,), levels=4)
>>> forward = GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=4))
>>> model = DiffusionModel(forward, Denoiser(lambda z, log_snr: 0 * z, "data"), likelihood.LevelPosterior(space))
>>> x = space.encode(torch.tensor([[0, 3], [1, 1], [2, 0]]))
>>> done = compress(model, x)
>>> decompress(model, done.data).equal(x)
True
"""

import math
import platform
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusional.codec.coder import Coder, encoded, initial_words, one_thread
from diffusional.codec.container import FORMAT, pack, unpack
from diffusional.codec.rate import RateDistortion, rate_distortion
from diffusional.codec.stack import Stack
from diffusional.codec.steps import Choice, choose_steps
from diffusional.conditions import Condition, check_condition, concatenated, rows_of
from diffusional.errors import DiffusionalError
from diffusional.evaluation.provenance import condition_record, fingerprint, tensor_hash
from diffusional.models.base import LatentVariableModel, device_of
from diffusional.seeds import check_seed
from diffusional.space import Discrete

__all__ = [
    "Choice",
    "Compressed",
    "RateDistortion",
    "Restored",
    "choose_steps",
    "code_length",
    "compress",
    "decompress",
    "rate_distortion",
    "restore",
]

# What must be equal for the network's numbers to be so to the last bit.
_SAME = ("weights_sha256", "model", "space", "latents", "torch", "machine")
# Items that are coded first, to find out how many pay for the latents of one more; the largest such number.
_FIRST, _MOST_PAID = 4, 32
# The number of latents of `code_length` for a model in continuous time.
_LATENTS = 200


@dataclass(frozen=True, eq=False)
class Compressed:
    """The file of some items.

    Attributes:
        data: the bytes of the file.
        items, dimensions: N and D.
        latents: T of the model that the items were coded with; None without one.
        net_bits: bits by which the items made the stack longer, which is what the bound predicts.
        path_nats: −ln p(x, z)/q(z|x) (N,) of the items at the latents that were coded, MATH (7), in nats.
        borrowed_bits: bits of the stack that were popped for the first items. They are a part of the file, and could carry other data.
        header_bits: bits of the header and the checksum.
        network_evaluations: number of network evaluations for coding, of the items only.
    """

    data: bytes
    items: int
    dimensions: int
    latents: int | None
    net_bits: int
    path_nats: NDArray[np.float64]
    borrowed_bits: int
    header_bits: int
    network_evaluations: int

    @property
    def bits_per_dim(self) -> float:
        """Bits of the whole file over N · D."""
        return 8 * len(self.data) / (self.items * self.dimensions)

    @property
    def net_bits_per_dim(self) -> float:
        """`net_bits` over N · D."""
        return self.net_bits / (self.items * self.dimensions)

    @property
    def path_bits_per_dim(self) -> float:
        """The path form of the bound at the latents that were coded, in bits over N · D."""
        return float(self.path_nats.sum()) / math.log(2) / (self.items * self.dimensions)

    @property
    def overhead(self) -> float:
        """`net_bits_per_dim` − `path_bits_per_dim`: what grids and the coder add, without the noise of a path.

        It is negative where latents are in the tails of p(z_t|z_{t+1}), which the coder gives more probability than a Gaussian has.
        """
        return self.net_bits_per_dim - self.path_bits_per_dim


@dataclass(frozen=True, eq=False)
class Restored:
    """The encoded items x (N, *space.shape) of a file, their condition if it has or needed one, and `path_nats` (N,) as in `Compressed`."""

    x: Tensor
    condition: Condition | None
    path_nats: NDArray[np.float64]


def compress(
    model: LatentVariableModel,
    x: Tensor,
    *,
    condition: Condition | None = None,
    labels: Literal["coded", "given"] = "coded",
    steps: int | Literal["auto"] | None = None,
    rows: int = 16,
    seed: int = 0,
    check: bool = True,
) -> Compressed:
    """Code encoded items x (N, *space.shape) without loss.

    Args:
        model: a chain, VAE, hierarchical VAE, or composite of such models over discrete data, on the CPU.
        x: encoded items.
        condition: of the items, for conditional models. Labels (N,) are a part of the file; any other condition must also be given to
            `decompress`.
        labels: "coded", under their frequencies among the items, or "given", to both ends.
        steps: T, the number of latents to code with, or "auto" for the one with the shortest file (`choose_steps`). By default that of the
            model, and "auto" in continuous time. More latents lower the bound and take longer.
        rows: the largest number of items of one call of a network.
        seed: of the bits that are on the stack before the first item.
        check: whether the file is decoded and compared before it is returned.

    Raises DiffusionalError for other models and items, and if the network's numbers are not the same in a second evaluation.
    """
    _check_model(model)
    model.space.check(x)
    check_condition(condition, len(x))
    check_seed(seed)
    if rows < 1:
        raise DiffusionalError(f"expected rows, the items of one call of a network, of at least 1, got {rows}")
    if labels not in ("coded", "given"):
        raise DiffusionalError(f"expected labels to be 'coded' or 'given', got {labels!r}")
    if steps == "auto" or (steps is None and _continuous(model)):
        steps = choose_steps(model, x, condition=condition, seed=seed).steps
    model = model if steps is None and not _continuous(model) else model.regrid(steps)
    assert isinstance(model.space, Discrete)
    x = model.space.encode(model.space.index(x))
    condition, frequencies = _prepared_condition(condition, labels)
    with one_thread(model):
        counts = None if frequencies is None else _frequencies(frequencies)
        grids = Coder(model, rows).measured(x, condition, seed)
        paid = _paid(Coder(model, rows, grids, labels=counts), x, condition, seed)
        coder, words = Coder(model, rows, grids, paid, counts), 64 + x[0].numel()
        while (found := encoded(coder, x, condition, initial_words(words, seed))) is None:
            words *= 2
        stack, nats = found
        unused = stack.lowest
        header = {
            **_about(model),
            "items": len(x),
            "rows": rows,
            "seed": seed,
            "initial_words": words,
            "unused_words": unused,
            "data_sha256": fingerprint(model.space, x),
            "grid": steps,
            "spacings": grids,
            "paid": paid,
            "label_counts": frequencies,
            "condition": {} if frequencies is not None else condition_record(condition),
        }
        payload = stack.words()[unused:]
        data = pack(header, payload)
        given = None if frequencies is not None else condition
        if check and not decompress(model, data, condition=given).equal(x):
            raise DiffusionalError(
                "the file did not decode to the items: the network's numbers differ from one evaluation to the next on this machine"
            )
    borrowed = 32 * (words - unused)
    return Compressed(
        data,
        len(x),
        model.space.dimensions,
        model.steps,
        32 * len(payload) - borrowed,
        nats,
        borrowed,
        8 * len(data) - 32 * len(payload),
        len(x) * model.evaluations,
    )


def decompress(model: LatentVariableModel, data: bytes, *, condition: Condition | None = None) -> Tensor:
    """Return the encoded items (N, *space.shape) of a file that `compress` wrote with the same model, on a machine of the same kind.

    Args:
        condition: that of the items, unless the file contains their labels.

    Raises DiffusionalError for a file that is damaged or not of this kind, another model or condition, and another version of torch or kind of
    machine.
    """
    return restore(model, data, condition=condition).x


def restore(model: LatentVariableModel, data: bytes, *, condition: Condition | None = None) -> Restored:
    """Return the items, as `decompress` does, with their labels and the costs of the path that was coded."""
    header, payload = unpack(data)
    _check_model(model)
    # Before a model of another kind is asked for T latents.
    _check_same(header, {"model": type(model).__name__, "space": model.space.to_dict()})
    if header["latents"] != model.steps or (header["grid"] is None and _continuous(model)):
        model = model.regrid(header["grid"] or header["latents"])
    _check_same(header, {name: value for name, value in _about(model).items() if name in _SAME})
    check_condition(condition, header["items"])
    if condition_record(condition) != header["condition"]:
        raise DiffusionalError(
            f"expected {'the condition that the items were coded with' if header['condition'] else 'no condition'}, got "
            f"{'none' if condition is None else 'another one' if header['condition'] else 'one'}; the file "
            f"{'does not contain it' if header['condition'] else 'needs none'}"
        )
    initial = initial_words(header["initial_words"], header["seed"])
    stack = Stack(np.concatenate([initial[: header["unused_words"]], payload]))
    counts = header["label_counts"]
    with one_thread(model):
        coder = Coder(
            model, header["rows"], header["spacings"], header["paid"], None if counts is None else _frequencies(counts)
        )
        parts = [
            coder.decode(stack, some.stop - some.start, number, rows_of(condition, some))
            for number, some in reversed([*enumerate(coder.groups(header["items"]))])
        ][::-1]
    x = torch.cat([part[0] for part in parts])
    if not np.array_equal(stack.words(), initial) or fingerprint(model.space, x) != header["data_sha256"]:
        raise DiffusionalError(
            "the file did not decode to the items that it was made from: the network's numbers differ on this machine"
        )
    conditions = [part[1] for part in parts if part[1] is not None]
    return Restored(x, concatenated(conditions) if conditions else None, np.concatenate([part[2] for part in parts]))


def code_length(model: LatentVariableModel, x: Tensor, condition: Condition | None = None) -> Tensor:
    """Return the nats (N,) that each of the items x takes in a file, which is decoded: the costs of its path and an equal part of the overhead.

    The header and what the first item borrows are left out. A model in continuous time is coded with 200 latents. It is what
    `evaluation.witnesses` takes as `code`.
    """
    done = compress(model, x, condition=condition, labels="given", steps=_LATENTS if _continuous(model) else None)
    return torch.from_numpy(done.path_nats + (done.net_bits * math.log(2) - done.path_nats.sum()) / done.items)


def _check_model(model: LatentVariableModel) -> None:
    """Raise DiffusionalError for a model that is not on the CPU, and one whose data are not discrete."""
    if not isinstance(model.space, Discrete):
        raise DiffusionalError(
            f"the codec of a {type(model).__name__} expected discrete data, of which it can code every bit, got {model.space}"
        )
    device = device_of(model, torch.zeros(1))
    if device.type != "cpu":
        raise DiffusionalError(
            f"expected a model on the CPU, where its numbers are reproducible, got one on {device}; use model.cpu()"
        )


def _continuous(model: LatentVariableModel) -> bool:
    """Return whether a model is, or contains, a chain in continuous time."""
    visited = model.visited()
    return visited is not None and visited.steps is None


def _prepared_condition(condition: Condition | None, labels: str) -> tuple[Condition | None, list[int] | None]:
    """Return the condition, and how often each class occurs if it is labels that are coded."""
    if not isinstance(condition, Tensor) or condition.ndim != 1 or condition.is_floating_point() or labels == "given":
        return condition, None
    if int(condition.min()) < 0:
        raise DiffusionalError(f"expected labels of at least 0, got {int(condition.min())}")
    return condition.long(), torch.bincount(condition.long(), minlength=2).tolist()


def _frequencies(counts: list[int]) -> Tensor:
    return torch.tensor(counts).double().div(sum(counts)).log()


def _check_same(header: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raise DiffusionalError if a file was coded with another model or on another machine than these facts describe."""
    for name, value in mine.items():
        if header.get(name) != value:
            raise DiffusionalError(
                f"the file was coded with {name}={header.get(name)}, got {value}: decode it with the model and the installation "
                "that it was coded with"
            )


def _about(model: LatentVariableModel) -> dict[str, Any]:
    """Return what a file states about the model and the machine."""
    return {
        "format": FORMAT,
        "weights_sha256": tensor_hash(model.state_dict()),
        "model": type(model).__name__,
        "space": model.space.to_dict(),
        "latents": model.steps,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }


def _paid(coder: Coder, x: Tensor, condition: Condition | None, seed: int) -> int:
    """Return the number of items whose bits pay for the latents of one more, from coding the first items one by one."""
    if len(x) <= _FIRST:
        return coder.paid
    words = 64 + 64 * x[0].numel()
    found = encoded(coder, x[:_FIRST], rows_of(condition, slice(_FIRST)), initial_words(words, seed))
    if found is None:
        return _MOST_PAID
    stack, nats = found
    each = max(1.0, float(nats.mean()) / math.log(2))
    return max(1, min(_MOST_PAID, math.ceil(32 * (words - stack.lowest) / each)))
