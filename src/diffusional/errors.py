"""The one exception that bad input raises: it says what came, what was expected and what to do."""


class DiffusionalError(ValueError):
    """Bad input from outside: data, files, options. The command line prints it without a traceback and exits with 2.

    >>> raise DiffusionalError("levels=1 came, at least 2 are needed")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: levels=1 came, at least 2 are needed
    """
