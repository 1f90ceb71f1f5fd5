"""Data: the embedded digits and users' own arrays, as a `Dataset` of one space and three splits.

What `load` takes:

    "digits"                     scikit-learn's digits, 17 levels, a fixed split
    *.npy                        one array (N, …), split at random
    *.npz                        one array, or train / validation (val) / test (also x_train, …)
    *-ubyte, *.idx [.gz]         one IDX array, split at random
    a folder                     MNIST's files, train-images-idx3-ubyte[.gz] and t10k-images-idx3-ubyte[.gz]
"""

from pathlib import Path

from diffusional.data import arrays, digits, idx
from diffusional.data.checks import to_dataset
from diffusional.data.dataset import Dataset
from diffusional.data.splits import split_at_random
from diffusional.errors import DiffusionalError

__all__ = ["Dataset", "load"]

_ACCEPTED = (
    '"digits", an array in .npy or .npz, an IDX file (*-ubyte or *.idx, perhaps .gz), or a folder with MNIST\'s files'
)


def load(
    name_or_path: str | Path,
    levels: int | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Dataset:
    """The data set "digits", or that of a file or folder (`./digits` for a folder of that name).

    `levels` is the number of levels K of integer data, 0 … K−1, and must be declared; booleans have 2;
    real-valued data have none and are standardised by their train split. A file of one array is split by a
    permutation drawn from `seed` into the fractions `split` of train, validation and test; a file that has
    train and test but no validation gives the last `split[1]` of train; data that come with all three, as
    digits do, are left as they are. Images N×H×W become N×1×H×W, and N×H×W×C become N×C×H×W.

    Raises DiffusionalError for anything that cannot be read, or would have to be guessed.

    >>> data = load("digits")
    >>> data.space
    Discrete(shape=(1, 8, 8), levels=17, low=-1.0, high=1.0)
    >>> data.encode("test").shape
    torch.Size([447, 1, 8, 8])
    """
    if name_or_path == "digits":
        if levels not in (None, digits.LEVELS):
            raise DiffusionalError(f"levels={levels} came for digits, which have {digits.LEVELS}; leave levels out")
        return digits.load_digits()
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        parts = arrays.mnist_splits(idx.read_mnist_folder(path), str(path), split)
    elif not path.exists():
        raise DiffusionalError(f"{path} does not exist; expected {_ACCEPTED}")
    elif path.suffix in (".npy", ".npz"):
        parts = arrays.choose_splits(arrays.read_numpy(path), str(path), split, seed)
    elif path.name.removesuffix(".gz").endswith(("-ubyte", ".idx")):
        parts = split_at_random(idx.read_idx(path), str(path), split, seed)
    else:
        raise DiffusionalError(f"{path} is of no known kind; expected {_ACCEPTED}")
    return to_dataset(path.resolve().name, parts, levels)
