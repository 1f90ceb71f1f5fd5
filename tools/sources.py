"""Where other people's code comes from that fixtures are made by."""

import subprocess
from pathlib import Path


def commit(source: Path, url: str) -> str:
    """The commit of a clean clone of `url`; anything else is refused."""

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", source, *command], capture_output=True, text=True).stdout.strip()

    if Path(git("rev-parse", "--show-toplevel")) != source or git("status", "--porcelain", "-uno"):
        raise SystemExit(f"{source} is no clean clone: git clone {url} {source}")
    return git("rev-parse", "HEAD")
