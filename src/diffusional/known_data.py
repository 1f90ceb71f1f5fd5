"""Versions of public data sets that records name, and the evidence by which they are recognised.

A data set of one name can exist in versions whose bounds differ: a model of ImageNet-32 has 3.43 bits/dim on the images of Chrabaszcz et al.
and 3.69 on those of van den Oord et al. A fingerprint identifies items exactly, in their order. Where the files were not at hand to compute
one, shape and count are weaker evidence, which the record states.

Two hashes of the same items are in use: the fingerprint of a split (`Dataset.fingerprint`), and `data_sha256` of an evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
