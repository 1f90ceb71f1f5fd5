"""Old names of modules, functions, classes, arguments and attributes, which work for one more version with a DeprecationWarning.

To rename a public name, add the old one to `MODULES` or to the table of its module, and to the table in tests/test_deprecation.py. Does
not import torch.
"""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Modules by their old names. `diffusional.information.chain` is missing, since a function had the same name.
MODULES = {
    "diffusional.levels": "diffusional.timesteps",
    "diffusional.data.kinds": "diffusional.data.formats",
    "diffusional.data.quoting": "diffusional.data.excerpt",
    "diffusional.evaluation.draws": "diffusional.evaluation.visit_records",
    "diffusional.evaluation.processes": "diffusional.evaluation.ranks",
    "diffusional.information.draws": "diffusional.information.estimates",
    "diffusional.models.backward": "diffusional.models.reverse",
    "diffusional.training.exchange": "diffusional.training.process_group",
    "diffusional.training.feed": "diffusional.training.batches",
    "diffusional.training.journal": "diffusional.training.metrics_logger",
}


def warn(old: str, new: str) -> None:
    """Warn that `old` is now called `new`. The warning points to the caller of the function that calls this one."""
    message = f"{old} is now called {new}; the old name will be removed in the next version"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def renamed_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module, in which `names` gives the new name for each old one.

    >>> renamed_names("math", {})("nothing")
    Traceback (most recent call last):
        ...
    AttributeError: module 'math' has no attribute 'nothing'
    """

    def lookup(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return lookup


def renamed_arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for a function some of whose arguments were renamed, given as old=new.

    >>> @renamed_arguments(levels="timesteps")
    ... def count(timesteps):
    ...     return timesteps
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     count(levels=5), caught[0].category.__name__
    (5, 'DeprecationWarning')
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in names.keys() & kwargs.keys():
                if names[old] in kwargs:
                    raise TypeError(f"expected one of {names[old]} and {old}, its old name, got both; leave {old} out")
                warn(f"the argument {old} of {function.__qualname__}", names[old])
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


class RenamedAttribute:
    """An attribute or method of a class under its old name, which returns the one called `new`.

    >>> class Chain:
    ...     timesteps = 4
    ...     levels = RenamedAttribute("timesteps")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     Chain().levels, str(caught[0].message)[:45]
    (4, 'Chain.levels is now called Chain.timesteps; t')
    """

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.old = owner, name

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        warn(f"{self.owner.__name__}.{self.old}", f"{self.owner.__name__}.{self.new}")
        # A subclass that overrides the old name gets here only by super(), which means what is above that subclass.
        classes = type(instance).__mro__
        overriding = [one for one in classes[: classes.index(self.owner)] if self.old in vars(one)]
        return getattr(super(overriding[-1], instance) if overriding else instance, self.new)


def keep_overrides(cls: type) -> None:
    """Make what a class defines under the old name of an attribute of its bases, a `RenamedAttribute`, its attribute of the new name as
    well, with a warning. For `__init_subclass__`.

    >>> class Chain:
    ...     timesteps = 4
    ...     levels = RenamedAttribute("timesteps")
    ...     def __init_subclass__(cls):
    ...         keep_overrides(cls)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     class Short(Chain):
    ...         levels = 2
    >>> Short().timesteps, str(caught[0].message)
    (2, 'Short overrides Chain.levels, which is now called timesteps; the old name will be removed in the next version')
    """
    for base in cls.__mro__[1:]:
        for old, renamed in vars(base).items():
            if isinstance(renamed, RenamedAttribute) and old in vars(cls) and renamed.new not in vars(cls):
                message = (
                    f"{cls.__name__} overrides {base.__name__}.{old}, which is now called {renamed.new}; the old name will be removed in the "
                    "next version"
                )
                # Points to the class statement, past `__init_subclass__` of the bases and `__new__` of their metaclass.
                frame, level = sys._getframe(1), 2
                while frame.f_back is not None and frame.f_code.co_name in ("__init_subclass__", "__new__"):
                    frame, level = frame.f_back, level + 1
                warnings.warn(message, DeprecationWarning, stacklevel=level)
                setattr(cls, renamed.new, vars(cls)[old])


class _OldModules(MetaPathFinder, Loader):
    """Import a module of `MODULES` by its old name: the result is the module with the new name."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        warn(
            fullname, MODULES[fullname]
        )  # its caller is the import statement, since frames of importlib are not counted
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MODULES[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the specification of the module, which the import by the old name has replaced."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Make the modules of `MODULES` importable by their old names."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())
