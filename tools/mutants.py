"""Does the test suite notice wrong mathematics? Plant the faults of the tables in faults/, one at a time, and see a test turn red.

    python tools/mutants.py                            # all of them: a few minutes on two cores
    python tools/mutants.py --only ledger              # those whose file or description it matches
    python tools/mutants.py --changed                  # those of modules that changed since the branch left main
    python tools/mutants.py --changed HEAD~3           # those of modules that changed since a commit
    python tools/mutants.py --changed --number 100     # 100: those of changed modules first, then others, drawn by the commit

First every test that the tables name must pass on the tree as it is (`--tested` skips this, where the whole suite runs anyway). Then
each fault gets a copy of src/ and tests/ of its own and a pytest process that imports this copy. Only a test that runs and finds
something wrong is a kill: an AssertionError, or an error that should have been raised and was not. A fault that cannot be imported,
that makes a test raise anything else, or that hangs, proves nothing and counts as a survivor. The whole fast suite then has a try at
each survivor, to distinguish a hole in the tests from a row of the table that names the wrong ones; either way, correct the row.

Exit status: 0 if every fault was killed, 1 if one was not, 2 if the table is out of date or the tests fail without a fault.
"""

import argparse
import ast
import gc
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("src/diffusional")
NOT_SLOW = ("-m", "not slow")
OPTIONS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"][
    "addopts"
]
# pytest without the checks of annotated types: a type error is not an assertion, and to decorate every function on import takes
# four times as long as all else that most jobs do.
UNTYPED = ("-o", f"addopts={' '.join(option for option in OPTIONS if not option.startswith('--jaxtyping'))}")
# What tests import besides the package: each process is a fork of this one, and inherits them.
INHERITED = (
    "torch",
    "diffusers",
    "hypothesis.extra.numpy",
    "jaxtyping",
    "mpmath",
    "scipy.stats",
    "sklearn.covariance",
    "typeguard",
)


@dataclass(frozen=True)
class Job:
    """`tests` (pytest arguments) on the tree with `fault` planted, or on the tree as it is; `typed` with checks of annotated types."""

    tests: tuple[str, ...]
    fault: Fault | None = None
    typed: bool = False

    def __str__(self) -> str:
        return "as it is" if self.fault is None else f"{self.fault.file}: {self.fault.what}"


@dataclass(frozen=True)
class Outcome:
    """`verdict` is killed, green, broken or timed out; `by` is the test that decided, or what went wrong."""

    job: Job
    verdict: str
    by: str
    seconds: float


def planted(fault: Fault) -> str:
    """The file's text with the fault in it. Raises ValueError if the source has moved on."""
    text = (ROOT / PACKAGE / fault.file).read_text()
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.file} has {fault.old!r} {text.count(fault.old)} times; it must be there once")
    text = text.replace(fault.old, fault.new)
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{fault.file} is no Python with {fault.new!r} in it: {error}") from error
    return text


class Witness:
    """A pytest plugin that refuses to test another copy than its own, and remembers the first failure."""

    def __init__(self, tree: Path) -> None:
        self.tree, self.failure = tree, ""
        self.fair = False

    def pytest_collection_finish(self) -> None:
        package = sys.modules.get("diffusional")
        if package is None or not Path(str(package.__file__)).is_relative_to(self.tree):
            raise pytest.UsageError(f"the tests import {package}, not the copy in {self.tree}")

    def pytest_exception_interact(
        self, call: pytest.CallInfo, report: pytest.CollectReport | pytest.TestReport
    ) -> None:
        if not self.failure and call.excinfo is not None:
            self.failure = f"{report.nodeid} ({call.excinfo.typename})"
            fair = call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
            self.fair = fair and getattr(report, "when", "collect") == "call"


def run_tests(tree: Path, tests: Sequence[str], typed: bool) -> None:
    """The forked process: pytest in `tree`, its output and what the witness saw beside it."""
    log = os.open(tree / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(tree)
    sys.path.insert(0, str(tree / "src"))
    os.environ["PYTHONPATH"] = str(tree / "src")  # for tests that start a Python of their own
    witness = Witness(tree)
    options = (*(() if typed else UNTYPED), "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *NOT_SLOW)
    code = pytest.main([*options, *tests], plugins=[witness])
    record = {"code": int(code), "failure": witness.failure, "fair": witness.fair}
    (tree / "record.json").write_text(json.dumps(record))


class Running:
    """A job on its way: its process and its own copy of the tree."""

    def __init__(self, job: Job, timeout: float) -> None:
        self.job, self.started, self.timeout = job, time.monotonic(), timeout
        self.tree = Path(tempfile.mkdtemp(prefix="mutant-")).resolve()
        for path in (*ROOT.glob("[!.]*"), *ROOT.glob(".github")):
            if path.name in ("src", "tests"):
                shutil.copytree(path, self.tree / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (self.tree / path.name).symlink_to(path)
        if job.fault is not None:
            (self.tree / PACKAGE / job.fault.file).write_text(planted(job.fault))
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=run_tests, args=(self.tree, job.tests, job.typed))
        self.process.start()

    def left(self) -> float:
        """Seconds until it is late."""
        return max(0.0, self.started + self.timeout - time.monotonic())

    def finish(self) -> Outcome:
        """End the process if it is late, and say what came of it."""
        late = self.process.is_alive()
        if late:
            self.process.kill()
        self.process.join()
        seconds = time.monotonic() - self.started
        record = self.tree / "record.json"
        if late:
            verdict, by = "timed out", f"after {self.timeout:.0f} s"
        elif not record.exists():
            verdict, by = "broken", f"pytest died: {self._output()}"
        else:
            said = json.loads(record.read_text())
            if said["code"] == pytest.ExitCode.OK:
                verdict, by = "green", ""
            elif said["code"] == pytest.ExitCode.TESTS_FAILED and said["fair"]:
                verdict, by = "killed", said["failure"]
            else:
                verdict, by = "broken", said["failure"] or self._output()
        shutil.rmtree(self.tree)
        return Outcome(self.job, verdict, by, seconds)

    def _output(self) -> str:
        return (self.tree / "output.txt").read_text()[-2000:]


def run_all(jobs: Sequence[Job], at_once: int, timeout: float) -> Iterator[Outcome]:
    """Every job's outcome as it comes, `at_once` at a time."""
    todo, running = list(jobs), []
    try:
        while todo or running:
            while todo and len(running) < at_once:
                running.append(Running(todo.pop(0), timeout))
            wait([r.process.sentinel for r in running], timeout=min(r.left() for r in running))
            done = [r for r in running if not r.process.is_alive() or not r.left()]
            running = [r for r in running if r not in done]
            yield from [r.finish() for r in done]
    finally:
        for r in running:
            r.process.kill()
            r.finish()


def baseline(faults: Sequence[Fault], parts: int) -> list[Job]:
    """All tests that the faults name, each once, dealt to `parts` jobs on the tree as it is."""
    tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    return [Job(tuple(tests[i::parts])) for i in range(min(parts, len(tests)))]


def _git(*arguments: str) -> str | None:
    """The output of a git command in this repository, or None if it fails."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    except OSError:  # a tree without git
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def base_commit() -> str | None:
    """The commit where the branch left main; None if there is none other than HEAD, as in a clone of main itself."""
    for main in ("origin/main", "main"):
        base = _git("merge-base", "HEAD", main)
        if base is not None and base != _git("rev-parse", "HEAD"):
            return base
    return None


def changed_since(base: str) -> tuple[set[str], str]:
    """The files that differ from a commit, committed or not, and the lines of tables of faults that were added."""
    names = _git("diff", "--name-only", base)
    if names is None:
        raise ValueError(f"--changed {base}: expected a commit of this repository; `git log` lists them")
    untracked = _git("ls-files", "--others", "--exclude-standard") or ""
    added = _git("diff", "--unified=0", base, "--", "tools/faults") or ""
    lines = [line[1:] for line in added.splitlines() if line.startswith("+")]
    return {*names.splitlines(), *untracked.splitlines()}, "\n".join(lines)


def order(faults: Sequence[Fault], files: set[str], added: str, draw: str) -> tuple[list[Fault], int]:
    """The faults in a random order that `draw` decides, and the number of them that changes concern, which come first: those of `files`
    and those that are new; then those whose tests are in `files`.
    """

    def place(fault: Fault) -> tuple[int, str]:
        number = hashlib.sha256(f"{draw} {fault.file} {fault.what} {fault.old}".encode()).hexdigest()
        if str(PACKAGE / fault.file) in files or json.dumps(fault.what, ensure_ascii=False) in added:
            return 0, number
        return (1 if any(test.partition("::")[0] in files for test in fault.tests) else 2), number

    placed = sorted(faults, key=place)
    return placed, sum(place(fault)[0] < 2 for fault in placed)


def chosen(faults: Sequence[Fault], changed: str | None, number: int | None) -> list[Fault]:
    """The faults for `--changed` and `--number`. Without a base, only the draw decides."""
    files, added, base = set[str](), "", changed or base_commit()
    if base is not None:
        files, added = changed_since(base)
    placed, concerned = order(faults, files, added, _git("rev-parse", "HEAD") or "")
    if base is None and number is None:
        raise ValueError("expected a commit after --changed, or --number: this clone has no main that the branch left")
    taken = placed[: concerned if number is None else number]
    print(
        f"{len(taken)} of {len(faults)} faults: "
        + (
            f"{min(concerned, len(taken))} that the changes since {base[:10]} concern"
            if base
            else "no base of changes is known"
        )
        + (f", {max(0, len(taken) - concerned)} drawn by the commit" if len(taken) > concerned else ""),
        flush=True,
    )
    return taken


def prepare() -> None:
    """Set up this process for the forks that run the tests: one thread each, and imports that they inherit."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["CI"] = "true"  # derandomises hypothesis: the same verdict every time
    sys.dont_write_bytecode = True
    for name in INHERITED:
        __import__(name)
    gc.freeze()  # the forks neither collect nor copy what they inherit


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time (default: all cores)")
    parser.add_argument(
        "--only", default="", help="only faults whose file or description this regular expression matches"
    )
    parser.add_argument(
        "--changed",
        nargs="?",
        const="",
        metavar="BASE",
        help="only faults of modules, tests and tables that changed since a commit (default: since the branch left main)",
    )
    parser.add_argument(
        "--number", type=int, help="with --changed: this number of faults, those that changes concern first"
    )
    parser.add_argument("--tested", action="store_true", help="the tests are known to pass without a fault")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one fault")
    options = parser.parse_args()

    faults = [fault for fault in FAULTS if re.search(options.only, f"{fault.file}: {fault.what}")]
    stale = []
    for fault in faults:
        try:
            planted(fault)
        except ValueError as error:
            stale.append(str(error))
    if stale or not faults:
        print("\n".join(stale) or f"no fault matches {options.only!r}")
        print("every row of tools/faults/ must fit src/: rewrite `old` and `new` where the source has moved on")
        return 2

    if options.changed is not None:
        try:
            faults = chosen(faults, options.changed, options.number)
        except ValueError as error:
            print(error)
            return 2
        if not faults:
            return 0

    prepare()
    start = time.monotonic()
    for outcome in run_all(
        [] if options.tested else baseline(faults, options.jobs), options.jobs, 10 * options.timeout
    ):
        if outcome.verdict != "green":
            print(f"red without a fault: {outcome.by}\nMend this first: it can't tell a fault from the original.")
            return 2
    if not options.tested:
        print(f"without a fault the tests are green ({time.monotonic() - start:.0f} s)", flush=True)

    jobs, survivors = [Job(fault.tests, fault) for fault in faults], []
    width = max(len(str(job)) for job in jobs)
    for outcome in run_all(jobs, options.jobs, options.timeout):
        verdict = outcome.verdict
        if verdict != "killed":
            survivors.append(outcome.job)
            verdict = verdict.upper()
        by = outcome.by.removeprefix("tests/")
        print(f"{verdict:9} {outcome.seconds:5.1f} s  {outcome.job!s:{width}}  {by}", flush=True)
    killed = len(faults) - len(survivors)
    print(f"{len(faults)} mutants, {killed} killed ({time.monotonic() - start:.0f} s)", flush=True)

    again = [Job(("tests",), job.fault) for job in survivors]
    for outcome in run_all(again, options.jobs, 30 * options.timeout):
        print(f"survivor: {outcome.job.fault}\n  the whole fast suite: {outcome.verdict} {outcome.by}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
