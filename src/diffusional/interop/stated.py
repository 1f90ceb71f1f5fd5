"""diffusional.json, beside the files of an exported model: what a bound needs and no file of diffusers has, the levels and the decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusional import space as spaces
from diffusional.errors import DiffusionalError
from diffusional.files import load_json, save_json
from diffusional.space import Discrete

# The file beside model_index.json.
STATED = "diffusional.json"
_FORMAT = 1


@dataclass(frozen=True)
class Stated:
    """What an exported model states of itself.

    Attributes:
        space: the levels of the data and their range.
        decoder: p(x|z_1), a word of `load_checkpoint`.
        decoder_variance: of a Gaussian decoder; None for that of `load_checkpoint`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> Stated(Discrete((1, 8, 8), 17), "level-posterior").save(folder)
    >>> read_stated(folder).decoder
    'level-posterior'
    """

    space: Discrete
    decoder: str
    decoder_variance: float | None = None

    def save(self, folder: Path) -> None:
        """Write diffusional.json."""
        record = {
            "format": _FORMAT,
            "space": self.space.to_dict(),
            "decoder": self.decoder,
            "decoder_variance": self.decoder_variance,
        }
        save_json(folder / STATED, record)


def read_stated(folder: Path) -> Stated | None:
    """Read diffusional.json of a folder; None if there is none. Raises DiffusionalError for a file that is damaged or of a later version."""
    path = folder / STATED
    if not path.exists():
        return None
    record = load_json(path)
    if record.get("format") != _FORMAT:
        raise DiffusionalError(
            f"expected format {_FORMAT} in {path}, got {record.get('format')!r}; update diffusional, or export the model again"
        )
    try:
        space: Any = spaces.from_dict(record["space"])
        decoder, variance = record["decoder"], record.get("decoder_variance")
    except (KeyError, TypeError, ValueError, AttributeError, DiffusionalError) as error:
        raise DiffusionalError(
            f"{path} has no valid space or decoder ({error}); export the model again, or remove the file"
        ) from error
    number = isinstance(variance, int | float) and not isinstance(variance, bool)
    if not (isinstance(space, Discrete) and isinstance(decoder, str) and (variance is None or number)):
        raise DiffusionalError(
            f"{path} has no valid space or decoder (expected levels, a word and a number or null, got {space}, {decoder!r} and "
            f"{variance!r}); export the model again, or remove the file"
        )
    return Stated(space, decoder, variance)
