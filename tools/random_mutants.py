"""Draw random mutants of the mathematical files, run the tests of each file, and list the mutants that survive.

    python tools/random_mutants.py                                   # 60 mutants, seed 0
    python tools/random_mutants.py -n 20 --seed 3 --only 'models/'   # 20 mutants of the files whose path matches
    python tools/random_mutants.py --seed 3 --mutant 7               # number 7 of that draw again
    python tools/random_mutants.py --list                            # print the draw and run nothing

`mutants.py` plants faults that somebody thought of; this tool draws them blindly, so that it finds the holes nobody thought of. The
draw depends on the seed and the source only. A mutant changes one place:

    operators     + − * / // **, < <= > >= == !=, and/or, a dropped minus, a dropped `not`
    terms         only one side of a sum, difference, product or quotient
    constants     ±1 for integers (offsets, indices, dimensions), twice the value for floats, True ↔ False, float64 ↔ float32
    calls         min ↔ max, sum ↔ mean, exp ↔ expm1, log ↔ log1p, floor ↔ ceil …; two neighbouring arguments swapped
    methods       .double(), .to(dtype), .clamp(…), .abs(), .detach(), .square(), .sqrt(), … dropped
    conditions    of `if`, `while` and conditional expressions, negated

Never drawn: strings, annotations, messages of errors and warnings, asserts, `__repr__` and `__str__`, imports, decorators, module-level
numbers (sizes and tolerances) and expressions with the sizes of blocks (PERFORMANCE).

Each mutant gets a copy of src/ and tests/ of its own, as in mutants.py. Three stages, each for what survived the one before: the test
file that mirrors the module's path, with the module's doctests; other tests that import the module; the tests that mirror the modules
that import it. A test that fails, an error and a hang (ten times what the tests take without a mutant, and a minute) all count as killed.

Exit status: 0 if every mutant was killed or is listed in EQUIVALENT, 1 if one survived, 2 if tests fail without a mutant.
"""

import argparse
import ast
import difflib
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from faults import Fault
from mutants import PACKAGE, ROOT, Job, prepare, run_all

# Files, or folders, of which mutants are drawn.
FILES = (
    "gaussian.py",
    "bernoulli.py",
    "categorical.py",
    "binomial.py",
    "schedule.py",
    "forward.py",
    "ledger.py",
    "timesteps.py",
    "exact.py",
    "shapes.py",
    "space.py",
    "baselines.py",
    "models",
    "information",
    "evaluation",
)
# Sizes of blocks: they decide how fast and in what memory something is computed, not what.
PERFORMANCE = {
    "ROWS",
    "_BLOCK",
    "_CHUNK",
    "_CPU_BLOCK",
    "_GPU_BLOCK",
    "_KEPT",
    "_LARGE",
    "_NOISE",
    "_NUMBERS",
    "_PAIRS",
    "_ROWS",
    "_SAVE_EVERY",
    "batch_rows",
}
# Known to change nothing that a user could see: (file, the line as it is, the line as mutated, why), lines without indentation.
EQUIVALENT: tuple[tuple[str, str, str, str], ...] = (
    (
        "information/curve.py",
        "along = (noise.double() * points.centred[own].double()).sum(1)",
        "along = (noise.double() * points.centred[own]).sum(1)",
        "the product of float64 and float32 is float64",
    ),
    (
        "information/costs.py",
        "return next((p.detach()[:0] for p in model.denoiser.parameters()), torch.empty(0, dtype=torch.float64))",
        "return next((p.detach()[:(-1)] for p in model.denoiser.parameters()), torch.empty(0, dtype=torch.float64))",
        "only the tensor's type and device are used",
    ),
    (
        "information/costs.py",
        "noise = torch.empty(1 + level.shape[1], len(some), *x.shape[1:], dtype=torch.float32)",
        "noise = torch.empty(1 + level.shape[1], len(some), *x.shape[1:], dtype=torch.float64)",
        "other random numbers, as random",
    ),
    (
        "information/budget.py",
        "log_decoded = model.decode(said).log_prob(x.to(said))",
        "log_decoded = model.decode(said).log_prob(x)",
        "moves x to the network's device; on one device it rounds x at most",
    ),
)

BINARY = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Div,),
    ast.Pow: (ast.Mult,),
}
COMPARE = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_PAIRED = (
    ("min", "max"),
    ("amin", "amax"),
    ("minimum", "maximum"),
    ("sum", "mean"),
    ("cumsum", "cumprod"),
    ("exp", "expm1"),
    ("log", "log1p"),
    ("floor", "ceil"),
    ("sin", "cos"),
    ("any", "all"),
    ("argmin", "argmax"),
    ("var", "std"),
    ("zeros_like", "ones_like"),
    ("zeros", "ones"),
    ("float64", "float32"),
    ("double", "float"),
)
RENAMED = dict(_PAIRED) | {b: a for a, b in _PAIRED}
DROPPED = {
    "abs",
    "clamp",
    "clamp_",
    "cumsum",
    "detach",
    "double",
    "exp",
    "flip",
    "float",
    "log",
    "nan_to_num",
    "round",
    "sqrt",
    "square",
    "to",
}


@cache
def _text(file: str) -> str:
    return (ROOT / PACKAGE / file).read_text()


@dataclass(frozen=True)
class Mutant:
    """In src/diffusional/`file`, `new` in place of the source text from `start` to `stop`."""

    file: str
    start: int
    stop: int
    new: str

    @property
    def source(self) -> str:
        return _text(self.file)

    @property
    def mutated(self) -> str:
        source = self.source
        return source[: self.start] + self.new + source[self.stop :]

    def lines(self) -> tuple[str, str]:
        """The line as it is and as mutated, without indentation; of a longer place, its first."""
        at = self.source.count("\n", 0, self.start)
        return self.source.splitlines()[at].strip(), self.mutated.splitlines()[at].strip()

    def diff(self) -> str:
        """Unified, with two lines around."""
        name = str(PACKAGE / self.file)
        parts = difflib.unified_diff(self.source.splitlines(), self.mutated.splitlines(), name, name, n=2, lineterm="")
        return "\n".join(parts)

    def __str__(self) -> str:
        line = self.source.count("\n", 0, self.start) + 1
        old = " ".join(self.source[self.start : self.stop].split())
        return f"{self.file}:{line}: {_short(old)} → {_short(self.new)}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


class _Places(ast.NodeVisitor):
    """Where a file can be mutated, and into what: (node, new text)."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.expr, str]] = []
        self.depth = 0

    def put(self, node: ast.expr, new: ast.expr) -> None:
        text = ast.unparse(new)
        # A compound expression keeps its place among its neighbours' operators.
        simple = isinstance(new, ast.Constant | ast.Name | ast.Attribute | ast.Call | ast.Subscript)
        self.found.append((node, text if simple and not text.startswith("-") else f"({text})"))

    # What is never drawn.

    def visit_Raise(self, node: ast.Raise) -> None: ...
    def visit_Assert(self, node: ast.Assert) -> None: ...
    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...
    def visit_Import(self, node: ast.Import) -> None: ...
    def visit_ImportFrom(self, node: ast.ImportFrom) -> None: ...

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for child in node.body:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__repr__", "__str__", "to_json", "to_dict"):
            return
        self.depth += 1
        for default in [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
            self.visit(default)
        for child in node.body:
            self.visit(child)
        self.depth -= 1

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and self._is_drawn(node.value):
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._is_drawn(node.value):
            self.visit(node.value)

    def visit(self, node: ast.AST) -> None:
        called = _called(node) if isinstance(node, ast.Call) else ""
        if (isinstance(node, ast.BinOp) or called in ("max", "min", "range", "split")) and _names(node) & PERFORMANCE:
            return
        super().visit(node)

    def _is_drawn(self, value: ast.expr) -> bool:
        # At module level a formula is drawn, a number is not.
        formula = self.depth > 0 or any(isinstance(n, ast.Call) for n in ast.walk(value))
        return formula and not _names(value) & PERFORMANCE

    # What is.

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = isinstance(node.left, ast.Constant | ast.JoinedStr) and not _is_number(node.left)
        if type(node.op) in BINARY and not text:
            for op in BINARY[type(node.op)]:
                self.put(node, ast.BinOp(node.left, op(), node.right))
            self.put(node, node.left)
            if not isinstance(node.op, ast.Pow | ast.FloorDiv):
                self.put(node, node.right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub) and _is_number(node.operand):
            assert isinstance(node.operand, ast.Constant)
            self._number(node, -node.operand.value)  # type: ignore[operator]
            return
        if isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            self.put(node, node.operand)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for i, op in enumerate(node.ops):
            for other in COMPARE.get(type(op), ()):
                ops = [*node.ops[:i], other(), *node.ops[i + 1 :]]
                self.put(node, ast.Compare(node.left, ops, node.comparators))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.put(node, ast.BoolOp(other, node.values))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.put(node, ast.Constant(not node.value))
        elif _is_number(node):
            self._number(node, node.value)  # type: ignore[arg-type]

    def _number(self, node: ast.expr, value: float) -> None:
        others = (value + 1, value - 1) if isinstance(value, int) else (2 * value if value else 1.0,)
        for other in others:
            self.put(node, ast.Constant(other))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in ("float64", "float32"):
            self.put(node, ast.Attribute(node.value, RENAMED[node.attr]))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        if name.startswith("warnings."):
            return
        if name.split(".")[-1] in PERFORMANCE:
            return
        last = name.rsplit(".", 1)[-1]
        if last in RENAMED and isinstance(node.func, ast.Name | ast.Attribute):
            func = (
                ast.Name(RENAMED[last])
                if isinstance(node.func, ast.Name)
                else ast.Attribute(node.func.value, RENAMED[last])
            )
            self.put(node, ast.Call(func, node.args, node.keywords))
        on_a_module = name.split(".")[0] in ("torch", "math", "np")
        moves = any("device" in ast.unparse(arg) for arg in node.args)
        if isinstance(node.func, ast.Attribute) and last in DROPPED and not on_a_module and not moves:
            self.put(node, node.func.value)
        plain = not any(isinstance(arg, ast.Starred) for arg in node.args)
        for i in range(len(node.args) - 1 if plain and name not in ("isinstance", "getattr", "hasattr") else 0):
            one, other = node.args[i : i + 2]
            if not _is_number(one) or not _is_number(other):
                args = [*node.args[:i], other, one, *node.args[i + 2 :]]
                self.put(node, ast.Call(node.func, args, node.keywords))
        self.generic_visit(node)

    def _condition(self, node: ast.If | ast.While | ast.IfExp) -> None:
        if not isinstance(node.test, ast.Compare):  # which has its own opposites
            self.put(node.test, ast.UnaryOp(ast.Not(), node.test))
        self.generic_visit(node)

    visit_If = visit_While = visit_IfExp = _condition


def _called(node: ast.Call) -> str:
    """The function's own name."""
    return ast.unparse(node.func).rsplit(".", 1)[-1]


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def mutants_of(file: str) -> list[Mutant]:
    """All mutants of a file, in order."""
    source = (ROOT / PACKAGE / file).read_text()
    # ast counts columns in bytes.
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    encoded = source.encode()

    def place(line: int, column: int) -> int:
        return len(encoded[: starts[line - 1] + column].decode())

    places = _Places()
    for statement in ast.parse(source).body:
        places.visit(statement)
    out = []
    for node, new in places.found:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, stop = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        out.append(Mutant(file, start, stop, new))
    return out


def is_valid(mutant: Mutant) -> bool:
    """Whether the mutant is Python, and not the same Python as before."""
    try:
        return ast.dump(ast.parse(mutant.mutated)) != ast.dump(ast.parse(mutant.source))
    except SyntaxError:
        return False


def files(only: str = "") -> list[str]:
    """Relative to the package."""
    found = []
    for name in FILES:
        path = ROOT / PACKAGE / name
        every = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        found += [str(p.relative_to(ROOT / PACKAGE)) for p in every]
    return [name for name in found if re.search(only, name)]


def draw(n: int, seed: int, only: str = "") -> list[Mutant]:
    """n mutants, in the order drawn: every place alike, then one of what it may become."""
    by_place: dict[tuple[str, int, int], list[Mutant]] = {}
    for file in files(only):
        for mutant in mutants_of(file):
            by_place.setdefault((file, mutant.start, mutant.stop), []).append(mutant)
    rng = random.Random(seed)
    places = sorted(by_place)
    rng.shuffle(places)
    found: list[Mutant] = []
    for place in places:
        if len(found) == n:
            break
        mutant = rng.choice(by_place[place])
        if is_valid(mutant):
            found.append(mutant)
    return found


# Which tests are a file's.


@cache
def _public() -> dict[str, str]:
    """Modules by the names that `diffusional` gives their contents."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text())
    tables = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    ]
    return {name: f"diffusional.{module}" for table in tables for name, module in table.items()}


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of the package that a Python file imports, by any way."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    aliases = {"diffusional"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("diffusional.")}
            aliases |= {a.asname for a in node.names if a.name == "diffusional" and a.asname}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusional"):
            for a in node.names:
                whole = f"{node.module}.{a.name}"
                found |= {str(node.module), whole}
                if node.module == "diffusional" and a.name in _public():
                    found.add(_public()[a.name])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            found.add(_public().get(node.attr, ""))
    return frozenset(found)


def mirrors(file: str) -> list[str]:
    """The test files that mirror a module's path: tests/models/test_chain*.py or tests/test_chain*.py."""
    path = Path(file)
    folders = dict.fromkeys([ROOT / "tests" / path.parent, ROOT / "tests"])
    stem = path.parent.name if path.stem == "__init__" else path.stem
    found = [test for folder in folders for test in sorted(folder.glob(f"test_{stem}*.py"))]
    return [str(test.relative_to(ROOT)) for test in found]


def stages(file: str) -> list[tuple[str, ...]]:
    """Pytest arguments of the three stages; empty ones are left out."""
    module = ".".join(["diffusional", *Path(file).with_suffix("").parts]).removesuffix(".__init__")
    first = [*mirrors(file), str(PACKAGE / file)]
    everything = sorted((ROOT / "tests").rglob("test_*.py"))
    users = [str(t.relative_to(ROOT)) for t in everything if module in imports(t)]
    # Those next door first.
    users.sort(key=lambda t: Path(t).parent != Path("tests") / Path(file).parent)
    sources = (ROOT / PACKAGE).rglob("*.py")
    through = [
        test for s in sorted(sources) if module in imports(s) for test in mirrors(str(s.relative_to(ROOT / PACKAGE)))
    ]
    out, seen = [], set()
    for stage in (first, users, through):
        fresh = [test for test in dict.fromkeys(stage) if test not in seen]
        seen |= set(fresh)
        if fresh:
            out.append(tuple(fresh))
    return out


# Running.


def killed(verdict: str, by: str) -> bool:
    """Whether a test saw the mutant: by an assertion, by any other error, or by hanging."""
    return verdict != "green" and "no tests ran" not in by.lower()


def stale() -> list[str]:
    """Rows of EQUIVALENT whose line is no longer in the file."""
    return [
        f"{file}: {line}"
        for file, line, *_ in EQUIVALENT
        if line not in (own.strip() for own in _text(file).splitlines())
    ]


def is_equivalent(mutant: Mutant) -> bool:
    return any(row[:3] == (mutant.file, *mutant.lines()) for row in EQUIVALENT)


def run_stage(
    chosen: list[tuple[int, Mutant]], tests: tuple[str, ...], jobs: int
) -> Iterator[tuple[int, Mutant, bool, str]]:
    """Each mutant with whether these tests killed it, and by what. Raises SystemExit where they fail without a mutant."""
    (plain,) = run_all([Job(tests, typed=True)], 1, 3600)
    nothing = "no tests ran" in plain.by.lower()
    if plain.verdict != "green" and not nothing:
        print(f"these tests fail without a mutant: {' '.join(tests)}\n  {plain.by}\nMend this first.")
        raise SystemExit(2)
    if nothing:
        yield from ((number, mutant, False, "no tests") for number, mutant in chosen)
        return
    # Replace the whole file: the text of a place may occur twice.
    work = [
        (number, mutant, Job(tests, Fault(mutant.file, str(number), mutant.source, mutant.mutated, tests), typed=True))
        for number, mutant in chosen
    ]
    known = {id(job): (number, mutant) for number, mutant, job in work}
    for outcome in run_all([job for *_, job in work], jobs, 60 + 10 * plain.seconds):
        number, mutant = known[id(outcome.job)]
        yield number, mutant, killed(outcome.verdict, outcome.by), outcome.by or outcome.verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=60, help="mutants to draw (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--only", default="", help="only files whose path this regular expression matches")
    parser.add_argument("--mutant", type=int, action="append", help="run only this number of the draw; may be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="only the first stage: mirroring test files and doctests")
    parser.add_argument("--list", action="store_true", help="print the draw and run nothing")
    options = parser.parse_args()

    if old := stale():
        print("These rows of EQUIVALENT no longer fit the source; rewrite or drop them:", *old, sep="\n  ")
        return 2
    drawn = list(enumerate(draw(options.n, options.seed, options.only)))
    if options.mutant:
        drawn = [(number, mutant) for number, mutant in drawn if number in options.mutant]
    if not drawn:
        print(f"nothing to draw from: no file of {PACKAGE} matches {options.only!r}, or no mutant has this number")
        return 2
    if options.list:
        for number, mutant in drawn:
            print(f"{number:3} {mutant}")
        return 0

    prepare()
    start = time.monotonic()
    skipped = [(number, mutant) for number, mutant in drawn if is_equivalent(mutant)]
    left = [(number, mutant) for number, mutant in drawn if not is_equivalent(mutant)]
    for number, mutant in skipped:
        print(f"{number:3} equivalent  {mutant}")
    done: list[tuple[int, Mutant]] = []
    for stage in range(1 if options.quick else 3):
        ready = [(number, mutant) for number, mutant in left if len(stages(mutant.file)) > stage]
        done += [pair for pair in left if pair not in ready]
        if not ready:
            left = []
            break
        print(f"stage {stage + 1}: {len(ready)} mutants ({time.monotonic() - start:.0f} s)", flush=True)
        survived = []
        by_tests: dict[tuple[str, ...], list[tuple[int, Mutant]]] = {}
        for number, mutant in ready:
            by_tests.setdefault(stages(mutant.file)[stage], []).append((number, mutant))
        for tests, some in by_tests.items():
            for number, mutant, dead, by in run_stage(some, tests, options.jobs):
                if dead:
                    first = by.removeprefix("tests/").splitlines()[0]
                    print(f"{number:3} killed      {mutant}  by {first}", flush=True)
                else:
                    survived.append((number, mutant))
                    print(f"{number:3} survived {stage + 1}  {mutant}", flush=True)
        left = sorted(survived)
    survivors = sorted(left + done, key=lambda pair: pair[0])
    for number, mutant in survivors:
        print(f"\nsurvivor {number} (--seed {options.seed} --mutant {number}): {mutant}\n{mutant.diff()}")
    dead = len(drawn) - len(survivors) - len(skipped)
    print(
        f"\n{len(drawn)} mutants: {dead} killed, {len(survivors)} survived, {len(skipped)} known to be equivalent "
        f"({time.monotonic() - start:.0f} s)"
    )
    if survivors:
        print(
            "For each survivor write a test that fails with it, or, where no user could see a difference, a row of EQUIVALENT with "
            "the reason."
        )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
