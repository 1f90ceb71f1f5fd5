"""The data of a config, whatever they are: items, or the latents of a frozen encoder, which another run holds.

    data.encoder=RUN               the items are latents of the VAE in RUN: means of q(y|x), or draws of it; or a contrastive encoder's features
    data.condition=encoder:RUN     the condition of each item is the mean of q(y|x), or the features

In place of RUN, clip:NAME is the image encoder of a CLIP of transformers, by its folder or its name on the Hugging Face Hub.

A path that is not absolute is relative to the folder of the run that is trained, so that a system can be moved as a whole.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusional.conditions import repeated
from diffusional.data.dataset import SPLITS, Dataset, Source, Stream, Texts
from diffusional.data.derived_stream import mapped, with_computed
from diffusional.data.joint import split_condition, with_first
from diffusional.data.kept import kept
from diffusional.data.progress import watched
from diffusional.errors import DiffusionalError
from diffusional.files import sha256
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.networks.clip import CLIP, CLIPEncoder
from diffusional.space import Continuous, Space
from diffusional.training.build import build_dataset
from diffusional.training.config import DataConfig
from diffusional.training.run import WEIGHTS, check_unchanged, load
from diffusional.training.seeds import seed_of

_MARK = "encoder:"
# Items of one call of the encoder.
_ROWS = 1024
# Images that a CLIP encodes between two reports of progress.
_CLIP_ROWS = 64


def dataset_of(config: DataConfig, folder: Path | None = None) -> Dataset:
    """Return the data of a config.

    Args:
        folder: the folder of the run, for the path of an encoder that is relative to it.

    Raises DiffusionalError for a run without a VAE, one that was trained on other items, and weights that are not those of
    `data.encoder_sha256`.
    """
    condition = config.condition or ""
    if config.encoder is None and not condition.startswith(_MARK):
        return build_dataset(config)
    first, other = split_condition(condition)
    if first is None:
        other = None
    elif first.startswith(_MARK):
        condition = first
    path = condition.removeprefix(_MARK) if condition.startswith(_MARK) else config.encoder
    assert path is not None
    plain = dataclasses.replace(config, encoder=None, encoder_draws=0, encoder_sha256=None)
    if condition.startswith(_MARK):
        unused: dict[str, Any] = {} if other is not None else {"text_encoder": None, "text_form": "pooled"}
        plain = dataclasses.replace(plain, condition=other, **unused)
    dataset = build_dataset(plain)
    encoder = encoder_of(path, folder, config.encoder_sha256, dataset.space)
    if encoder.space != dataset.space:
        raise DiffusionalError(
            f"stages do not meet: the encoder in {path} is for {encoder.space}, and the items are {dataset.space}"
        )
    train = dataset.train
    held = SPLITS[1:] if isinstance(train, Stream) else SPLITS
    if config.encoder is None:
        found = {split: _latents(encoder, dataset, split, 0) for split in held}

        def latent(raw: Tensor) -> Tensor:
            return _encoded(encoder, dataset.space.encode(raw), 0, _generator())

        if other is not None:
            assert config.condition is not None
            return _with(with_first(dataset, "latent", found, config.condition, latent), config)
        changes: dict[str, Any] = {"condition": found}
        if isinstance(train, Stream):
            changes["train"] = with_computed(train, latent)
        return _with(dataset, config, **changes)
    draws = config.encoder_draws
    splits: dict[str, Any] = {
        split: _latents(encoder, dataset, split, draws if split == "train" else min(draws, 1)) for split in held
    }
    labels, texts = dataset.condition, dataset.texts if dataset.text is not None else None
    shape = tuple(splits["test"].shape[1:])
    if isinstance(train, Stream):

        def drawn(raw: Tensor, epoch: int, first: int) -> Tensor:
            return _encoded(encoder, dataset.space.encode(raw), min(draws, 1), _generator(epoch, first))

        # Encoders are distinguished by the items at the head, which are part of the fingerprint.
        splits["train"] = mapped(train, drawn, shape, torch.float32, ["latents", draws], labels is not None)
    elif labels is not None and draws > 1:
        labels = dict(labels) | {"train": repeated(labels["train"], draws)}
        if texts is not None:
            captions = dict(texts.captions) | {"train": texts.captions["train"] * draws}
            texts = Texts(captions, texts.record, labels)
    changes = {"condition": labels, "texts": texts, **splits}
    return _with(dataset, config, space=Continuous(shape), **changes)


def encoder_of(
    path: str, folder: Path | None = None, expected: str | None = None, space: Space | None = None
) -> LatentVariableModel | CLIPEncoder:
    """Return the model of a run, a VAE or a contrastive encoder, or a CLIP, frozen.

    Args:
        space: of the images that a CLIP encodes.

    Raises DiffusionalError for another model, or other weights than `expected`.
    """
    if path.startswith(CLIP):
        assert space is not None
        clip = CLIPEncoder.load(path.removeprefix(CLIP), space)
        check_unchanged(path, clip.sha256, expected)
        return clip
    # Without "..", since the folder of a run that is about to be trained does not exist yet.
    run = Path(path) if folder is None else Path(os.path.normpath(folder / path))
    model: Any = load(run)
    if model.deterministic_encoder() is None:
        raise DiffusionalError(
            f"expected a run of a VAE or a contrastive encoder in {run}, whose encoder is frozen, got a {type(model).__name__}"
        )
    check_unchanged(f"in {run}", sha256(run / WEIGHTS), expected)
    return model.requires_grad_(False)


def _latents(model: Any, dataset: Dataset, split: str, draws: int) -> Tensor:
    """Return the features or means of q(y|x) of a split, or draws of it, all items of the first draw first; float32.

    Features of a CLIP are stored in the cache, by the hashes of its files and of the images, since they take long.

    Raises DiffusionalError for draws of an encoder without q(y|x).
    """
    if draws and model.learned_posterior() is None:
        raise DiffusionalError(
            f"data.encoder_draws={draws} was given for a {type(model).__name__}, which is deterministic; leave it out"
        )
    if isinstance(model, CLIPEncoder):
        n = len(dataset.items(split))
        made_from = [1, model.sha256, dataset.fingerprint(split)]

        def features() -> dict[str, Tensor]:
            blocks = watched(dataset.blocks(split, _CLIP_ROWS), -(-n // _CLIP_ROWS), f"encoding {n} images")
            return {"features": torch.cat([_encoded(model, block, 0, _generator()) for block in blocks])}

        what = f"the features of {n} images"
        return kept("features", made_from, n, ("features",), features, what)["features"]
    found: list[list[Tensor]] = [[] for _ in range(max(draws, 1))]
    generator = _generator()
    for block in dataset.blocks(split, _ROWS):
        for part, drawn in zip(found, _encoded(model, block, draws, generator).split(len(block)), strict=True):
            part.append(drawn)
    return torch.cat([torch.cat(part) for part in found])


def _encoded(model: Any, x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Return the features or means of q(y|x) of encoded items, or draws of it, all items of the first draw first; float32."""
    with evaluation_mode(model), torch.no_grad():
        if not draws:
            return model.deterministic_encoder()(x).float()
        q = model.posterior(x)
        return torch.cat([q.sample(generator).float() for _ in range(draws)])


def _generator(*of: int) -> torch.Generator:
    """Return the generator of draws of q(y|x): of items in memory, or of a block of a stream, by its epoch and place."""
    return torch.Generator().manual_seed(seed_of(0, "latents", *of) if of else 0)


def _with(dataset: Dataset, config: DataConfig, **changes: object) -> Dataset:
    """Return a data set with other splits or conditions, whose arguments are those of the config."""
    source = dataset.source
    if source is not None and source.arguments is not None:
        own = {"condition": config.condition, "encoder": config.encoder, "encoder_draws": config.encoder_draws}
        own |= {"text_encoder": config.text_encoder, "text_form": config.text_form}
        arguments = dict(source.arguments) | own | {"encoder_sha256": config.encoder_sha256}
        held = SPLITS[1:] if isinstance(dataset.train, Stream) else SPLITS
        splits = dict(source.splits)
        splits |= {split: (changes.get(split, splits[split][0]), splits[split][1]) for split in held}
        source = Source(splits, arguments)
    return dataclasses.replace(dataset, source=source, **changes)
