"""What a path holds: told by the names of files, never by trying."""

import os
from pathlib import Path

from diffusional.errors import DiffusionalError

ACCEPTED = (
    '"digits", an array in .npy or .npz, an IDX file (*-ubyte or *.idx, perhaps .gz), a table (.csv, .tsv, .parquet), '
    'a folder of images, of tables or with MNIST\'s files, or "hf:owner/name" for a data set of the Hugging Face Hub'
)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_MNIST = ("-ubyte", "-ubyte.gz")


def kind_of(path: Path) -> str:
    """ "mnist", "images" or "table" for a folder, "numpy", "idx" or "table" for a file.

    A folder of images may hold tables beside them, such as labels. Raises DiffusionalError for anything else.

    >>> kind_of(Path("/no/such.npy"))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: /no/such.npy does not exist; expected "digits", an array in .npy ...
    """
    name = path.name.lower()
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.exists():
        raise DiffusionalError(f"{path} does not exist; expected {ACCEPTED}")
    if name.endswith((".npy", ".npz")):
        return "numpy"
    if name.removesuffix(".gz").endswith(("-ubyte", ".idx")):
        return "idx"
    if name.endswith(TABLES):
        return "table"
    raise DiffusionalError(f"{path} is of no known kind; expected {ACCEPTED}")


def _kind_of_folder(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if any(name.endswith(_MNIST) for name in names):
        return "mnist"
    tables = False
    for _, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        visible = [name.lower() for name in files if name[0] != "."]
        # The first image settles it: a folder of a million is not walked to its end.
        if any(name.endswith(IMAGES) for name in visible):
            return "images"
        tables = tables or any(name.endswith(TABLES) for name in visible)
    if tables:
        return "table"
    held = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise DiffusionalError(
        f"{folder} holds no data of a known kind (it holds: {held or 'nothing'}); expected {ACCEPTED}"
    )
