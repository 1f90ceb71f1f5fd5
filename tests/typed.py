"""Checks of annotated types and shapes at run time (jaxtyping and beartype), for the first calls of every function in every test.

A check takes longer than many of the functions, so that tests that evaluate a model a hundred times would spend most of their time on
the same checks. What decorates a function is made when it is first called, because that takes long too.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping

CALLS = 25
_checked = jaxtyping.jaxtyped
_begun: list[Callable[[], None]] = []  # functions that were called in this test


def begin() -> None:
    """Begin a test: the first calls of every function are checked again."""
    for reset in _begun:
        reset()
    _begun.clear()


def jaxtyped(fn: Any, *, typechecker: Any) -> Any:
    """Return what jaxtyping.jaxtyped returns, except that the calls of a function after the first are not checked."""
    if inspect.isclass(fn):
        own = vars(fn).get("__init__")
        if dataclasses.is_dataclass(fn) and inspect.isfunction(own) and not hasattr(own, "checks"):
            fn.__init__ = _limited(own, typechecker)  # type: ignore[misc]
        return fn
    if isinstance(fn, classmethod | staticmethod):
        return type(fn)(jaxtyped(fn.__func__, typechecker=typechecker))
    if isinstance(fn, property):
        parts = (part and jaxtyped(part, typechecker=typechecker) for part in (fn.fget, fn.fset, fn.fdel))
        return property(*parts, doc=fn.__doc__)
    return _limited(fn, typechecker)


def _limited(fn: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    checked: Callable[..., Any] | None = None
    left = CALLS

    def reset() -> None:
        nonlocal left
        left = CALLS

    @functools.wraps(fn)
    def limited(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal checked, left
        if not left:
            return fn(*args, **kwargs)
        if left == CALLS:
            _begun.append(reset)
        left -= 1
        if checked is None:
            checked = _checked(fn, typechecker=typechecker)
        return checked(*args, **kwargs)

    limited.checks = True  # type: ignore[attr-defined]
    return limited


def install() -> None:
    """Let the import hook of jaxtyping decorate by `jaxtyped` of this module."""

    def decorator(fn: Any = None, *, typechecker: Any = None) -> Any:
        if fn is None and typechecker is not None:
            return functools.partial(jaxtyped, typechecker=typechecker)
        return _checked(fn, typechecker=typechecker)

    jaxtyping.jaxtyped = decorator  # type: ignore[assignment]
