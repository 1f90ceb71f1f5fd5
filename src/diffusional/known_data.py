"""Versions of public data sets that records name, and the evidence by which they are recognised.

A data set of one name can exist in versions whose bounds differ: a model of ImageNet-32 has 3.43 bits/dim on the images of Chrabaszcz et al.
and 3.69 on those of van den Oord et al. A fingerprint identifies items exactly, in their order. Where the files were not at hand to compute
one, shape and count are weaker evidence, which the record states.

Two hashes of the same items are in use: the fingerprint of a split (`Dataset.fingerprint`), and `data_sha256` of an evaluation.

Files as they are published are recognised by their MD5 or SHA-256 (`recognise_file`), as torchvision and TensorFlow Datasets list them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Evidence = Literal["fingerprint", "shape and count"]


@dataclass(frozen=True)
class KnownData:
    """A version of a data set.

    Attributes:
        name: of the data and the split.
        about: what is known of this version.
        source: where the version, or the statement about it, comes from.
        hashes: fingerprints and values of `data_sha256`; none if it is recognised by shape and count.
        shape, items, levels: of the items, for a version without hashes.
    """

    name: str
    about: str
    source: str
    hashes: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    items: int = 0
    levels: int = 256

    @property
    def evidence(self) -> Evidence:
        """How the version is recognised."""
        return "fingerprint" if self.hashes else "shape and count"


_MNIST = "LeCun, Cortes & Burges; the unpacked files have the MD5 6bbc9ace… (train) and 2646ac64… (test)"
_DIGITS = "sklearn.datasets.load_digits, split by position (data/digits.py)"
_OLD = "van den Oord, Kalchbrenner & Kavukcuoglu 2016, Pixel Recurrent Neural Networks"
_NEW = "Chrabaszcz, Loshchilov & Hutter 2017, A Downsampled Variant of ImageNet"
_OF_OLD = (
    "the first downsampling, withdrawn by image-net.org; its bounds lie about 0.26 bits/dim above those of the version of 2017 "
    "(3.69 and 3.43 for one model at 32 × 32)"
)
_OF_NEW = (
    "the downsampling with a box filter; its bounds lie about 0.26 bits/dim below those of the first version (3.43 and 3.69 for one model at "
    "32 × 32)"
)

KNOWN = (
    KnownData(
        "MNIST test",
        "the 10,000 test images in the order of the file",
        _MNIST,
        (
            "f9d4b03256c1b9cc74f07b4962202a35d2dc7c181b178f355665842d39ebbdfb",
            "a5b43962f3337de35e85479817eb1db70d052f680b19969c405005b4671243c4",
        ),
    ),
    KnownData(
        "MNIST train",
        "the 60,000 training images in the order of the file",
        _MNIST,
        ("9e790058c5aa69ff3387792de2a7b7f92a9f333628fcf732f57a76d49d97c43b",),
    ),
    KnownData(
        "MNIST train, without validation",
        "55,000 of the training images, by the split of this library with split_seed=0",
        _MNIST,
        (
            "d928d76310aa1cfd055b2dd1e0da26722fcafeaa39310c1c685c7f862b82a651",
            "50018db94068bbbe976f94f1a34b7c831f2b60d7e3323437649ceb7f6bcc265d",
        ),
    ),
    KnownData(
        "MNIST validation",
        "5,000 of the training images, by the split of this library with split_seed=0",
        _MNIST,
        (
            "13fae522107c99695cbcda780a31ad9ea51fbeea4b5b884d455980b793218f64",
            "e393caacb02e0a7e7cd8b145578c3b638759358da2e492b6bd48e901cbf99a5b",
        ),
    ),
    KnownData(
        "digits train",
        "images 0 to 999",
        _DIGITS,
        (
            "51ca92c5e718316e74557ae3406e2f8f696f239c42139da54f47bdc2311c31b1",
            "574ddc7d6840fd34a2401d8eada58dccd19daeb34e83d545797558ea8f11dd11",
        ),
    ),
    KnownData(
        "digits validation",
        "images 1000 to 1349",
        _DIGITS,
        (
            "e3a11289091690c31a1c87d0ddd7934a98253e7c5df97bc148a924b5004a82ec",
            "2ba6232df213e75d5bb9da44d551c11e9ff708c32d0c3e3fd3fb189da763a304",
        ),
    ),
    KnownData(
        "digits test",
        "images 1350 to 1796",
        _DIGITS,
        (
            "23309fb5855187d1b1f1cdd4e0685748d960f28e7ab55e9490cb7a43ca55a958",
            "1c0e8938bd56ee7f9d8cdd12cd52084b9d5cb33e8bb6b90e55791c086544c05a",
        ),
    ),
    *(
        KnownData(f"ImageNet-{side} {split} (2016)", _OF_OLD, _OLD, shape=(3, side, side), items=items)
        for side in (32, 64)
        for split, items in (("validation", 49_999), ("train", 1_281_149))
    ),
    *(
        KnownData(f"ImageNet-{side} {split} (2017)", _OF_NEW, _NEW, shape=(3, side, side), items=items)
        for side in (32, 64)
        for split, items in (("validation", 50_000), ("train", 1_281_167))
        # CIFAR's training images have the same shape and count.
        if (side, split) != (32, "validation")
    ),
    KnownData(
        "ImageNet-32 validation (2017), or CIFAR train",
        "50,000 images of this shape: either the validation images of ImageNet-32 in the version of 2017, or the training images of CIFAR-10 or "
        "CIFAR-100",
        f"{_NEW}; Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        shape=(3, 32, 32),
        items=50_000,
    ),
    KnownData(
        "CIFAR test",
        "10,000 images of this shape: the test images of CIFAR-10 or CIFAR-100",
        "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        shape=(3, 32, 32),
        items=10_000,
    ),
)


def recognise(
    hashes: str | Sequence[str] = (), shape: Sequence[int] = (), items: int | None = None, levels: int | None = None
) -> KnownData | None:
    """Return the known version of some items, or None.

    Args:
        hashes: the fingerprint of a split, or `data_sha256` of an evaluation, or both.
        shape, items, levels: of the items, as weaker evidence.

    >>> recognise("f9d4b03256c1b9cc74f07b4962202a35d2dc7c181b178f355665842d39ebbdfb").name
    'MNIST test'
    >>> known = recognise(shape=(3, 64, 64), items=49_999, levels=256)
    >>> known.name, known.evidence
    ('ImageNet-64 validation (2016)', 'shape and count')
    """
    given = (hashes,) if isinstance(hashes, str) else tuple(hashes)
    for known in KNOWN:
        if set(known.hashes) & set(given):
            return known
    for known in KNOWN:
        if not known.hashes and (known.shape, known.items, known.levels) == (tuple(shape), items, levels):
            return known
    return None


def version_record(known: KnownData | None) -> dict[str, Any]:
    """Return the entry `data_version` of a record; {} for data that are not known.

    >>> version_record(recognise("f9d4b03256c1b9cc74f07b4962202a35d2dc7c181b178f355665842d39ebbdfb"))["data_version"]["recognised"]
    'by fingerprint'
    """
    if known is None:
        return {}
    entry = {"name": known.name, "recognised": f"by {known.evidence}", "about": known.about, "source": known.source}
    return {"data_version": entry}


# Files of public data sets.


@dataclass(frozen=True)
class KnownFile:
    """A file of a public data set, as it is published.

    Attributes:
        file: its published name.
        data: the data set, its version and the part that the file has.
        md5, sha256: its hash, whichever the source lists.
        source: the list that has the hash.
        size: its bytes, where the list has them.
    """

    file: str
    data: str
    source: str
    md5: str = ""
    sha256: str = ""
    size: int | None = None

    def __str__(self) -> str:
        kind, value = ("MD5", self.md5) if self.md5 else ("SHA-256", self.sha256)
        return f"{self.data}, recognised by the {kind} of the file ({value[:8]}…, {self.source})"


_TORCHVISION = "pytorch/vision, torchvision/datasets/{}.py"
_TENSORFLOW = "tensorflow/datasets, tensorflow_datasets/url_checksums/{}.txt"


def _idx(data: str, hashes: Sequence[str]) -> list[KnownFile]:
    names = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    parts = ("training images", "training labels", "test images", "test labels")
    source = _TORCHVISION.format("mnist")
    return [
        KnownFile(name, f"{data}, {part}", source, md5=md5)
        for name, part, md5 in zip(names, parts, hashes, strict=True)
    ]


# By the source's table; the names of Fashion-MNIST's and KMNIST's files are those of MNIST's.
FILES = (
    *_idx(
        "MNIST",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    *_idx(
        "Fashion-MNIST",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    *_idx(
        "KMNIST",
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
    *(
        KnownFile(file, f"CIFAR-10, {part}", _TORCHVISION.format("cifar"), md5=md5)
        for file, part, md5 in (
            ("cifar-10-python.tar.gz", "the archive of Python pickles", "c58f30108f718f92721af3b95e74349a"),
            ("data_batch_1", "training images 0 to 9,999", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "training images 10,000 to 19,999", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "training images 20,000 to 29,999", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "training images 30,000 to 39,999", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "training images 40,000 to 49,999", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("test_batch", "the test images", "40351d587109b95175f43aff81a1287e"),
        )
    ),
    KnownFile(
        "cifar-100-python.tar.gz",
        "CIFAR-100, the archive of Python pickles",
        _TORCHVISION.format("cifar"),
        md5="eb9058c3a382ffc7106e4002c42a8d85",
    ),
    KnownFile(
        "cifar-10-binary.tar.gz",
        "CIFAR-10, the binary archive",
        _TENSORFLOW.format("cifar10"),
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        size=170_052_171,
    ),
    *(
        KnownFile(
            file, f"{data} (2016), {_OF_OLD}", _TENSORFLOW.format("downsampled_imagenet"), sha256=sha256, size=size
        )
        for file, data, size, sha256 in (
            (
                "train_32x32.tar",
                "ImageNet-32 train",
                4_113_018_880,
                "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5",
            ),
            (
                "train_64x64.tar",
                "ImageNet-64 train",
                12_112_588_800,
                "e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7",
            ),
            (
                "valid_32x32.tar",
                "ImageNet-32 validation",
                161_474_560,
                "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7",
            ),
            (
                "valid_64x64.tar",
                "ImageNet-64 validation",
                477_255_680,
                "eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd",
            ),
        )
    ),
    *(
        KnownFile(file, f"{data} (2017), {_OF_NEW}", _TENSORFLOW.format("imagenet_resized"), sha256=sha256, size=size)
        for file, data, size, sha256 in (
            (
                "Imagenet32_train_npz.zip",
                "ImageNet-32 train",
                3_580_435_279,
                "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc",
            ),
            (
                "Imagenet32_val_npz.zip",
                "ImageNet-32 validation",
                139_697_668,
                "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a",
            ),
            (
                "Imagenet64_train_part1_npz.zip",
                "ImageNet-64 train, the first part",
                6_783_426_789,
                "9422dc1dc5d092e9814a70a1cb7fc74880d2db5d88a0cb8a34ee363b12bde3f1",
            ),
            (
                "Imagenet64_train_part2_npz.zip",
                "ImageNet-64 train, the second part",
                6_780_506_068,
                "9fafc115afb7e6c301e66dc16b2d737152b427bd5dab26e1293487a6819c7f30",
            ),
            (
                "Imagenet64_val_npz.zip",
                "ImageNet-64 validation",
                529_522_927,
                "e1e75133158a1924135a9c6f97a80d2d237b158945e0b34074e58e6c8430eeb8",
            ),
        )
    ),
)


def recognise_file(path: Path) -> KnownFile | None:
    """Return the published file that a file is by its hash, or None.

    Only files with a published name or a published size are read, since a hash of a large archive takes long. A file that cannot be read
    is not known.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "train-images-idx3-ubyte.gz"
    >>> _ = path.write_bytes(b"packed again, by another program")
    >>> recognise_file(path) is None
    True
    """
    try:
        size = path.stat().st_size
        named = [one for one in FILES if (one.file == path.name and one.size in (None, size)) or one.size == size]
        if not named or not path.is_file():
            return None
        digests = {name: hashlib.new(name, usedforsecurity=False) for name in ("md5", "sha256")}
        with path.open("rb") as file:
            while block := file.read(2**20):
                for digest in digests.values():
                    digest.update(block)
    except OSError:
        return None
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    return next((one for one in FILES if one.md5 == found["md5"] or one.sha256 == found["sha256"]), None)


def recognise_files(path: Path) -> dict[str, KnownFile]:
    """Return the published files that a path is, or that are in a folder, by their names.

    >>> recognise_files(Path("/no/such/folder"))
    {}
    """
    names = {one.file for one in FILES}
    paths = [path / name for name in sorted(names) if (path / name).is_file()] if path.is_dir() else [path]
    found = {one.name: recognise_file(one) for one in paths}
    return {name: known for name, known in found.items() if known is not None}
