"""What every benchmark writes beside its numbers: the machine, the versions and the command."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import diffusional


def machine(threads: int | None = None) -> dict[str, Any]:
    """Where and with what a number was measured; `threads` of a process, this one's unless they are given."""
    return {
        "cpu": next(iter(_values("/proc/cpuinfo", "model name")), platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "diffusional": diffusional.__version__,
        "command": " ".join(["python", *sys.argv]),
    }


def commit() -> str:
    """The commit of the source that is measured, marked if the source has changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


def save(path: Path, record: dict[str, Any]) -> None:
    """A record as JSON, for people to read too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _values(path: str, name: str) -> list[str]:
    """Of lines `name : value`; none where there is no such file."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(name)]
