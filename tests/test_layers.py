"""The order of the house (DESIGN.md): each floor imports only from floors above it, and heavy guests stay in their rooms."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import diffusional
from battery import environment

ROOT = Path(diffusional.__file__).parent

# From the top down. A package is one floor, except models/, whose files have their own order.
FLOORS = (
    "errors",
    "progress",
    "words",
    "seeds",
    "files",
    "launch",
    "shapes",
    "conditions",
    "gaussian",
    "bernoulli",
    "grid",
    "space",
    "schedule",
    "ledger",
    "levels",
    "forward",
    "binomial",
    "networks",
    "models.base",
    "models.time",
    "models.level_mean",
    "models.parameterization",
    "models.calls",
    "models.denoiser",
    "models.backward",
    "models.likelihood",
    "models.chain",
    "models.diffusion",
    "models.binomial",
    "models.prior",
    "models.latent_chain",
    "models.vae",
    "models.hvae",
    "models.gaussian_chain",
    "exact",
    "baselines",
    "evaluation",
    "information",
    "data",
    "training",
    "claims",
    "interop",
    "report",
    "demo",
    "cli",
    "__main__",
)
# Who may import what is large.
GUESTS = {"accelerate": ("training", "cli"), "diffusers": ("interop", "networks")}
# What must start at once, without torch.
LIGHT = (
    "diffusional",
    "diffusional.files",
    "diffusional.progress",
    "diffusional.seeds",
    "diffusional.training.config",
    "diffusional.cli",
)
# Package files that only load others lazily, with nothing of their own.
LAZY = ("__init__.py",)

FILES = sorted(path for path in ROOT.rglob("*.py") if str(path.relative_to(ROOT)) not in LAZY)


def _floor(module: str) -> int:
    """The floor of "a.b.c" (below diffusional): its longest prefix that is a floor."""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in FLOORS:
            return FLOORS.index(".".join(parts[:n]))
    raise AssertionError(f"{module} has no floor: add it to DESIGN.md and to FLOORS")


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> list[str]:
    """Every module that the file names in an import, wherever it stands; for `from a import b` both a and a.b. Imports for annotations
    only, `if TYPE_CHECKING:`, do not count.
    """
    package = ["diffusional", *path.relative_to(ROOT).parts[:-1]]
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for node in typed for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_come_from_floors_above(path: Path) -> None:
    name = _name(path)
    if name == "models":  # the package's own file may gather its floors
        return
    for imported in _imports(path):
        root, *rest = imported.split(".")
        if root in GUESTS:
            assert name.split(".")[0] in GUESTS[root], f"{name} imports {root}; only {GUESTS[root]} may"
        if root != "diffusional" or not rest:
            continue
        # `from diffusional import schedule` names a module, `from diffusional.models.time import Affine` a name in one.
        target = ".".join(rest)
        while not _exists(target) and "." in target:
            target = target.rpartition(".")[0]
        if target == "models":
            raise AssertionError(f"{name} imports diffusional.models as a whole; name the module")
        if not _exists(target):  # a name of the package itself, such as __version__
            continue
        same_package = target.split(".")[0] == name.split(".")[0] and _floor(target) == _floor(name)
        assert same_package or _floor(target) < _floor(name), f"{name} imports {target}, which is not above it"


@pytest.mark.parametrize("module", [m for m in LIGHT if m == "diffusional" or _exists(m.removeprefix("diffusional."))])
def test_imports_no_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=environment()).returncode == 0


def test_the_lazy_names_lead_somewhere() -> None:
    """Every name that `diffusional` offers loads, from a module of the house."""
    for name, module in diffusional._MODULES.items():
        assert getattr(diffusional, name).__name__ == f"diffusional.{module}"
    for name, module in diffusional._NAMES.items():
        _floor(module)
        assert getattr(diffusional, name) is getattr(importlib.import_module(f"diffusional.{module}"), name)
    assert {*diffusional._MODULES, *diffusional._NAMES} <= set(dir(diffusional))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = diffusional.nothing_of_the_kind
