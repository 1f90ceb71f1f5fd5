"""`diffusional completion`: scripts that shells accept, and what a tab offers."""

import shutil
import subprocess
from pathlib import Path

import pytest

from diffusional import cli
from diffusional.cli.commands import COMMANDS
from diffusional.cli.options import options

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


def script(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    cli.main(["completion", shell])
    return capsys.readouterr().out


@bash
def test_bash_accepts_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = script(capsys, "bash")
    assert subprocess.run(["bash", "-n"], input=said, text=True, capture_output=True).stderr == ""


@bash
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["tr"], ["train"]),
        (["d"], ["demo", "decompress", "data", "doctor"]),
        (["train", "run", "--preset", "digits-v"], ["digits-vae"]),
        (["train", "run", "--model.kind", "=", "v"], ["vae", "vae-diffusion-prior"]),
        (["train", "run", "--optimizer.w"], ["--optimizer.weight-decay", "--optimizer.warmup"]),
        (["sample", "run", "--method", ""], ["ancestral", "ddim"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        # Nothing of ours: bash offers files.
        (["evaluate", "ru"], []),
        (["train", "run", "--json", ""], []),
    ],
)
def test_what_a_tab_offers(
    typed: list[str], offered: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "diffusional.bash"
    path.write_text(script(capsys, "bash"))
    test = 'source "$0"; COMP_WORDS=(diffusional "$@"); COMP_CWORD=$#; _diffusional; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", test, str(path), *typed], capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


def test_zsh_runs_that_of_bash(capsys: pytest.CaptureFixture[str]) -> None:
    said = script(capsys, "zsh")
    assert said.index("bashcompinit") < said.index("complete -o")
    assert said.endswith(script(capsys, "bash"))


def test_fish_knows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    said = script(capsys, "fish").splitlines()
    for command, kind in COMMANDS.items():
        for option in options(kind):
            if not option.positional:
                found = [line for line in said if f'from {command}" -l {option.name[2:]} ' in line + " "]
                assert len(found) == 1
                assert (" -r" in found[0]) is (option.hint is not bool)
                assert all(choice in found[0] for choice in option.choices)
