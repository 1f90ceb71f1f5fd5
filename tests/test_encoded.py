"""Items that are read and encoded as they are needed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusional as df
from diffusional import likelihood, schedule
from diffusional.cli import items as of_command
from diffusional.data.rows import Rows, integers
from diffusional.encoded import EncodedItems, in_memory, some_of
from diffusional.space import Continuous, Discrete

SPACE = Discrete((1, 4, 4), levels=17)


class Counted:
    """Raw items that record the largest number that was read at once."""

    def __init__(self, raw: np.ndarray) -> None:
        self.rows, self.most = Rows(raw, slice(None), integers), 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        out = self.rows[rows]
        self.most = max(self.most, len(out))
        return out


def raw(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 17, (n, 1, 4, 4), dtype=np.uint8)


def model(steps: int | None = 20) -> df.DiffusionModel:
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-9.0, 9.0, steps=steps))
    return df.DiffusionModel(
        forward, df.Denoiser(lambda z, log_snr: 0.3 * z, predicts="noise"), likelihood.LevelPosterior(SPACE)
    )


@pytest.mark.parametrize("options", [{"visits": 3}, {"target_error": 0.5}, {"item_error": 2.0}])
def test_an_evaluation_has_the_same_scores(options: dict[str, float]) -> None:
    items = EncodedItems(Rows(raw(100), slice(None), integers), SPACE)
    lazy = df.evaluate(model(), items, unit="nats", **options)
    whole = df.evaluate(model(), in_memory(items), unit="nats", **options)
    assert lazy.nelbo == whole.nelbo
    for name, values in whole.per_item.items():
        assert lazy.per_item[name].equal(values), name
    assert lazy.provenance["data_sha256"] == whole.provenance["data_sha256"]


def test_the_memory_of_an_evaluation_has_no_room_for_all_items() -> None:
    source = Counted(raw(70_000))
    df.evaluate(model(), EncodedItems(source, SPACE), 0.1, "nats")
    # The largest read is that of the items to which controls are fitted, which are at most 65,536.
    assert source.most == 35_000


def test_a_sweep_reads_all_items() -> None:
    lazy = EncodedItems(torch.from_numpy(raw(6)), SPACE)
    assert df.evaluate(model(), lazy).nelbo == df.evaluate(model(), lazy[:]).nelbo


def test_values_that_the_space_refuses_name_their_item() -> None:
    values = raw(5000)
    values[4320, 0, 2, 2] = 17
    with pytest.raises(df.DiffusionalError, match=r"item 4320: .*0 … 16"):
        df.evaluate(model(), EncodedItems(Rows(values, slice(None), integers), SPACE), visits=2)


def test_items_of_another_space_and_no_items_are_refused() -> None:
    with pytest.raises(df.DiffusionalError, match="levels=9"):
        df.evaluate(model(), EncodedItems(torch.zeros(4, 1, 4, 4).long(), Discrete((1, 4, 4), levels=9)), visits=2)
    with pytest.raises(df.DiffusionalError, match="at least one item"):
        df.evaluate(model(), EncodedItems(torch.zeros(0, 1, 4, 4).long(), SPACE), visits=2)


def test_some_of_large_data_are_spread_over_all() -> None:
    items = EncodedItems(torch.arange(10_000.0)[:, None], Continuous((1,)))
    # Tensors, since pytest takes minutes to print how two long lists differ.
    assert some_of(items).flatten().equal(torch.arange(0.0, 10_000, 3))
    assert in_memory(items).flatten().equal(torch.arange(10_000.0))


def test_the_command_reads_a_large_file_as_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", raw(50))
    mapped = Rows(np.load(tmp_path / "x.npy", mmap_mode="r"), slice(None), integers)
    assert of_command._large([mapped], SPACE) is None
    monkeypatch.setattr(of_command, "LARGE", 100)
    found = of_command._large([mapped], SPACE)
    assert found is not None
    assert found[:].equal(SPACE.encode(torch.from_numpy(raw(50))))
    assert of_command._large([mapped, mapped], SPACE) is None
    assert of_command._large([torch.from_numpy(raw(50))], SPACE) is None


def test_the_number_of_a_refused_item_is_that_in_the_data() -> None:
    items = EncodedItems(torch.tensor([[0], [5], [1], [7]]), Discrete((1,), levels=2))
    with pytest.raises(df.DiffusionalError, match=r"^item 3: "):
        items[torch.tensor([0, 3, 1])]
    with pytest.raises(df.DiffusionalError, match=r"^item 1: "):
        items[0:3]
    with pytest.raises(df.DiffusionalError, match=r"^item 3: "):
        items[2:]
