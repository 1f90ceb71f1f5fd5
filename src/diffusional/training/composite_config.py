"""The typed configuration of a system of several stages, saved with it as composite.json. Does not import torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from diffusional.errors import DiffusionalError
from diffusional.files import load_json
from diffusional.training.config import Config, DataConfig

Kind = Literal["cascade", "latent", "unclip"]
# The number of the format that this version writes and reads.
FORMAT = 1
# The stages of systems with an encoder, in the order in which they are trained.
_STAGES = {"latent": ("autoencoder", "prior"), "unclip": ("encoder", "prior", "decoder")}
# The prefix of a CLIP's name, as in networks/clip.py, which imports torch.
_CLIP = "clip:"


@dataclass(frozen=True)
class CompositeConfig:
    """All options that determine a system. Each stage is trained by a `Config` of its own, whose `data` follow from those of the system.

    Attributes:
        kind: "cascade" (`Cascade`), "latent" (`FrozenPosterior` with a VAE's encoder and decoder), or "unclip" (`FrozenEncoder` with a
            contrastive encoder, a CLIP, or the means of a VAE's encoder).
        stages: the config of every stage by name, in the order of training. A cascade's are from the lowest resolution to x; those of
            "latent" are autoencoder and prior, those of "unclip" encoder, prior and decoder; prior and decoder if `encoder` is given.
        data: the data of the system. A condition goes to the first stage of a cascade, or to the prior, and to a contrastive encoder's training.
        factors: for a cascade, the ratio of the sides of each stage to those of the stage before it, one number fewer than stages.
        renoise: γ of the noise on the condition of the stages after the first (MATH (29a)), or None.
        handover: the latent z_s at which the stages before the last stop (MATH (29b)), or None; for "unclip" 1 unless it is given.
        conditional: further stages that get the condition of the data, besides the variable of the stage before: names of a cascade's stages
            after the first, or "decoder" for "unclip".
        encoder: for "unclip", a frozen encoder of images that is not trained here: "clip:NAME" for a CLIP of transformers, by its folder or its
            name on the Hugging Face Hub.

    Raises DiffusionalError for options that do not fit the kind.

    >>> config = CompositeConfig("cascade", {"base": Config(), "upsampler": Config()}, factors=(2,))
    >>> [stage.data.condition for stage in config.of_stages().values()]
    [None, 'quantised:2']
    """

    kind: Kind
    stages: Mapping[str, Config]
    data: DataConfig = field(default_factory=DataConfig)
    factors: tuple[int, ...] = ()
    renoise: float | None = None
    handover: int | None = None
    conditional: tuple[str, ...] = ()
    encoder: str | None = None

    def __post_init__(self) -> None:
        names = tuple(self.stages)
        if self.encoder is not None and (self.kind != "unclip" or not self.encoder.removeprefix(_CLIP)):
            raise DiffusionalError(
                f'expected encoder="clip:NAME" only for kind="unclip", got {self.encoder!r} for kind={self.kind!r}; leave it out, or name a CLIP'
            )
        if self.encoder is not None and not self.encoder.startswith(_CLIP):
            raise DiffusionalError(
                f'expected encoder to be "clip:" and a folder or a name of the Hugging Face Hub, such as "clip:openai/clip-vit-base-patch32", got '
                f"{self.encoder!r}"
            )
        if self.kind == "cascade":
            if len(names) < 2 or len(self.factors) != len(names) - 1 or any(f < 2 for f in self.factors):
                raise DiffusionalError(
                    "expected at least two stages of a cascade and, as factors, the ratio (at least 2) of each stage's sides to those of the stage "
                    f"before it, got stages {', '.join(names) or 'none'} and factors={list(self.factors)}"
                )
            if any(not name.isidentifier() for name in names):
                raise DiffusionalError(f"expected names of stages to be words such as 'base', got {', '.join(names)}")
            if self.renoise is not None and self.handover is not None:
                raise DiffusionalError(
                    f"renoise={self.renoise:g} and handover={self.handover} were given; expected one of them, or neither"
                )
        else:
            wanted = _STAGES[self.kind][0 if self.encoder is None else 1 :]
            if names != wanted:
                raise DiffusionalError(
                    f"expected the stages {', '.join(wanted)} for kind={self.kind!r}"
                    + (f" and encoder={self.encoder!r}" if self.encoder is not None else "")
                    + f", got {', '.join(names) or 'none'}"
                )
            if self.factors or self.renoise is not None or (self.kind == "latent" and self.handover is not None):
                raise DiffusionalError(
                    f"factors, renoise and handover are for cascades, got factors={list(self.factors)}, renoise={self.renoise} and "
                    f"handover={self.handover} for kind={self.kind!r}; leave them out"
                )
            kinds = ("vae",) if self.kind == "latent" else ("vae", "contrastive")
            if self.encoder is None and self.stages[names[0]].model.kind not in kinds:
                raise DiffusionalError(
                    f"expected model.kind={' or '.join(map(repr, kinds))} for stage {names[0]!r}, whose encoder is frozen, got "
                    f"{self.stages[names[0]].model.kind!r}"
                )
            if self.stages[names[0]].model.kind == "contrastive" and self.data.condition is None:
                raise DiffusionalError(
                    f'expected a condition for model.kind="contrastive" of stage {names[0]!r}, which is trained on items and their '
                    'conditions, got none; give data.condition, such as "label"'
                )
            if self.stages["prior"].model.kind != "diffusion":
                raise DiffusionalError(
                    f"expected model.kind=\"diffusion\" for stage 'prior', got {self.stages['prior'].model.kind!r}"
                )
        further = {"cascade": names[1:], "unclip": ("decoder",), "latent": ()}[self.kind]
        if wrong := [name for name in self.conditional if name not in further]:
            raise DiffusionalError(
                f"expected conditional to name stages among {', '.join(further) or 'none'} for kind={self.kind!r}, got {wrong[0]!r}"
            )
        if self.conditional and self.data.condition is None:
            raise DiffusionalError(
                f"conditional={list(self.conditional)} was given for data without a condition; give data.condition, such as label or caption"
            )
        if self.data.downscale or self.data.encoder is not None:
            raise DiffusionalError(
                "expected the data of the system itself, got data.downscale or data.encoder; leave them out"
            )
        # Before a stage is trained, since a later one would be refused only when its turn comes.
        for name, stage in self.of_stages().items():
            if stage.condition_dropout and stage.data.condition is None:
                raise DiffusionalError(
                    f"condition_dropout={stage.condition_dropout:g} was given for stage {name!r}, whose data have no condition; give data.condition, "
                    "such as label, or leave it out"
                )

    def of_stages(self, encoder: str = "../{name}") -> dict[str, Config]:
        """Return the config of every stage's run, with its data: items of its variable, and the variable of the stage before as condition.

        Args:
            encoder: where the run of the encoder is, from the run of another stage.
        """
        names, found = list(self.stages), dict[str, Config]()
        plain = replace(self.data, condition=None, text_encoder=None, text_form="pooled")
        given = {name: getattr(self.data, name) for name in ("condition", "text_encoder", "text_form")}
        run = self.encoder or encoder.format(name=names[0])
        for i, (name, stage) in enumerate(self.stages.items()):
            if self.kind == "cascade":
                condition = given if i == 0 else self._stage(name, f"quantised:{self.factors[i - 1]}", given)
                data = replace(plain, **condition, downscale=tuple(reversed(self.factors[i:])))
            elif i == 0 and self.encoder is None:
                data = self.data if stage.model.kind == "contrastive" else plain
            elif name == "prior":
                draws = 8 if self.kind == "latent" else 0
                data = replace(plain, **given, encoder=run, encoder_draws=draws)
            else:
                data = replace(plain, **self._stage(name, f"encoder:{run}", given))
            found[name] = replace(stage, data=data)
        return found

    def _stage(self, name: str, before: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a later stage's condition: the variable of the stage before, and perhaps that of the system."""
        if name not in self.conditional:
            return {"condition": before}
        return given | {"condition": f"{before} + {given['condition']}"}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready record; `from_dict` reads it back."""
        stages = {}
        for name, stage in self.stages.items():
            stages[name] = {key: value for key, value in stage.to_dict().items() if key != "data"}
        own = {"format": FORMAT, "kind": self.kind, "data": asdict(self.data), "stages": stages}
        own |= {"factors": list(self.factors), "renoise": self.renoise, "handover": self.handover}
        own |= {"conditional": list(self.conditional), "encoder": self.encoder}
        return json.loads(json.dumps(own))

    @staticmethod
    def from_dict(record: Any) -> "CompositeConfig":
        """Return the config that `to_dict` described. Raises DiffusionalError for unknown keys and values of the wrong type.

        >>> config = CompositeConfig("cascade", {"base": Config(), "upsampler": Config()}, factors=(2,))
        >>> CompositeConfig.from_dict(config.to_dict()) == config
        True
        """
        known = ("format", "kind", "data", "stages", "factors", "renoise", "handover", "conditional", "encoder")
        if not isinstance(record, dict) or not isinstance(record.get("stages"), dict):
            raise DiffusionalError(f"expected an object with kind and stages, got {record!r:.80}")
        if unknown := [key for key in record if key not in known]:
            raise DiffusionalError(f"unknown key {unknown[0]!r}; expected {', '.join(known)}")
        if record.get("format", FORMAT) != FORMAT:
            raise DiffusionalError(f"expected format {FORMAT}, got {record['format']!r}; update diffusional")
        stages = {name: Config.from_dict(_without_data(name, stage)) for name, stage in record["stages"].items()}
        data = Config.from_dict({"data": record.get("data", {})}).data
        factors, renoise, handover = record.get("factors", []), record.get("renoise"), record.get("handover")
        if not isinstance(factors, list) or not all(_whole(one) for one in factors):
            raise DiffusionalError(f"expected factors to be a list of integers, got {factors!r}")
        if isinstance(renoise, bool) or not isinstance(renoise, int | float | None):
            raise DiffusionalError(f"expected renoise to be a number or null, got {renoise!r}")
        if handover is not None and not _whole(handover):
            raise DiffusionalError(f"expected handover to be an integer or null, got {handover!r}")
        conditional = record.get("conditional", [])
        if not isinstance(conditional, list) or not all(isinstance(one, str) for one in conditional):
            raise DiffusionalError(f"expected conditional to be a list of names of stages, got {conditional!r}")
        encoder = record.get("encoder")
        if not isinstance(encoder, str | None):
            raise DiffusionalError(f"expected encoder to be a text or null, got {encoder!r}")
        kind: Any = record.get("kind")
        if kind not in get_args(Kind):
            raise DiffusionalError(f"expected kind to be one of {', '.join(get_args(Kind))}, got {kind!r}")
        noise = None if renoise is None else float(renoise)
        return CompositeConfig(kind, stages, data, tuple(factors), noise, handover, tuple(conditional), encoder)

    @staticmethod
    def load(path: str | Path) -> "CompositeConfig":
        """Read a config from a JSON file, such as the composite.json of a run. Raises DiffusionalError with the name of the file."""
        try:
            return CompositeConfig.from_dict(load_json(Path(path)))
        except DiffusionalError as error:
            raise DiffusionalError(f"{path}: {error}") from error


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _without_data(name: str, stage: Any) -> dict[str, Any]:
    """Return the record of a stage's config. Raises DiffusionalError if it has data of its own."""
    if not isinstance(stage, dict) or "data" in stage:
        raise DiffusionalError(
            f"expected the config of stage {name!r} to be an object without data, which follow from those of the system, got {stage!r:.60}"
        )
    return stage
