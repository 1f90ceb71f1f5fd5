"""What this package raises: bad input says what came, what was expected and what to do; an interruption, where things are."""


class DiffusionalError(ValueError):
    """Bad input from outside: data, files, options. The command line prints it without a traceback and exits with 2.

    >>> raise DiffusionalError("levels=1 came, at least 2 are needed")
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: levels=1 came, at least 2 are needed
    """


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end, and all is saved: the message says where things are. `signal` is its number.

    >>> Interrupted("stopped after step 7", 15).signal
    15
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
