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
from diffusional.data.joint import split_condition, with_first
from diffusional.errors import DiffusionalError
from diffusional.files import sha256
from diffusional.models.base import LatentVariableModel, evaluation_mode
from diffusional.networks.clip import CLIP, CLIPEncoder
from diffusional.space import Continuous, Space
from diffusional.training.build import build_dataset
from diffusional.training.config import DataConfig
from diffusional.training.run import WEIGHTS, check_unchanged, load

_MARK = "encoder:"
# Items of one call of the encoder.
_ROWS = 1024


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
    if isinstance(dataset.train, Stream):
        raise DiffusionalError("an encoder needs items in memory, got a stream; load the data without streaming")
    if config.encoder is None:
        found = {split: _latents(encoder, dataset, split, 0) for split in SPLITS}
        if other is not None:
            assert config.condition is not None
            return _with(with_first(dataset, "latent", found, config.condition), config)
        return _with(dataset, config, condition=found)
    draws = config.encoder_draws
    splits = {
        split: _latents(encoder, dataset, split, draws if split == "train" else min(draws, 1)) for split in SPLITS
    }
    labels, texts = dataset.condition, dataset.texts if dataset.text is not None else None
    if labels is not None and draws > 1:
        labels = dict(labels) | {"train": repeated(labels["train"], draws)}
        if texts is not None:
            captions = dict(texts.captions) | {"train": texts.captions["train"] * draws}
            texts = Texts(captions, texts.record, labels)
    changes = {"condition": labels, "texts": texts, **splits}
    return _with(dataset, config, space=Continuous(tuple(splits["train"].shape[1:])), **changes)


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

    Raises DiffusionalError for draws of an encoder without q(y|x).
    """
    if draws and model.learned_posterior() is None:
        raise DiffusionalError(
            f"data.encoder_draws={draws} was given for a {type(model).__name__}, which is deterministic; leave it out"
        )
    found: list[list[Tensor]] = [[] for _ in range(max(draws, 1))]
    generator = torch.Generator().manual_seed(0)
    with evaluation_mode(model), torch.no_grad():
        encoder = model.deterministic_encoder()
        for block in dataset.blocks(split, _ROWS):
            if not draws:
                found[0].append(encoder(block).float())
                continue
            q = model.posterior(block)
            for part in found:
                part.append(q.sample(generator).float())
    return torch.cat([torch.cat(part) for part in found])


def _with(dataset: Dataset, config: DataConfig, **changes: object) -> Dataset:
    """Return a data set with other splits or conditions, whose arguments are those of the config."""
    source = dataset.source
    if source is not None and source.arguments is not None:
        own = {"condition": config.condition, "encoder": config.encoder, "encoder_draws": config.encoder_draws}
        own |= {"text_encoder": config.text_encoder, "text_form": config.text_form}
        arguments = dict(source.arguments) | own | {"encoder_sha256": config.encoder_sha256}
        splits = {split: (changes.get(split, source.splits[split][0]), source.splits[split][1]) for split in SPLITS}
        source = Source(splits, arguments)
    return dataclasses.replace(dataset, source=source, **changes)
