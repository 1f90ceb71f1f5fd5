"""Known versions of data are named in records, and results about different ones are not put together unless told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import diffusional as df
from battery import command
from diffusional import likelihood, schedule
from diffusional.evaluation.provenance import fingerprint, provenance
from diffusional.known_data import FILES, KNOWN, KnownFile, recognise, recognise_file, recognise_files
from diffusional.report.tables import baseline_table, ledgers_table


def test_the_digits_are_recognised_by_both_hashes() -> None:
    digits = df.data.load("digits")
    for split in ("train", "validation", "test"):
        for found in (digits.fingerprint(split), fingerprint(digits.space, digits.encode(split))):
            known = recognise(found)
            assert known is not None
            assert (known.name, known.evidence) == (f"digits {split}", "fingerprint")
    assert recognise(digits.subset("test", slice(0, 446)).fingerprint("test")) is None


def test_every_version_has_one_name_and_one_kind_of_evidence() -> None:
    assert len({known.name for known in KNOWN}) == len(KNOWN)
    hashes = [one for known in KNOWN for one in known.hashes]
    assert len(set(hashes)) == len(hashes)
    assert all(len(one) == 64 for one in hashes)
    counted = [(known.shape, known.items) for known in KNOWN if not known.hashes]
    assert len(set(counted)) == len(counted)
    assert all(shape and items for shape, items in counted)


def test_the_two_versions_of_imagenet_are_told_apart_by_their_count() -> None:
    for side in (32, 64):
        old, new = (recognise(shape=(3, side, side), items=n, levels=256) for n in (49_999, 50_000))
        assert old is not None
        assert new is not None
        assert "2016" in old.name
        assert "2017" in new.name
        assert old.evidence == new.evidence == "shape and count"
        assert "0.26" in old.about
    # At 32 x 32 the count is also that of CIFAR's training images, and nothing is claimed.
    ambiguous = recognise(shape=(3, 32, 32), items=50_000, levels=256)
    assert ambiguous is not None
    assert "CIFAR" in ambiguous.name
    for other in ({"shape": (3, 32, 32), "items": 49_998}, {"shape": (1, 32, 32), "items": 49_999}):
        assert recognise(levels=256, **other) is None  # type: ignore[arg-type]
    assert recognise(shape=(3, 32, 32), items=49_999, levels=8) is None
    assert recognise(shape=(3, 32, 32), items=49_999) is None


def test_records_name_the_version_and_tables_refuse_two() -> None:
    digits = df.data.load("digits")
    forward = df.GaussianDiffusion(schedule.log_snr_linear(-6.0, 6.0, steps=20))
    denoiser = df.Denoiser(lambda z, log_snr: 0.5 * z.clamp(-1, 1), "data")
    model = df.DiffusionModel(forward, denoiser, likelihood.LevelPosterior(digits.space))
    x = digits.encode("test")
    entry = provenance(model, x, 0)["data_version"]
    assert (entry["name"], entry["recognised"]) == ("digits test", "by fingerprint")
    assert "data_version" not in provenance(model, x[:100], 0)
    plan = df.Plan.uniform(model)
    test, validation = (
        df.evaluate(model, digits.encode(split), visits=2, plan=plan, audit=False) for split in ("test", "validation")
    )
    assert "digits test, recognised by fingerprint" in str(test)
    loaded = df.Evaluation.from_json(json.loads(json.dumps(test.to_json())))
    assert loaded.provenance["data_version"]["name"] == "digits test"
    for table in (baseline_table, ledgers_table):
        with pytest.raises(df.DiffusionalError, match=r"digits test.*digits validation.*across_data=True"):
            table({"a": test, "b": validation}, "two")
        assert table({"a": test, "b": validation}, "two", across_data=True).row_count > 0
        assert table({"a": test, "b": loaded}, "one").row_count > 0
    # Scores of unknown origin can be put beside others.
    assert (
        baseline_table({"a": test, "b": df.Evaluation.from_scores(torch.ones(3), dimensions=64)}, "one").row_count == 2
    )


def test_the_data_command_names_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(capsys, "data", "digits", "--json", "-")
    assert status == 0
    found = json.loads(out)["versions"]
    assert {split: entry["name"] for split, entry in found.items()} == {
        split: f"digits {split}" for split in ("train", "validation", "test")
    }
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "other.npy", images)
    status, out, _ = command(capsys, "data", tmp_path / "other.npy", "--levels", 256, "--json", "-")
    assert json.loads(out)["versions"] == {}


def test_published_files_have_one_hash_each() -> None:
    hashes = [one.md5 or one.sha256 for one in FILES]
    assert len(set(hashes)) == len(hashes)
    for one in FILES:
        assert bool(one.md5) != bool(one.sha256)
        assert len(one.md5 or one.sha256) == (32 if one.md5 else 64)
        assert set(one.md5 + one.sha256) <= set("0123456789abcdef")
        assert one.source.startswith(("pytorch/vision", "tensorflow/datasets"))
    # torchvision's list, and that of TensorFlow Datasets.
    by_name = {one.file: one for one in FILES}
    assert by_name["cifar-10-python.tar.gz"].md5 == "c58f30108f718f92721af3b95e74349a"
    assert "2016" in by_name["valid_32x32.tar"].data
    assert "2017" in by_name["Imagenet32_val_npz.zip"].data


def test_files_are_recognised_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    content = b"an archive"
    made = (
        KnownFile("archive.tar.gz", "a set, its archive", "a list", md5=hashlib.md5(content).hexdigest()),
        KnownFile("other.tar", "another set", "a list", sha256=hashlib.sha256(b"tar").hexdigest(), size=3),
    )
    monkeypatch.setattr("diffusional.known_data.FILES", made)
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(content)
    (tmp_path / "renamed.tar").write_bytes(b"tar")  # of a known size
    assert recognise_file(archive) == made[0]
    assert recognise_file(tmp_path / "renamed.tar") == made[1]
    assert list(recognise_files(tmp_path)) == ["archive.tar.gz"]
    assert recognise_file(tmp_path / "absent.tar") is None
    with pytest.raises(df.DiffusionalError, match=r"a set, its archive, recognised by the MD5.*Unpack"):
        df.data.load(archive)
    archive.write_bytes(content + b".")
    assert recognise_file(archive) is None
    (tmp_path / "other.tar").write_bytes(b"car")  # the name and the size, and another content
    assert recognise_file(tmp_path / "other.tar") is None
    # Of data that are read, `diffusional data` prints it.
    monkeypatch.setattr(
        "diffusional.known_data.FILES",
        (KnownFile("x.npy", "a set of noise", "a list", md5=_saved(tmp_path / "x.npy")),),
    )
    found, out, err = command(capsys, "data", tmp_path / "x.npy", "--levels", 4, "--json", "-")
    assert found == 0, err
    assert "x.npy is a set of noise, recognised by the MD5 of the file" in err
    assert json.loads(out)["files"]["x.npy"]["data"] == "a set of noise"


def _saved(path: Path) -> str:
    import hashlib

    np.save(path, np.random.default_rng(0).integers(0, 4, (40, 5), dtype=np.uint8))
    return hashlib.md5(path.read_bytes()).hexdigest()
