"""The items of a step's batch: a function of (seed, step), independent of the number of processes and of resumptions."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import moved
from diffusional.data.dataset import Dataset, Stream, conditions_read, pairs_read
from diffusional.deprecation import renamed_names
from diffusional.errors import DiffusionalError
from diffusional.training.seeds import seed_of

__getattr__ = renamed_names(__name__, {"Feed": "BatchLoader"})


class BatchLoader:
    """The batches of training: epochs follow each other, each a permutation of the train split drawn from (seed, epoch).

    Step s has the items from s · batch on, and each process has its share of them.

    Data that are not in memory, or are moved to a GPU, are loaded one step ahead in a thread. A streamed data set has its own order.

    >>> from diffusional.data import load
    >>> batches = BatchLoader(load("digits"), seed=0, batch=128, share=slice(0, 64))
    >>> x, rows = batches(step=0)
    >>> x.shape, rows.shape
    (torch.Size([64, 1, 8, 8]), torch.Size([64]))
    """

    def __init__(
        self, dataset: Dataset, seed: int, batch: int, share: slice, device: torch.device | None = None, last: int = 0
    ) -> None:
        self.dataset, self.seed, self.batch, self.share = dataset, seed, batch, share
        self.device = device or torch.device("cpu")
        ahead = self.device.type == "cuda" or not isinstance(dataset.train, Tensor)
        self._pool = ThreadPoolExecutor(1) if ahead and last else None
        self._last, self._waiting = last, dict[int, Future]()
        self._orders: dict[int, Tensor] = {}
        self._tape: _Tape | None = None
        # The rows of the last step and the condition of their items, of a stream with conditions.
        self._read: tuple[Tensor, Any] | None = None
        self._starts: dict[int, tuple[int, int]] = {}

    def place(self, step: int) -> tuple[int, int]:
        """Return the position in a stream at which a step begins, (epoch, items before it), for resuming; (0, 0) for other data."""
        return self._starts.get(step, (0, 0))

    def seek(self, step: int, place: tuple[int, int]) -> None:
        """Continue with `step`, whose position is `place`."""
        self._starts = {step: place}
        self._tape = None

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's items of a step, encoded, and their rows in the split (for a stream, the number of items before each)."""
        if self._pool is None:
            x, rows, self._read = self._load(step)
        else:
            waiting = self._waiting.pop(step, None)
            # In the same thread in both cases, since a stream has one position.
            x, rows, self._read = (waiting or self._pool.submit(self._load, step)).result()
            if step + 1 < self._last:
                self._waiting[step + 1] = self._pool.submit(self._load, step + 1)
        return x.to(self.device, non_blocking=True), rows

    def condition(self, rows: Tensor) -> Any:
        """Return the condition of the items in these rows of the train split, for a stream those of the last step; None if the data have
        none.
        """
        if self._read is not None:
            last, condition = self._read
            if not torch.equal(rows, last):
                raise DiffusionalError(
                    f"expected the rows of the last step, {last.tolist()[:1]} …, whose conditions a stream has read, got {rows.tolist()[:1]} …"
                )
            return moved(condition, self.device)
        return moved(self.dataset.condition_of("train", rows), self.device)

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _load(self, step: int) -> tuple[Tensor, Tensor, tuple[Tensor, Any] | None]:
        places, read = range(step * self.batch, (step + 1) * self.batch)[self.share], None
        if not isinstance(self.dataset.train, Stream):
            rows = self._rows(places)
            x = self.dataset.encode("train", rows)
        else:
            rows = torch.arange(places.start, places.stop)
            raw, condition = self._next(step)
            x = self.dataset.space.encode(raw)
            read = None if condition is None else (rows, condition)
        return (x.pin_memory() if self.device.type == "cuda" else x), rows, read

    def _rows(self, places: range) -> Tensor:
        """Return the rows of the train split at positions of the sequence of epochs."""
        n = len(self.dataset.items("train"))
        first, last = places.start, places.stop
        parts = [
            self._order(epoch, n)[max(0, first - epoch * n) : last - epoch * n]
            for epoch in range(first // n, -(-last // n))
        ]
        return torch.cat(parts)

    def _order(self, epoch: int, n: int) -> Tensor:
        """Return the permutation of an epoch. The last two are cached, since drawing one of 10⁶ items takes longer than a step."""
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
            self._orders[epoch] = torch.randperm(n, generator=generator)
        return self._orders[epoch]

    def _next(self, step: int) -> tuple[Tensor, Any]:
        """Return this process's share of the items of a step from a stream, and their conditions if the data have any; the items of other
        processes are skipped.
        """
        assert isinstance(self.dataset.train, Stream)
        if self._tape is None:
            self._tape = _Tape(self.dataset.train, *self.place(step), self.dataset.condition is not None)
        items = self._tape.take(self.batch)[self.share]
        self._starts = {s: place for s, place in self._starts.items() if s >= step} | {step + 1: self._tape.place}
        raw = torch.stack([item for item, _ in items])
        if self.dataset.condition is None:
            return raw, None
        return raw, conditions_read(self.dataset.train, [value for _, value in items])


class _Tape:
    """The epochs of a stream one after another, and the position in them."""

    def __init__(self, stream: Stream, epoch: int, index: int, conditional: bool) -> None:
        self.stream, self.place, self.conditional = stream, (epoch, index), conditional
        self._items = pairs_read(stream, epoch, index, conditional)

    def take(self, n: int) -> list[tuple[Tensor, Any]]:
        out: list[tuple[Tensor, Any]] = []
        while len(out) < n:
            epoch, index = self.place
            item = next(self._items, None)
            if item is not None:
                out.append(item)
                self.place = (epoch, index + 1)
            elif index == 0:
                raise DiffusionalError(f"the stream {self.stream.identity} has no items in epoch {epoch}")
            else:
                self.place = (epoch + 1, 0)
                self._items = pairs_read(self.stream, epoch + 1, 0, self.conditional)
        return out
