"""What a number for somebody else's model rests on: its config, what was assumed, what was given, and what was left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TITLES = {
    "config": "from the config",
    "assumed": "assumed",
    "given": "given",
    "left_out": "left out",
    "notes": "note",
}


@dataclass
class Origin:
    """Where an imported model comes from. Each dict has a sentence for each choice, by its name.

    Attributes:
        source: the folder or Hub id.
        kind: "diffusers", or another format.
        revision: the commit of the Hub repository; None for a folder.
        files: SHA-256 of the files that were read, by their path in the checkpoint.
        config: what the checkpoint's own files determine.
        assumed: what they leave open.
        given: what the caller determined.
        left_out: settings of the sampler, which have no part in the model.
        notes: further remarks.

    >>> origin = Origin("a/model", "diffusers")
    >>> origin.assumed["levels"] = "256 levels from -1 to 1"
    >>> origin.lines()
    ['assumed: 256 levels from -1 to 1']
    """

    source: str
    kind: str
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def choose(self, name: str, sentence: str, given: bool) -> None:
        """Record a choice as given, or as assumed."""
        (self.given if given else self.assumed)[name] = sentence

    def lines(self) -> list[str]:
        """Return one line for each choice, to print before a number."""
        out = []
        for name, title in _TITLES.items():
            sentences = getattr(self, name)
            out += [f"{title}: {one}" for one in (sentences.values() if isinstance(sentences, dict) else sentences)]
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; empty entries are left out."""
        return {name: value for name, value in vars(self).items() if value}


def lines_of(origin: Mapping[str, Any]) -> list[str]:
    """Return the lines of an origin that was stored in a record.

    >>> lines_of(Origin("a", "diffusers", notes=["fp16 weights"]).to_dict())
    ['note: fp16 weights']
    """
    known = {name: value for name, value in origin.items() if name in Origin.__dataclass_fields__}
    return Origin(**known).lines() if known else []
