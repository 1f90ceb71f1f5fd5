"""Every file below a folder is visited once, whatever links there are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from battery import environment
from diffusional.data import folders, load
from diffusional.data.folders import Alias, walk
from diffusional.errors import DiffusionalError


def tree(folder: Path, *names: str) -> None:
    """Empty files, and links written as "link -> target"."""
    for name in names:
        link, _, target = name.partition(" -> ")
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        if target:
            (folder / link).symlink_to(target)
        else:
            (folder / link).touch()


@pytest.mark.parametrize(
    ("names", "found", "aliases"),
    [
        (["b/x", "a", "b/c/y"], ["a", "b/x", "b/c/y"], []),
        ([".git/x", ".x", "__MACOSX/x", "a"], ["a"], []),
        # Loops: to the folder itself, to one above it, to a sibling, two at once.
        (["a", "self -> ."], ["a"], [("self/", "")]),
        (["a", "up -> ../.."], ["a"], []),
        (["b/x", "b/top -> .."], ["b/x"], [("b/top/", "")]),
        (["b/x", "b/c -> ../c", "c/b -> ../b"], ["b/x"], [("b/c/", "c/"), ("c/b/", "b/")]),
        (["a -> .", "b -> .", "c -> ."], [], [("a/", ""), ("b/", ""), ("c/", "")]),
        # A name of its own comes before a link, whichever is first in the alphabet.
        (["a -> b", "b/x"], ["b/x"], [("a/", "b/")]),
        (["a -> b", "b"], ["b"], [("a", "b")]),
        # What lies elsewhere is found by its first link.
        (["b -> ../out/b", "c -> ../out/b"], ["b/x"], [("c/", "b/")]),
        (["b -> ../out/b/x", "c -> ../out/b/x"], ["b"], [("c", "b")]),
        # Links that lead nowhere are left to whoever reads them.
        (["gone -> nowhere", "self -> self"], ["gone", "self"], []),
    ],
)
def test_each_file_once(tmp_path: Path, names: list[str], found: list[str], aliases: list[Alias]) -> None:
    tree(tmp_path, "out/b/x")
    (tmp_path / "in").mkdir()
    tree(tmp_path / "in", *names)
    passed: list[Alias] = []
    assert list(walk(tmp_path / "in", passed)) == found
    assert passed == aliases


def test_the_siblings_of_a_folder_are_not_reached_through_a_link_above_it(tmp_path: Path) -> None:
    tree(tmp_path, "in/a", "in/up -> ..", "beside/b")
    assert list(walk(tmp_path / "in")) == ["a"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/x", "b/x")
    real = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(folders.os, "scandir", denied)
    with pytest.raises(DiffusionalError, match=r"/b could not be read \(Permission denied\)"):
        list(walk(tmp_path))


def test_links_to_itself_in_a_folder_without_data(tmp_path: Path) -> None:
    tree(tmp_path, "notes.txt", *(f"{name} -> ." for name in "abcdefgh"))
    with pytest.raises(DiffusionalError, match="holds no data of a known kind"):
        load(tmp_path)


def test_tables_behind_a_link_are_read_once(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 2))
    (tmp_path / "out").mkdir()
    np.savetxt(tmp_path / "out" / "a.csv", rows, delimiter=",", header="x,y", comments="")
    tree(tmp_path, "in/b -> ../out", "in/c -> ../out", "in/.ipynb_checkpoints/a-checkpoint.csv")
    data = load(tmp_path / "in")
    assert sum(map(len, (data.train, data.validation, data.test))) == 20


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


# In a process of its own, which is ended if it hangs.
LOAD = """
import sys
from diffusional.data import load
from diffusional.errors import DiffusionalError
for path in sys.argv[1:]:
    try:
        load(path)
    except DiffusionalError as error:
        print(error)
"""


@pytest.mark.parametrize("make", [_fifo, _endless])
def test_special_files_are_refused_in_place_of_data(tmp_path: Path, make) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 2))
    names = ["a.npy", "a.npz", "a.idx", "a.idx.gz", "a.csv", "a.tsv.gz", "a.parquet"]
    inside = ["images/a.png", "tables/a.csv", "mnist/train-images-idx3-ubyte"]
    (tmp_path / "tables").mkdir()
    np.savetxt(tmp_path / "tables" / "b.csv", rows, delimiter=",", header="x,y", comments="")
    (tmp_path / "images").mkdir()
    for i in range(10):
        Image.new("L", (2, 2)).save(tmp_path / "images" / f"{i}.png")
    for name in [*names, *inside]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make(tmp_path / name)
    wanted = [tmp_path / name for name in names] + [(tmp_path / name).parent for name in inside]
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, wanted)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    told = ran.stdout.splitlines()
    assert len(told) == len(wanted), ran.stderr
    kind = "named pipe" if make is _fifo else "character device"
    for name, line in zip([*names, *inside], told, strict=True):
        assert f"{tmp_path / name} is a {kind}" in line


def test_special_files_are_refused_in_a_folder_of_the_hub_s_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    _fifo(tmp_path / "train.parquet")
    with pytest.raises(DiffusionalError, match=r"train\.parquet is a named pipe"):
        load(f"hf:{tmp_path}")
