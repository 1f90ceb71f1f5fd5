"""Find sentences in src/ that use the private vocabulary of early versions instead of plain technical English.

    python tools/vocabulary.py                     # all of src/diffusional; run by `make lint`
    python tools/vocabulary.py src/diffusional/cli # some files or folders

The patterns apply to docstrings, comments, and string literals with at least two words, such as error messages and help texts. A word in
`backticks` or "double quotes" is a quotation and is allowed. A line with the comment `# vocabulary: allow` is skipped.

Exit status: 0 if nothing was found, 1 otherwise.
"""

import ast
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "diffusional"
ALLOW = "# vocabulary: allow"


@dataclass(frozen=True)
class Pattern:
    """A regular expression and the reason against it. With `messages`, it applies only to texts that users see when they run a command."""

    regex: str
    reason: str
    messages: bool = False


PATTERNS = (
    Pattern(r"\bcame\b", 'errors say "expected …, got …", and what to do'),
    Pattern(r"\b(tells?|told|says?|said|hears?|heard|speaks?|spoke)\b", "tensors and files do not speak: name the quantity or the function"),
    Pattern(r"\b(knows?|knew|wants?)\b", "tensors and files have no mind: use depends on, contains, requires, or a mutual information"),
    Pattern(r"\balone\b", 'write "only", before the word that it restricts'),
    Pattern(r"\bbut for\b|\baside\b(?=[,.;:)]|$)", 'write "except", or a sentence of its own'),
    Pattern(r"\bin place of\b", 'write "instead of"'),
    Pattern(r"\bmend(ed|s|ing)?\b", 'write "correct" or "fix"'),
    Pattern(r"\bhonest(ly)?\b|\byardsticks?\b", 'write what is measured: "unbiased", "with error bars", "baseline"'),
    Pattern(r"(?<!there )(?<!There )\b(is|are) no (?!longer\b|more\b|larger\b|smaller\b|better\b|less\b|fewer\b)", 'write "is not a …", or "there is no …"'),
    Pattern(r"^Of (a|an|the|all|one|several|that|those|them|its|every|each)\b", "a sentence or a noun phrase does not begin with Of"),
    Pattern(r"\bMATH \(\d", "users cannot follow this reference: describe the formula in words", messages=True),
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A docstring, comment or string literal, with its place. `message`: whether users see it when they run a command."""

    first: int
    last: int
    text: str
    message: bool


@dataclass(frozen=True)
class Finding:
    """A match of a pattern. `str` gives one line for a report."""

    path: Path
    line: int
    found: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found!r}: {self.reason}"


def findings(source: str, path: Path) -> Iterator[Finding]:
    """Yield the matches in a Python source.

    >>> [str(found) for found in findings('raise ValueError("n=0 came; give at least 1")', Path("a.py"))]
    ["a.py:1: 'came': errors say \\"expected …, got …\\", and what to do"]
    >>> list(findings('raise ValueError("expected n to be at least 1, got 0")', Path("a.py")))
    []
    """
    lines = source.splitlines()
    for text in texts(source, "cli" in path.parts):
        if any(ALLOW in line for line in lines[text.first - 1 : text.last]):
            continue
        plain = re.sub(r"``[^`]*``|`[^`\n]*`|\"[^\"\n]*\"", lambda quote: "_" * len(quote.group()), text.text)
        for pattern in PATTERNS:
            if pattern.messages and not text.message:
                continue
            for match in re.finditer(pattern.regex, plain):
                line = min(text.last, text.first + plain.count("\n", 0, match.start()))
                yield Finding(path, line, match.group(), pattern.reason)


def texts(source: str, command_line: bool = False) -> Iterator[Text]:
    """Yield the docstrings, comments and strings of a source. In the command line's modules, docstrings are help texts."""
    tree = ast.parse(source)
    parts: set[int] = set()
    documentation: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                documentation.add(id(first.value))
        if isinstance(node, ast.JoinedStr):
            parts.update(map(id, node.values))
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield Text(node.lineno, node.end_lineno or node.lineno, text, True)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            message = command_line or id(node) not in documentation
            if " " in node.value.strip():
                yield Text(node.lineno, node.end_lineno or node.lineno, node.value, message)
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type == tokenize.COMMENT:
            yield Text(token.start[0], token.start[0], token.string.lstrip("# "), False)


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the Python files below some paths."""
    for path in paths:
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def main(arguments: list[str]) -> int:
    """Report all findings; return the exit status."""
    found = [
        finding
        for file in files([Path(one) for one in arguments] or [SOURCE])
        for finding in findings(file.read_text(encoding="utf-8"), file)
    ]
    for finding in sorted(found, key=lambda one: (str(one.path), one.line)):
        print(finding)
    if found:
        print(f"{len(found)} expressions to replace by plain English; quotations and lines with {ALLOW!r} are allowed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
