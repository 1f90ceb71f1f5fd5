"""The exceptions of this package. Messages state what was expected, what was given, and what to do."""


class DiffusionalError(ValueError):
    """Invalid input: data, files or options. The command line prints the message without a traceback and exits with status 2.

    >>> raise DiffusionalError("expected levels to be at least 2, got 1")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected levels to be at least 2, got 1
    """


class LevelsError(DiffusionalError):
    """Data have other levels than their space: the command line adds what to do where a checkpoint's levels were given or assumed.

    >>> isinstance(LevelsError("expected 17 levels, got 256"), DiffusionalError)
    True
    """


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal after its state was saved; the message states where. `signal` is the signal's number.

    >>> Interrupted("stopped after step 7", 15).signal
    15
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
