"""The examples at the end of the help of each command. A test parses all of them."""

from collections.abc import Sequence

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("diffusional demo", "diffusional demo --quick --out runs/quick"),
    "train": (
        "diffusional train runs/digits --preset digits",
        "diffusional train runs/mine --data.name images.npy --data.levels 256",
        "diffusional train runs/digits --resume --steps 4000",
        "diffusional train runs/cascade --composite digits-cascade",
        "diffusional train runs/tuned --from runs/digits --optimizer.lr 0.0005",
    ),
    "evaluate": (
        "diffusional evaluate runs/digits --error 0.002 --json bound.json --html bound.html",
        "diffusional evaluate runs/digits runs/vae",
        "diffusional evaluate runs/text --estimator replicates --error 0.002",
        "diffusional evaluate google/ddpm-cifar10-32 --data cifar10/test --unclipped",
        "diffusional evaluate hf:language-model/ --data qa.jsonl --per-item answers.csv",
    ),
    "import": (
        "diffusional import google/ddpm-cifar10-32 runs/ddpm",
        "diffusional import pipeline/ runs/mine --data digits --decoder openai",
    ),
    "check": (
        "diffusional check runs/digits",
        "diffusional check pipeline/ --data digits --json check.json",
    ),
    "score": (
        "diffusional score runs/digits --per-item scores.csv",
        "diffusional score runs/digits --outliers letters.npy --bands 8",
    ),
    "classify": (
        "diffusional classify runs/classes --per-item answers.csv",
        "diffusional classify runs/classes --data scans/ --unlabelled --evidence-visits 16",
    ),
    "export": (
        "diffusional export runs/ddpm --to diffusers pipelines/ddpm",
        "diffusional export runs/ddpm pipelines/ddpm --json export.json",
    ),
    "compress": (
        "diffusional compress runs/digits -o digits.dfz",
        "diffusional compress runs/digits --data new.npy --steps 100 -o new.dfz",
        "diffusional compress runs/digits --rate-distortion rate.png --json rate.json",
    ),
    "decompress": (
        "diffusional decompress runs/digits digits.dfz digits.npy",
        "diffusional decompress runs/digits digits.dfz digits.npy --json decoded.json",
    ),
    "push": (
        "diffusional push runs/digits me/digits",
        "diffusional push runs/digits me/digits --private --checkpoints",
    ),
    "pull": ("diffusional pull me/digits runs/digits", "diffusional pull me/digits runs/digits --revision main"),
    "sample": (
        "diffusional sample runs/digits --n 100",
        "diffusional sample runs/digits --method ddim --steps 50 --out fast.npz",
    ),
    "information": (
        "diffusional information digits --figure curve.png",
        "diffusional information images.npy --levels 256 --schedule cosine --steps 500",
        "diffusional information runs/digits --reference runs/other",
    ),
    "plot": (
        "diffusional plot runs/digits",
        "diffusional plot runs/digits runs/vae -o both.svg",
        "diffusional plot bound.json --out bound.pdf --unit nats",
    ),
    "report": (
        "diffusional report runs/digits",
        "diffusional report runs/digits runs/vae -o report.html",
        "diffusional report bound.json --saved --out bound.html",
        "diffusional report hf:FOLDER --data book.txt -o report.html",
    ),
    "claims": ("diffusional claims", "diffusional claims --only C1 C5 --json claims.json"),
    "data": (
        "diffusional data digits --figure digits.png",
        "diffusional data images.npy --levels 256",
        "diffusional data images.npy --levels 256 --json data.json",
    ),
    "doctor": ("diffusional doctor", "diffusional doctor --json doctor.json"),
    "completion": (
        "diffusional completion bash > ~/.local/share/bash-completion/completions/diffusional",
        "diffusional completion zsh > ~/.diffusional.zsh && echo 'source ~/.diffusional.zsh' >> ~/.zshrc",
        "diffusional completion fish > ~/.config/fish/completions/diffusional.fish",
    ),
    "": (
        "diffusional demo --quick",
        "diffusional train runs/digits --preset digits",
        "diffusional evaluate runs/digits",
        "diffusional train --help",
    ),
}


_DEBUG = "Every command accepts --debug, which shows the traceback of an error."


def examples(args: Sequence[str]) -> str:
    """Return the examples for the help of the command in `args`.

    >>> print(examples(["claims", "--help"]), end="")
    Every command accepts --debug, which shows the traceback of an error.
    <BLANKLINE>
    examples:
      diffusional claims
      diffusional claims --only C1 C5 --json claims.json
    """
    lines = EXAMPLES.get(args[0] if args else "", EXAMPLES[""])
    return "\n".join([_DEBUG, "", "examples:", *(f"  {line}" for line in lines)]) + "\n"
