"""What the benchmarks of labelled images share: the model of classes, and the classifiers of scikit-learn it is compared with."""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffusional as df
from diffusional.data import Dataset
from diffusional.training import recipes
from diffusional.training.config import Config


def add_options(parser: argparse.ArgumentParser, items: int) -> None:
    """Add the options that choose data and model."""
    parser.add_argument("--set", choices=("digits", "mnist"), required=True)
    parser.add_argument("--data", default="../shared/data/mnist", help="the folder of MNIST's files")
    parser.add_argument("--run", type=Path, required=True, help="the run folder of the model")
    parser.add_argument("--train", action="store_true", help="train the model first, or continue its training")
    parser.add_argument("--items", type=int, default=items, help="test items, at most")


def config(name: str, data: str) -> Config:
    """Return the config of a set's model: the preset of the digits, or that for a laptop on MNIST, averaged to 14 × 14 pixels."""
    if name == "digits":
        plain = recipes.digits()
        return dataclasses.replace(
            plain, data=dataclasses.replace(plain.data, condition="label"), condition_dropout=0.1
        )
    plain = recipes.laptop()
    return dataclasses.replace(
        plain,
        data=dataclasses.replace(plain.data, name=data, downscale=(2,), condition="label"),
        model=dataclasses.replace(plain.model, widths=(16, 32)),
        batch=64,
        steps=2000,
        validate_every=2000,
        condition_dropout=0.1,
    )


def opened(options: argparse.Namespace) -> tuple[Any, Dataset, Tensor, Tensor]:
    """Return the model, its data, and test items (N, *dims), encoded, with their labels (N,)."""
    if options.train:
        df.train(config(options.set, options.data), options.run, resume=options.run.exists())
    run = df.load_run(options.run)
    data = run.data()
    x, c = data.encode("test"), data.condition_of("test")
    assert isinstance(c, Tensor)
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: options.items]
    return run.model, data, x[some], c[some]


def _fitted(classifier: Any, data: Dataset) -> Any:
    labels = data.condition_of("train")
    assert isinstance(labels, Tensor)
    return classifier.fit(data.encode("train").flatten(1).numpy(), labels.numpy())


def network_classifier(data: Dataset) -> Any:
    """Return a multilayer perceptron with one hidden layer of 256 units, fitted to the training images."""
    from sklearn.neural_network import MLPClassifier

    epochs = 200 if len(data.items("train")) < 5000 else 15
    return _fitted(MLPClassifier((256,), alpha=1e-3, max_iter=epochs, random_state=0), data)


def logistic_classifier(data: Dataset) -> Any:
    """Return logistic regression on the pixels, fitted to the training images."""
    from sklearn.linear_model import LogisticRegression

    return _fitted(LogisticRegression(C=0.1, max_iter=100), data)


def accuracy_of(classifier: Any, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the share of images (N, …), encoded, that the classifier puts into their class, and its standard error."""
    return share(torch.from_numpy(classifier.predict(images.flatten(1).numpy())) == labels)


def share(right: Tensor) -> dict[str, float]:
    """Return the share of true values (N,) and its binomial standard error.

    >>> share(torch.tensor([True, True, True, False]))
    {'value': 0.75, 'error': 0.21650635094610965}
    """
    value = float(right.double().mean())
    return {"value": value, "error": math.sqrt(value * (1 - value) / len(right))}
