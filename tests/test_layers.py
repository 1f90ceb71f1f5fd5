"""The order of the house (DESIGN.md): each floor imports only from floors above it, and heavy guests stay in their rooms."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import diffusional
from battery import environment

ROOT = Path(diffusional.__file__).parent

# From the top down. A package is one floor, except models/, whose files have their own order, and the files of report/ that need no
# records, which methods of records call.
FLOORS = (
    "errors",
    "extras",
    "deprecation",
    "progress",
    "words",
    "seeds",
    "files",
    "report.style",
    "report.fragments",
    "report.plots",
    "launch",
    "shapes",
    "conditions",
    "condition_form",
    "gaussian",
    "shrinkage",
    "bernoulli",
    "categorical",
    "grid",
    "space",
    "encoded",
    "known_data",
    "text",
    "schedule",
    "ledger",
    "timesteps",
    "forward",
    "binomial",
    "absorbing",
    "redrawn",
    "networks",
    "models.coding",
    "models.base",
    "models.time",
    "models.level_mean",
    "models.parameterization",
    "models.calls",
    "models.rules",
    "models.denoiser",
    "models.guidance",
    "models.flow",
    "models.reverse",
    "models.likelihood",
    "models.protocols",
    "models.chain",
    "models.tail",
    "models.visited_chain",
    "models.renoised",
    "models.stage_chain",
    "models.diffusion",
    "models.binomial",
    "models.masked",
    "models.prompted",
    "models.redrawn",
    "models.prior",
    "models.latent_chain",
    "models.vae",
    "models.hvae",
    "models.direct",
    "models.contrastive",
    "models.composite",
    "models.gaussian_chain",
    "sequences",
    "exact",
    "baselines",
    "evaluation",
    "information",
    "codec",
    "data",
    "interop",
    "training",
    "claims",
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


def _targets(path: Path) -> set[str]:
    """The modules of the house that a file imports: `from diffusional import schedule` names a module, `from diffusional.models.time
    import Affine` a name in one. A name of the package itself, such as __version__, is none.
    """
    found = set()
    for imported in _imports(path):
        root, *rest = imported.split(".")
        target = ".".join(rest)
        while not _exists(target) and "." in target:
            target = target.rpartition(".")[0]
        if root == "diffusional" and rest and _exists(target):
            found.add(target)
    return found


def _out_of_order(path: Path) -> list[str]:
    """What is wrong with the imports of a file."""
    name, wrong = _name(path), []
    if name == "models":  # the package's own file may gather its floors
        return []
    for root in {imported.split(".")[0] for imported in _imports(path)} & set(GUESTS):
        if name.split(".")[0] not in GUESTS[root]:
            wrong.append(f"{name} imports {root}; only {GUESTS[root]} may")
    for target in sorted(_targets(path)):
        same_package = target.split(".")[0] == name.split(".")[0] and _floor(target) == _floor(name)
        if target == "models":
            wrong.append(f"{name} imports diffusional.models as a whole; name the module")
        elif not (same_package or _floor(target) < _floor(name)):
            wrong.append(f"{name} imports {target}, which is not above it")
    return wrong


def _circle(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """Some modules that import each other in a circle, or []."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(imports.get(name, ())):
            if found := walk(target, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(imports) if (found := walk(name, []))), [])


def test_imports_come_from_floors_above() -> None:
    assert [text for path in FILES for text in _out_of_order(path)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count; those of a package's own file, which gathers its modules, do not."""
    assert _circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert _circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []
    imports = {_name(path): _targets(path) - {_name(path)} for path in FILES if path.name != "__init__.py"}
    assert _circle(imports) == []


# Packages that ask a model what it is, instead of looking at its type.
ASKING = ("evaluation", "information", "training", "report")
FAMILY = re.compile("DiffusionModel|VAE|Autoencoder|Binomial|Chain")


def _asked_of_types(text: str) -> list[str]:
    """The calls of isinstance and issubclass with a family of models, and the patterns of `match` statements that name one."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("isinstance", "issubclass")
            and len(node.args) == 2
        ):
            found += [ast.unparse(node)] if FAMILY.search(ast.unparse(node.args[1])) else []
        if isinstance(node, ast.MatchClass) and FAMILY.search(ast.unparse(node.cls)):
            found.append(ast.unparse(node))
    return found


def test_nobody_asks_a_model_for_its_type() -> None:
    assert _asked_of_types("if isinstance(model, int | df.VAE): pass") == ["isinstance(model, int | df.VAE)"]
    assert _asked_of_types("isinstance(likelihood, NetworkLevels)") == []
    found = {_name(path): _asked_of_types(path.read_text(encoding="utf-8")) for path in FILES}
    assert {name: calls for name, calls in found.items() if calls and name.split(".")[0] in ASKING} == {}


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
