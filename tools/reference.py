"""Write docstrings as Markdown, for the reference of the manual: docs/conf.py calls `expanded` while the site is built.

    python tools/reference.py evaluate        # the entry of one name, to look at

docs/reference.md lists the public names in groups, a line `- df.NAME: …` each. On the site every line becomes an entry:
the signature, the docstring, and the methods of a class or the names of a module with the first sentence of each.
"""

import enum
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusional as df

_ENTRY = re.compile(r"^- `df\.([\w.]+)`(?:: .*)?$", flags=re.MULTILINE)
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Shapes):\s*(.*)$")
_CODE = re.compile(r"(`[^`]*`)")


def names(text: str) -> list[str]:
    """Return the names that a page lists.

    >>> names("- `df.evaluate`: measure a bound\\n- `df.data.load`\\n- another line")
    ['evaluate', 'data.load']
    """
    return _ENTRY.findall(text)


def public() -> list[str]:
    """Return the names of diffusional/__init__.pyi."""
    stub = Path(df.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    return re.findall(r" as (\w+)$", stub, flags=re.MULTILINE)


def expanded(text: str) -> str:
    """Return a page with every line of a name replaced by its entry, and with the public names that it does not list at its end."""
    listed = {name.split(".")[0] for name in names(text)}
    further = [name for name in public() if name not in listed]
    end = "\n## Further names\n\n" + "".join(f"- `df.{name}`\n" for name in further) if further else ""
    return _ENTRY.sub(lambda match: entry(match[1]), text + end)


def escaped(text: str) -> str:
    r"""Return text in which Markdown leaves every character as it is, except within backticks.

    >>> print(escaped("x (B, *dims) with `a_*` and [1]"))
    x (B, \*dims) with `a_*` and \[1\]
    """
    parts = _CODE.split(text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]|$\\#])", r"\\\1", part) for part in parts)


def entry(name: str) -> str:
    """Return the entry of a public name as Markdown."""
    found = resolved(name)
    lines = [f"### `df.{name}`", ""]
    if isinstance(found, ModuleType):
        lines += [markdown(inspect.getdoc(found) or "", module=True), ""]
        lines += [f"- `df.{name}.{inner}{signature(one)}`: {escaped(first(one))}" for inner, one in members(found)]
        return "\n".join(lines) + "\n"
    lines += ["```python", f"df.{name}{signature(found)}", "```", "", markdown(inspect.getdoc(found) or "")]
    if inspect.isclass(found):
        inner = [f"- `{method}{signature(one)}`: {escaped(first(one))}" for method, one in methods(found)]
        lines += ["", *inner] if inner else []
    return "\n".join(lines) + "\n"


def resolved(name: str) -> Any:
    """Return the object of a dotted name below `diffusional`."""
    found: Any = df
    for part in name.split("."):
        found = getattr(found, part)
    return found


def signature(found: Any) -> str:
    """Return the parameters of a function or class without types, "" for anything else.

    >>> def f(x: int, *, seed: int = 0) -> None: ...
    >>> signature(f), signature(3)
    ('(x, *, seed=0)', '')
    """
    if not callable(found) or (inspect.isclass(found) and issubclass(found, enum.Enum | BaseException)):
        return ""
    try:
        made = inspect.signature(found)
    except (TypeError, ValueError):
        return ""
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in made.parameters.values() if one.name != "self"]
    text = str(made.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return re.sub(r"<[^<>]*>", "...", text)


def first(found: Any) -> str:
    """Return the first sentence of a docstring."""
    text = " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", text)[0]


def members(module: ModuleType) -> list[tuple[str, Any]]:
    """Return the public functions and classes of a module, in the order of `__all__` or of the source."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        found = [(name, getattr(module, name)) for name in listed]
    else:
        found = [(name, one) for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
    return [(name, one) for name, one in found if callable(one) and not name.startswith("_") and inspect.getdoc(one)]


def methods(cls: type) -> list[tuple[str, Any]]:
    """Return the public methods that a class itself defines and describes."""
    found = []
    for name, one in vars(cls).items():
        inner = one.__func__ if isinstance(one, classmethod | staticmethod) else one
        if not name.startswith("_") and inspect.isfunction(inner) and inspect.getdoc(inner):
            found.append((name, getattr(cls, name) if inner is not one else inner))
    return found


def markdown(doc: str, module: bool = False) -> str:
    """Return a docstring as Markdown: sections as lists, examples and indented blocks as code.

    >>> print(markdown("Add.\\n\\nArgs:\\n    a: one *term*,\\n        any."))
    Add.
    <BLANKLINE>
    **Args**
    <BLANKLINE>
    - `a`: one \\*term\\*, any.
    """
    out, lines, i = [], doc.splitlines(), 0
    while i < len(lines):
        line = lines[i]
        section = _SECTION.match(line)
        if line.startswith(">>>"):
            block, i = _until(lines, i, lambda one: not one.strip())
            out += ["```python", *block, "```"]
        elif section and not section[2] and i + 1 < len(lines) and lines[i + 1].startswith(" "):
            block, i = _until(lines, i + 1, lambda one: bool(one.strip()) and not one.startswith(" "))
            out += [f"**{section[1]}**", "", *_items(block), ""]
        elif line.startswith("    "):
            block, i = _until(lines, i, lambda one: bool(one.strip()) and not one.startswith(" "))
            out += ["```text", *textwrap.dedent("\n".join(block)).rstrip().splitlines(), "```", ""]
        else:
            out.append(escaped(line))
            i += 1
    return "\n".join(out).rstrip()


def _until(lines: list[str], i: int, ends: Any) -> tuple[list[str], int]:
    """Return the lines from i to the first at which `ends`, and its index."""
    j = i
    while j < len(lines) and not ends(lines[j]):
        j += 1
    return lines[i:j], j


def _items(block: list[str]) -> list[str]:
    """Return a section of a docstring, `name: text` with continuation lines, as a list."""
    out: list[str] = []
    for line in textwrap.dedent("\n".join(block)).splitlines():
        found = re.match(r"^([\w*, ]+): (.*)$", line)
        if found:
            out.append(f"- `{found[1]}`: {escaped(found[2])}")
        elif line.strip() and out:
            out[-1] += " " + escaped(line.strip())
        elif line.strip():
            out.append(f"- {escaped(line.strip())}")
    return out


def main() -> None:
    importlib.import_module("diffusional")
    for name in sys.argv[1:]:
        print(entry(name))


if __name__ == "__main__":
    main()
