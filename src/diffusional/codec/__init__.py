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

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusional.codec.bitswap import BitSwap
from diffusional.codec.container import FORMAT, pack, unpack
from diffusional.codec.stack import Stack, keystream
from diffusional.errors import DiffusionalError
from diffusional.evaluation.provenance import fingerprint, tensor_hash
from diffusional.models.base import LatentVariableModel, device_of, evaluation_mode
from diffusional.seeds import check_seed

# What must be equal for the network's numbers to be so to the last bit.
_SAME = ("weights_sha256", "model", "space", "latents", "torch", "machine")


@dataclass(frozen=True)
class Compressed:
    """The file of some items.

    Attributes:
        data: the bytes of the file.
        items, dimensions: N and D.
        net_bits: bits by which the items made the stack longer, which is what the bound predicts.
        borrowed_bits: bits of the stack that were popped for the first items. They are a part of the file, and could carry other data.
        header_bits: bits of the header and the checksum.
        network_evaluations: number of network evaluations for coding, of the items only.
    """

    data: bytes
    items: int
    dimensions: int
    net_bits: int
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


def compress(
    model: LatentVariableModel,
    x: Tensor,
    *,
    steps: int | None = None,
    rows: int = 16,
    seed: int = 0,
    check: bool = True,
) -> Compressed:
    """Code encoded items x (N, *space.shape) without loss.

    Args:
        model: a chain with Gaussian latents over discrete data, without a condition, on the CPU.
        x: encoded items.
        steps: T, the number of latents to code with; by default that of the model. More latents lower the bound and take longer.
        rows: the number of items of one call of the network.
        seed: of the bits that are on the stack before the first item.
        check: whether the file is decoded and compared before it is returned.

    Raises DiffusionalError for other models and items, and if the network's numbers are not the same in a second evaluation.
    """
    model = _prepared(model, steps)
    model.space.check(x)
    check_seed(seed)
    if rows < 1:
        raise DiffusionalError(f"expected rows, the items of one call of the network, of at least 1, got {rows}")
    with _one_thread(model):
        coder, words = BitSwap(model, rows), 64 + x[0].numel()
        index = coder.space.index(x)
        while (stack := _encoded(coder, index, _initial(words, seed))) is None:
            words *= 2
        unused = stack.lowest
        header = {
            **_about(model),
            "items": len(x),
            "rows": rows,
            "seed": seed,
            "initial_words": words,
            "unused_words": unused,
            "data_sha256": fingerprint(model.space, x),
        }
        payload = stack.words()[unused:]
        data = pack(header, payload)
        if check and not decompress(model, data).equal(model.space.encode(index)):
            raise DiffusionalError(
                "the file did not decode to the items: the network's numbers differ from one evaluation to the next on this machine"
            )
    borrowed = 32 * (words - unused)
    return Compressed(
        data,
        len(x),
        model.space.dimensions,
        32 * len(payload) - borrowed,
        borrowed,
        8 * len(data) - 32 * len(payload),
        len(x) * coder.latents,
    )


def decompress(model: LatentVariableModel, data: bytes) -> Tensor:
    """Return the encoded items (N, *space.shape) of a file that `compress` wrote with the same model, on a machine of the same kind.

    Raises DiffusionalError for a file that is damaged or not of this kind, another model, and another version of torch or kind of machine.
    """
    header, payload = unpack(data)
    if header["latents"] != model.steps:
        model = model.regrid(header["latents"])
    model = _prepared(model, None)
    mine = _about(model)
    for name in _SAME:
        if header.get(name) != mine[name]:
            raise DiffusionalError(
                f"the file was coded with {name}={header.get(name)}, got {mine[name]}: decode it with the model and the installation "
                "that it was coded with"
            )
    initial = _initial(header["initial_words"], header["seed"])
    stack = Stack(np.concatenate([initial[: header["unused_words"]], payload]))
    with _one_thread(model):
        coder = BitSwap(model, header["rows"])
        groups = [*enumerate(coder.groups(header["items"]))]
        parts = [coder.decode(stack, some.stop - some.start, number) for number, some in reversed(groups)]
        x = model.space.encode(torch.cat(parts[::-1]))
    if not np.array_equal(stack.words(), initial) or fingerprint(model.space, x) != header["data_sha256"]:
        raise DiffusionalError(
            "the file did not decode to the items that it was made from: the network's numbers differ on this machine"
        )
    return x


def _prepared(model: LatentVariableModel, steps: int | None) -> LatentVariableModel:
    model = model if steps is None else model.regrid(steps)
    device = device_of(model, torch.zeros(1))
    if device.type != "cpu":
        raise DiffusionalError(
            f"expected a model on the CPU, where its numbers are reproducible, got one on {device}; use model.cpu()"
        )
    return model


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


def _initial(words: int, seed: int) -> NDArray[np.uint32]:
    """Return random words, the last of which is not zero."""
    drawn = keystream(seed, words)
    drawn[-1] |= 1
    return drawn


def _encoded(coder: BitSwap, index: Tensor, initial: NDArray[np.uint32]) -> Stack | None:
    """Return the stack of all items, or None if it has been empty."""
    stack = Stack(initial)
    for number, some in enumerate(coder.groups(len(index))):
        coder.encode(stack, index[some], number)
        if not stack.lowest:
            return None
    return stack


@contextmanager
def _one_thread(model: LatentVariableModel) -> Iterator[None]:
    """Evaluate the model with one thread, since sums of several depend on how they are divided."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with evaluation_mode(model), torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
