"""The kind of data that a path holds, from the names of files; no file is opened but an archive that may be a published one."""

import os
from pathlib import Path

from diffusional.data.folders import walk
from diffusional.deprecation import renamed_names
from diffusional.errors import DiffusionalError
from diffusional.files import check_regular
from diffusional.known_data import recognise_file

__getattr__ = renamed_names(__name__, {"kind_of": "format_of"})

ACCEPTED = (
    '"digits", an array in .npy or .npz, an IDX file (*-ubyte or *.idx, perhaps .gz), a table (.csv, .tsv, .parquet), '
    'a folder of images, of tables or with MNIST\'s files, or "hf:owner/name" for a data set of the Hugging Face Hub; of text, "text" or '
    "a .txt file"
)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXTS = (".txt", ".text", ".md")
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_MNIST = ("-ubyte", "-ubyte.gz")


def given_name(path: Path) -> str:
    """Return the name of a file or folder as given. For a link it is the name of the link, since some stores name files by their hash.

    >>> given_name(Path("data/table.parquet"))
    'table.parquet'
    """
    return path.name if path.name not in ("", "..") else path.resolve().name


def format_of(path: Path) -> str:
    """Return "mnist", "images" or "table" for a folder, "numpy", "idx", "table" or "text" for a file.

    A folder of images may hold tables beside them, such as labels. Raises DiffusionalError for anything else, for
    special files such as named pipes and devices, and for a folder that cannot be listed.

    >>> format_of(Path("/no/such.npy"))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: /no/such.npy does not exist; expected "digits", an array in .npy ...
    """
    name = path.name.lower()
    if os.path.isdir(path):
        return _format_of_folder(path)
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DiffusionalError(f"{path} does not exist; expected {ACCEPTED}") from error
    except (OSError, ValueError):  # a name that is too long, or a lack of permission
        pass
    check_regular(path)
    if name.endswith((".npy", ".npz")):
        return "numpy"
    if name.removesuffix(".gz").endswith(("-ubyte", ".idx")):
        return "idx"
    if name.endswith(TABLES):
        return "table"
    if name.endswith(TEXTS):
        return "text"
    known = recognise_file(path)
    if known is not None:
        raise DiffusionalError(
            f"{path} is {known}; it is not unpacked, and pickles are not read. Unpack it, and save the images as an array in .npy or .npz, or as "
            "a folder of PNG files"
        )
    raise DiffusionalError(f"{path} is of an unknown kind; expected {ACCEPTED}")


def _format_of_folder(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise DiffusionalError(f"{folder} could not be read ({error.strerror}). Check its permissions") from error
    if any(name.endswith(_MNIST) for name in names):
        return "mnist"
    tables = False
    for name in map(str.lower, walk(folder)):
        # The first image decides: a folder of a million images is not read to its end.
        if name.endswith(IMAGES):
            return "images"
        tables = tables or name.endswith(TABLES)
    if tables:
        return "table"
    held = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise DiffusionalError(
        f"{folder} holds no data of a known kind (it holds: {held or 'nothing'}); expected {ACCEPTED}"
    )
