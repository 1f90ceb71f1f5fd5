"""Run Google's VDM on a tiny network and write down what it says, for our tests to agree with.

    git clone https://github.com/google-research/vdm /tmp/vdm
    python -m venv /tmp/vdm-venv && /tmp/vdm-venv/bin/pip install jax flax chex numpy
    /tmp/vdm-venv/bin/python tools/vdm_fixtures.py --source /tmp/vdm

None of that code is here: model_vdm.py is imported from `--source`, a clean clone whose commit the fixture names. It runs in
float64: jax_enable_x64, and the two functions of it whose `dtype` is float32 unless told, `dot_product_attention` and
`get_timestep_embedding`, are told from outside. `jax.random.normal` and `uniform` are replaced while it runs, so that its noise and
times are those below. tests/models/test_vdm_paper.py and tests/networks/test_vdm.py read tests/fixtures/vdm.npz, channels last as
JAX has them:

    config: the VDMConfig as JSON;
    images (N, 4, 4, 3) uint8; eps_0, eps (N, 4, 4, 3) float32; time (N,): t before it is rounded up to its grid of T;
    score/<path>: the weights of its ScoreUNet, int8, in 1/16: kernels (…, in, out), as flax has them;
    gamma/<gamma_type>/<path>: the weights of its noise schedule, float32;
    gamma/<gamma_type>/u, gamma, slope (33,): γ and dγ/dt on a grid of t;
    vdm/<gamma_type>/<T>/t, g_t, loss_recon, loss_klz, loss_diff (N,), eps_hat (N, 4, 4, 3): what VDM.__call__ says, nats; T = 0 is
    continuous time;
    vdm/<gamma_type>/<T>/gradient/<path> (at most 100,): of the mean over the images of the three losses' sum, by that weight of γ: its
    first 100 elements;
    unet/z (2, 4, 6, 3), g_t (2,), output: ScoreUNet alone, its conditioning zero; unet/embedding (2, 64): its embedding of g_t;
    fourier/z (5, 3), 6-8, 0-8: Base2FourierFeatures(start, stop);
    source, commit, jax, flax, numpy: where it all came from.

Its network has 64 channels: its norms have 32 groups, which do not divide fewer, and groups of one would norm the noise level away.
"""

import argparse
import importlib
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from sources import commit

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "https://github.com/google-research/vdm"
CONFIG = {
    "vocab_size": 256,
    "sample_softmax": False,
    "antithetic_time_sampling": False,
    "with_fourier_features": True,
    "with_attention": False,
    "gamma_min": -9.0,
    "gamma_max": 5.0,
    "sm_n_embd": 64,
    "sm_n_layer": 1,
    "sm_pdrop": 0.1,
}
GAMMA_TYPES = ("fixed", "learnable_scalar", "learnable_nnet")
STEPS = (0, 20)
TIMES = (0.031, 0.377, 0.62, 0.999)
FIRST = 100  # elements of a gradient
UNIT = 16  # the network's weights are whole sixteenths

Arrays = dict[str, np.ndarray]


def inputs(rng: np.random.Generator) -> Arrays:
    """Images, the first of black and white only, noise and times."""
    images = rng.integers(0, 256, (len(TIMES), 4, 4, 3), dtype=np.uint8)
    images[0] = 255 * (images[0] // 128)
    return {
        "images": images,
        "eps_0": rng.standard_normal(images.shape, dtype=np.float32),
        "eps": rng.standard_normal(images.shape, dtype=np.float32),
        "time": np.array(TIMES),
    }


class Peer:
    """Its model in float64, with the weights that it is given."""

    def __init__(self, model: ModuleType, jax: ModuleType, flax: ModuleType) -> None:
        self.model, self.jax, self.flax = model, jax, flax

    def config(self, gamma_type: str = "fixed", steps: int = 0) -> Any:
        """Its VDMConfig. γ's ends are numpy numbers: its decoder indexes them."""
        ends = {k: np.float64(CONFIG[k]) for k in ("gamma_min", "gamma_max")}
        return self.model.VDMConfig(**CONFIG | ends, gamma_type=gamma_type, sm_n_timesteps=steps)

    def shapes(self, module: Any, *given: Any) -> dict[str, tuple[int, ...]]:
        """The shape of each of a module's parameters by its path."""
        made = self.jax.eval_shape(lambda: module.init(self.jax.random.key(0), *given))
        flat = self.flax.traverse_util.flatten_dict(made.get("params", {}), sep="/")
        return {path: tuple(value.shape) for path, value in flat.items()}

    def tree(self, weights: Arrays, unit: int = 1) -> Any:
        """Parameters by path, as flax nests them, float64."""
        flat = {path: self.jax.numpy.asarray(w, "float64") / unit for path, w in weights.items()}
        return self.flax.traverse_util.unflatten_dict(flat, sep="/")


def score_weights(peer: Peer, rng: np.random.Generator) -> Arrays:
    """Every weight ±1/4, or 0 (seven in eight, which keeps the fixture small), and one more where it scales."""
    z = peer.jax.numpy.zeros((1, 4, 4, 3))
    nothing = peer.jax.numpy.zeros(1)
    shapes = peer.shapes(peer.model.ScoreUNet(peer.config()), z, nothing, nothing)
    one = {path: UNIT if path.endswith("scale") else 0 for path in shapes}
    return {
        path: (rng.choice([-4, 0, 4], shape, p=[1 / 16, 7 / 8, 1 / 16]) + one[path]).astype(np.int8)
        for path, shape in sorted(shapes.items())
    }


def gamma_weights(peer: Peer, rng: np.random.Generator) -> dict[str, Arrays]:
    """Of its three schedules: far from where they begin, some slopes negative (it takes |w|)."""
    net = peer.shapes(peer.model.NoiseSchedule_NNet(peer.config()), 0.0)
    scale = {"l1/kernel": 0.0, "l1/bias": 0.0, "l2/kernel": 6.0, "l2/bias": 3.0, "l3/kernel": 4.0}
    middle = {"l1/kernel": -9.75, "l1/bias": -5.5}
    return {
        "fixed": {},
        "learnable_scalar": {"w": np.array([-13.25], np.float32), "b": np.array([-8.5], np.float32)},
        "learnable_nnet": {
            path: (middle.get(path, 0.0) + scale[path] * rng.standard_normal(shape)).astype(np.float32)
            for path, shape in net.items()
        },
    }


def schedules(peer: Peer, weights: dict[str, Arrays]) -> Iterator[tuple[str, np.ndarray]]:
    """γ and dγ/dt of each schedule on a grid."""
    named = {
        "fixed": "NoiseSchedule_FixedLinear",
        "learnable_scalar": "NoiseSchedule_Scalar",
        "learnable_nnet": "NoiseSchedule_NNet",
    }
    u = peer.jax.numpy.linspace(0.0, 1.0, 33)
    for gamma_type, name in named.items():
        module = getattr(peer.model, name)(peer.config(gamma_type))
        run = partial(module.apply, {"params": peer.tree(weights[gamma_type])})
        gamma, slope = peer.jax.jvp(run, (u,), (peer.jax.numpy.ones_like(u),))
        for what, values in {"u": u, "gamma": gamma, "slope": slope}.items():
            yield f"gamma/{gamma_type}/{what}", np.asarray(values)


def model(peer: Peer, given: Arrays, score: Arrays, gammas: dict[str, Arrays]) -> Iterator[tuple[str, np.ndarray]]:
    """Its three losses, for every schedule, in continuous time and in steps, and what γ's weights would do to their sum."""
    random, flatten = peer.jax.random, partial(peer.flax.traverse_util.flatten_dict, sep="/")
    images, nothing = peer.jax.numpy.asarray(given["images"], "float64"), peer.jax.numpy.zeros(len(given["images"]))
    for gamma_type, steps in itertools.product(GAMMA_TYPES, STEPS):
        module = peer.model.VDM(peer.config(gamma_type, steps))
        noise = [peer.jax.numpy.asarray(given[k], "float64") for k in ("eps_0", "eps")]
        times = peer.jax.numpy.asarray(given["time"])

        def losses(gamma: Any, module: Any = module) -> tuple[Any, tuple[Any, Any]]:
            said, seen = module.apply(
                {"params": {"score_model": peer.tree(score, UNIT), "gamma": gamma}},
                images,
                nothing,
                rngs={"sample": random.key(0)},
                capture_intermediates=lambda part, _: isinstance(part, peer.model.ScoreUNet),
                mutable=["intermediates"],
            )
            total = (said.loss_recon + said.loss_klz + said.loss_diff).mean()
            return total, (said, seen["intermediates"]["score_model"]["__call__"][0])

        gamma = peer.tree(gammas[gamma_type])
        with (
            mock.patch.object(random, "normal", side_effect=noise),
            mock.patch.object(random, "uniform", side_effect=[times]),
        ):
            (_, (said, eps_hat)), gradient = peer.jax.value_and_grad(losses, has_aux=True)(gamma)
        t = np.ceil(given["time"] * steps) / steps if steps else given["time"]
        g_t = module.apply({"params": {"gamma": gamma}}, peer.jax.numpy.asarray(t), method=lambda m, t: m.gamma(t))
        out = {
            "t": t,
            "g_t": g_t,
            "eps_hat": eps_hat,
            **{k: getattr(said, k) for k in ("loss_recon", "loss_klz", "loss_diff")},
            **{f"gradient/{path}": values.ravel()[:FIRST] for path, values in flatten(gradient).items()},
        }
        for what, values in out.items():
            yield f"vdm/{gamma_type}/{steps}/{what}", np.asarray(values)


def parts(peer: Peer, score: Arrays, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Its network, its embedding of time and its Fourier features, alone."""
    z, g_t = rng.standard_normal((2, 4, 6, 3)), np.array([-7.3, 4.1])
    network = peer.model.ScoreUNet(peer.config())
    output = network.apply({"params": peer.tree(score, UNIT)}, z, g_t, np.zeros(2))
    span = CONFIG["gamma_max"] - CONFIG["gamma_min"]
    embedding = peer.model.get_timestep_embedding((g_t - CONFIG["gamma_min"]) / span, CONFIG["sm_n_embd"])
    yield from {"unet/z": z, "unet/g_t": g_t, "unet/output": output, "unet/embedding": embedding}.items()
    values = rng.uniform(-1, 1, (5, 3))
    yield "fourier/z", values
    for start, stop in ((6, 8), (0, 8)):
        yield f"fourier/{start}-{stop}", peer.model.Base2FourierFeatures(start, stop).apply({}, values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="a clean clone of google-research/vdm")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/vdm.npz")
    options = parser.parse_args()

    source = options.source.resolve()
    jax, flax = importlib.import_module("jax"), importlib.import_module("flax")
    origin = {
        "source": SOURCE,
        "commit": commit(source, SOURCE),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "config": json.dumps(CONFIG),
    }
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(source))
    jax.config.update("jax_enable_x64", True)
    peer = Peer(importlib.import_module("model_vdm"), jax, flax)

    rng = np.random.default_rng(0)
    given = inputs(rng)
    with ExitStack() as stack:
        for name in ("dot_product_attention", "get_timestep_embedding"):
            told = partial(getattr(peer.model, name), dtype=jax.numpy.float64)
            stack.enter_context(mock.patch.object(peer.model, name, told))
        score, gammas = score_weights(peer, rng), gamma_weights(peer, rng)
        out = {
            **given,
            **{f"score/{path}": w for path, w in score.items()},
            **{f"gamma/{kind}/{path}": w for kind, weights in gammas.items() for path, w in weights.items()},
            **dict(schedules(peer, gammas)),
            **dict(model(peer, given, score, gammas)),
            **dict(parts(peer, score, rng)),
        }
    for name, values in out.items():
        if "/loss_" in name:
            print(f"{name:40} {np.round(values, 3)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, allow_pickle=False, **out, **{name: np.array(v) for name, v in origin.items()})
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
