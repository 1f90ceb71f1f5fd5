"""`diffusional doctor`: checks of the installation. It lists what works and what is missing, even if components are broken."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusional.cli.commands import Doctor
from diffusional.cli.console import Result, working

# Essential packages, the first of which is this one.
_CORE = ("torch", "numpy", "scipy", "safetensors", "accelerate", "diffusers", "sklearn", "matplotlib", "rich", "tyro")
# Packages for optional features: the module, its purpose, and how to install it.
_OPTIONAL = (
    ("datasets", "data of the Hugging Face hub", 'pip install "diffusional[hub]"'),
    ("pyarrow", "tables", "pip install pyarrow"),
    ("PIL", "folders of images", "pip install pillow"),
)
# Packages whose name differs from that of their module.
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}
# Environment variables set by a launcher (torchrun, accelerate launch).
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_GIB = 2**30
# Free disk space below which the checkpoints of a run may not fit.
_LITTLE = 1.0


@dataclass(frozen=True)
class Finding:
    """A line of the table: `state` is "ok", "missing" (for an optional feature) or "broken" (for an essential component)."""

    group: str
    name: str
    state: str
    said: str


def run(command: Doctor) -> Result:
    """Run all checks and print a table and a summary."""
    with working("looking"):
        found = list(findings())
    works = all(finding.state != "broken" for finding in found)
    said = "all essential components work" if works else "an essential component is broken: see above"
    return Result({"works": works, "findings": [vars(finding) for finding in found]}, [_table(found), said])


def findings() -> Iterator[Finding]:
    """Yield the findings of all checks, in the order of the table."""
    for name in ("diffusional", "python"):
        yield Finding("version", name, "ok", _own(name))
    for name in _CORE:
        yield _package(name)
    for name, purpose, remedy in _OPTIONAL:
        yield _feature(name, purpose, remedy)
    yield Finding("device", "cpu", "ok", _cpu())
    yield from _guarded("device", "cuda", _cuda)
    yield from _guarded("device", "step", _step)
    for name, folder in (("this folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        yield _folder(name, folder, essential=True)
    yield from _guarded("folder", "cache folder", _caches)
    told = [f"{name}={os.environ[name]}" for name in _LAUNCHED if name in os.environ]
    yield Finding("launch", "processes", "ok", ", ".join(told) or "one: not started by torchrun or accelerate launch")


def _own(name: str) -> str:
    import diffusional

    return diffusional.__version__ if name == "diffusional" else platform.python_version()


def _package(name: str) -> Finding:
    """Try to import a package. This may fail in many ways: a missing library, another ABI, a truncated file."""
    try:
        importlib.import_module(name)
    except Exception as error:
        remedy = f"pip install --force-reinstall {_DISTRIBUTIONS.get(name, name)}"
        return Finding("version", name, "broken", f"{_brief(error)}. Try: {remedy}")
    return Finding("version", name, "ok", _version(name))


def _feature(name: str, purpose: str, remedy: str) -> Finding:
    try:
        importlib.import_module(name)
    except Exception as error:
        why = "not installed" if isinstance(error, ModuleNotFoundError) and error.name == name else _brief(error)
        return Finding("feature", name, "missing", f"{purpose}: {why}. To install it: {remedy}")
    return Finding("feature", name, "ok", f"{purpose}: {_version(name)}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _guarded(group: str, name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """Run checks that need torch. An error, such as that of a driver, is a finding."""
    try:
        return look()
    except Exception as error:
        return [Finding(group, name, "broken", _brief(error))]


def _cpu() -> str:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {usable} of {os.cpu_count()} cores, {_memory()}"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "memory unknown"
    return f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB of memory free"


def _cuda() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = "torch was built without CUDA" if torch.version.cuda is None else "no device or driver was found"
        return [Finding("device", "cuda", "ok", f"none: {built}; the CPU is used")]
    out = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        out.append(
            Finding("device", f"cuda:{index}", "ok", f"{device.name}, {device.total_memory / _GIB:.1f} GiB, {half}")
        )
    return out


def _step() -> list[Finding]:
    """Compute a gradient on the device that would be used, since an installed package may still not run."""
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.ones(4, 4, device=place, requires_grad=True)
    (x @ x).sum().backward()
    assert x.grad is not None
    right = bool((x.grad == 8).all())
    return [
        Finding(
            "device",
            "a gradient",
            "ok" if right else "broken",
            f"{'correct' if right else 'wrong'} on {place}, {torch.get_num_threads()} threads",
        )
    ]


def _caches() -> list[Finding]:
    """Check the cache for decoded data that do not fit into memory, and the cache for downloads of the Hub's packages."""
    from diffusional.data.storage import cache_folder

    own = cache_folder()
    hub = Path(os.environ.get("HF_HOME") or own.parent / "huggingface")
    return [_folder("cache folder", own, essential=False), _folder("hub's cache", hub, essential=False)]


def _folder(name: str, folder: Path, essential: bool) -> Finding:
    """Check a folder, or its nearest existing parent if it does not exist yet."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        # Permissions do not reveal a full or read-only disk.
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"1")
        writable = True
    except OSError:
        writable = False
    free = shutil.disk_usage(there).free / _GIB
    said = f"{folder}: {'writable' if writable else 'not writable'}, {free:.1f} GiB free"
    if not writable:
        return Finding("folder", name, "broken" if essential else "missing", said)
    return Finding("folder", name, "ok", said + ("; a run may not fit" if free < _LITTLE else ""))


def _table(found: list[Finding]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Components", title_justify="left", title_style="bold")
    for column in ("", "", "", "found"):
        table.add_column(column)
    colours = {"ok": "green", "missing": "yellow", "broken": "bold red"}
    group = None
    for finding in found:
        if group not in (None, finding.group):
            table.add_section()
        shown = "" if group == finding.group else finding.group
        state = Text(finding.state, style=colours[finding.state])
        table.add_row(shown, Text(finding.name), state, Text(finding.said))
        group = finding.group
    return table
