"""Tables of the pages about models."""

import math
from collections.abc import Sequence
from typing import Any

from result_tables.common import markdown, numbers, over_seeds, record, two_digits, with_error

# How the systems of benchmarks/order.py differ.
_DIFFERENCES = {
    ("linear, L_vlb", "DDPM: linear, L_simple"): "objective, sampler",
    ("cosine, L_vlb", "cosine, L_simple"): "objective, sampler",
    ("cosine, L_simple", "DDPM: linear, L_simple"): "schedule",
    ("cosine, L_vlb", "linear, L_vlb"): "schedule",
    (
        "iDDPM: cosine, learned variance, L_vlb",
        "cosine, L_vlb",
    ): "variance of the chain and of the decoder, sampler",
    ("iDDPM: cosine, learned variance, L_hybrid", "cosine, L_simple"): "variance of the chain and of the decoder",
    ("learned γ, T = ∞", "log-SNR-linear, T = ∞"): "shape of γ",
    ("VDM: learned γ and ends, T = ∞", "learned γ, T = ∞"): "ends of γ",
    ("VDM: learned γ and ends, T = ∞", "DDPM: linear, L_simple"): "all but the network",
    (
        "levels: levels head, T = ∞",
        "VDM: learned γ and ends, T = ∞",
    ): "head, decoder, γ and its ends, sampler",
}


def systems() -> str:
    """Test bounds of the systems after equally many steps. † marks means of evaluations that all have a caveat."""
    rows = []
    for name, system in record("order.json")["systems"].items():
        seeds = [system["seeds"][seed] for seed in sorted(system["seeds"])]
        last = [f"{seed['last_level']['value']:.2f}" for seed in seeds if "last_level" in seed]
        clipped = ""
        if system["clipped"]:
            clipped = "{:.3f} ± {:.3f}".format(*system["clipped"]) + _dagger(seeds)
        rows.append(
            [
                name,
                f"{system['bits_per_dim']:.3f} ± {system['error_by_seeds']:.3f}",
                ", ".join(f"{seed['nelbo']['value']:.3f}" for seed in seeds),
                ", ".join(last if len(set(last)) > 1 else last[:1]),
                clipped,
                f"{system['step_seconds']:.3f}",
            ]
        )
    return markdown(["system", "test bound, bits/dim", "seeds", "KL_(T−1)", "x̂ clipped", "s a step"], rows)


def _dagger(seeds: Sequence[dict[str, Any]]) -> str:
    return "†" if all(seed["clipped"]["caveats"] for seed in seeds) else ""


def gains() -> str:
    """Differences of the systems, as they are and with x̂ clipped."""
    data = record("order.json")
    found: dict[tuple[str, str], dict[str, str]] = {}
    for pair in data["pairs"]:
        names = pair["of"], pair["over"]
        sign = f"{pair['gain']:+.3f} ± {pair['error_by_seeds']:.3f}"
        if pair["bound"] == "clipped":
            sign += _dagger(list(data["systems"][pair["of"]]["seeds"].values()))
        found.setdefault(names, {})[pair["bound"]] = sign
    rows = [
        [*names, _DIFFERENCES[names], bounds["nelbo"], bounds.get("clipped", "")] for names, bounds in found.items()
    ]
    return markdown(["gain of", "over", "differs in", "as it is", "x̂ clipped"], rows)


# Rows of the digits' table: key of the record, name, parameters.
_DIGITS = (
    ("diffusion", "**diffusion** (continuous time)", "177 k"),
    ("hierarchical_vae", "hierarchical VAE, 16 and 12 latents", "633 k"),
    ("vae_diffusion_prior", "VAE with a diffusion prior (T = 500), 16 latents", "1,022 k"),
    ("vae", "VAE, 16 latents", "592 k"),
)


def digits() -> str:
    """Test bounds of the models of the digits after equal time, and of the baselines."""
    data = record("side_by_side.json")
    seeds = [data["seeds"][seed] for seed in sorted(data["seeds"])]
    rows = []
    for key, name, parameters in _DIGITS:
        bounds = [seed[key]["nelbo"]["value"] for seed in seeds]
        mean = f"{sum(bounds) / len(bounds):.4f}"
        tighter = [seed[key].get("importance_weighted_64") for seed in seeds]
        rows.append(
            [
                name,
                parameters,
                *(f"{bound:.4f}" for bound in bounds),
                f"**{mean}**" if key == "diffusion" else mean,
                ", ".join(f"{found['value']:.3f}" for found in tighter if found),
            ]
        )
    for name, found in data["yardsticks"].items():
        rows.append([name, "", f"{found['value']:.4f}", "", "", "", "exact"])
    header = ["model", "parameters", "seed 0", "1", "2", "**mean**", "importance-weighted, K = 64"]
    return markdown(header, rows)


_PLAIN = {"vae": "VAE", "hierarchical_vae": "hierarchical VAE", "vae_diffusion_prior": "VAE with a diffusion prior"}
# The costs of each VAE, with their names; those without a name are negligible.
_COSTS = {
    "vae": {"reconstruction": "reconstruction", "prior": "KL"},
    "hierarchical_vae": {"reconstruction": "reconstruction", "kl": "(z_1)", "prior": "(z_2)"},
    "vae_diffusion_prior": {
        "reconstruction": "reconstruction",
        "kl": "KL of the chain",
        "latent_reconstruction": "latent reconstruction",
        "encoder_entropy": "encoder entropy",
    },
}


def digits_costs() -> str:
    """The costs that the bounds of the digits' VAEs consist of, seed 0."""
    seed, rows = record("side_by_side.json")["seeds"]["0"], []
    for key, name in _PLAIN.items():
        terms = seed[key]["terms"]
        costs = [(terms[term], called) for term, called in _COSTS[key].items()]
        text = " ".join(f"{'+' if cost > 0 else '−'} {abs(cost):.3f} {called}" for cost, called in costs)
        rows.append([name, text.removeprefix("+ ")])
    return markdown(["model", "costs"], rows)


def digits_information() -> str:
    """What the latents of the digits' VAEs contain about the training images, seed 0."""
    seed, rows = record("side_by_side.json")["seeds"]["0"], []
    for key, name in _PLAIN.items():
        latents = seed[key]["latents"]
        marginal = latents["marginal_kl"]
        decimals = 1 if marginal["upper_bound"] else 2
        rows.append(
            [
                name,
                f"{latents['information']['value']:.3f}",
                "at most " * marginal["upper_bound"] + f"{marginal['value']:.{decimals}f}",
                f"{sum(layer['active'] for layer in latents['layers'])} of "
                f"{sum(layer['units'] for layer in latents['layers'])}",
            ]
        )
    return markdown(["model", "I(x; z)", "KL[q(z) ‖ p(z)]", "active units"], rows)


# Rows of binary MNIST's table: key of the record, name, weights, and the costs that are shown with their names.
_BITS = (
    (
        "binomial diffusion, T = 100",
        "**binomial diffusion** (Sohl-Dickstein et al. 2015, β_t = 1/(T − t + 1)), T = 100",
        "91 k",
        {"reconstruction": "−ln p(x\\|z_1)", "kl": "KL", "prior": "prior"},
    ),
    (
        "Gaussian diffusion, levels head, T = ∞",
        "Gaussian diffusion, levels head, T = ∞",
        "91 k",
        {"kl": "KL", "prior": "prior"},
    ),
    (
        "hierarchical VAE, two layers",
        "hierarchical VAE, 40 and 20 latents",
        "3.5 M",
        {"reconstruction": "−ln p(x\\|z)", "kl": "KL", "prior": "prior"},
    ),
    ("VAE", "VAE, 40 latents", "3.4 M", {"reconstruction": "−ln p(x\\|z)", "prior": "prior"}),
    (
        "Gaussian diffusion, levels head, T = 100",
        "Gaussian diffusion, levels head, T = 100",
        "91 k",
        {"kl": "KL", "prior": "prior"},
    ),
)


def binary_mnist() -> str:
    """Test bounds of binary MNIST, nats."""
    rows = []
    for key, name, weights, costs in _BITS:
        system = record("binary_mnist.json")["systems"][key]
        seeds = [system["seeds"][seed] for seed in sorted(system["seeds"])]
        error = system["error_by_seeds"]
        digits = 1 if error >= 0.15 else 2
        bound = f"{system['nats']:.{digits}f} ± {error:.{digits}f}"
        means = {cost: sum(seed["terms"][cost]["value"] for seed in seeds) / len(seeds) for cost in costs}
        rows.append(
            [
                name,
                weights,
                f"**{bound}**" if name.startswith("**") else bound,
                ", ".join(f"{seed['nelbo']['value']:.{digits}f}" for seed in seeds),
                ", ".join(f"{costs[cost]} {_cost(mean)}" for cost, mean in means.items()),
            ]
        )
    return markdown(["model", "weights", "test NELBO, nats", "seeds", "of it, means"], rows)


def _cost(nats: float) -> str:
    """Two decimals below 1, one above, and 0 for nothing.

    >>> _cost(0.131), _cost(4.34), _cost(0.0)
    ('0.13', '4.3', '0')
    """
    return "0" if nats == 0 else f"{nats:.2f}" if nats < 1 else f"{nats:.1f}"


# Rows of the essay's table: key of the record, name.
_CHAINS = (("essay", "`essay`: β_t = 0.9, γ = {}"), ("essay-tuned", "`essay-tuned`: γ = {}"))
_BESIDE = (
    ("vae", "VAE, 16 latents"),
    ("hierarchical_vae", "hierarchical VAE, 16 and 12 latents"),
    ("diffusion", "diffusion, continuous time"),
)


def essay_chain() -> str:
    """Test bounds of the essay's chain and the costs that they consist of, beside models of the digits."""
    data, rows = record("essay_chain.json"), []
    for key, name in _CHAINS:
        system = data["systems"][key]
        costs = [system["nelbo"], system["terms"]["reconstruction"]]
        bound, reconstruction = (_four(cost["value"], cost["error"]) for cost in costs)
        kls = [_four(*kl) for kl in zip(system["kl"]["value"], system["kl"]["error"], strict=True)]
        prior = _four(system["terms"]["prior"]["value"], system["terms"]["prior"]["error"])
        name = name.format(numbers(system["gamma"], 1))
        rows.append([name, f"{system['parameters'] / 1000:,.0f} k", bound, reconstruction, *kls, prior])
    parameters = {key: number for key, _, number in _DIGITS}
    for key, name in _BESIDE:
        found = data["beside"][key]
        bound = f"{found['value']:.3f} ± {found['error']:.3f}"
        rows.append([name, parameters[key], bound, *[""] * (len(rows[0]) - 3)])
    steps = len(rows[0]) - 4
    header = ["model", "parameters", "test bound, bits/dim", "−ln p(x\\|z_1)"]
    return markdown([*header, *(f"KL_{t}" for t in range(1, steps)), f"KL_{steps} (prior)"], rows)


def _four(value: float, error: float) -> str:
    """Return four decimals, with the error if it is not below 0.0001."""
    return f"{value:.4f} ± {error:.4f}" if error >= 1e-4 else f"{value:.4f}"


def cifar10_subset() -> str:
    """The costs that the bound of 1,000 images of CIFAR-10 consists of."""
    return laptop("cifar10_subset.json")


def laptop(file: str = "laptop.json") -> str:
    """The costs that the laptop preset's test bound consists of."""
    evaluation = record(file)["evaluation"]
    unit = evaluation["dimensions"] * math.log(2)
    rows = []
    for key, name, decimals in (("reconstruction", "reconstruction", 3), ("kl", "KL", 3), ("prior", "prior", 5)):
        rows.append([name, f"{evaluation['terms'][key]['value'] / unit:.{decimals}f}"])
    return markdown(["of the bound", "bits/dim"], rows)


# Rows of the table of shapes and ends: key of the record, name.
_SCHEDULES = (
    ("log-SNR-linear", "log-SNR-linear, the same ends"),
    ("β-linear", "β-linear, the same ends"),
    ("γ_1 two higher", "log-SNR-linear, γ_1 two higher"),
    ("γ_T three lower", "log-SNR-linear, γ_T three lower"),
)
# VDM's ratios of variances on CIFAR-10 (Kingma et al. 2021).
_VDM = {"log-SNR-linear": "12", "β-linear": "60", "α-cosine": "59"}


def schedules() -> str:
    """Bounds of the same networks under other shapes and ends of γ."""
    data = record("schedules.json")
    runs = data["runs"]
    low, high = (numbers([sum(run["ends"][end] for run in runs) / len(runs)], 1) for end in (0, 1))

    def bounds(key: str) -> str:
        return numbers([run["shapes_and_ends"][key]["nelbo"]["value"] for run in runs], 4)

    rows = [[f"its own learned γ(u), from {low} to {high}", bounds("its own"), ""]]
    for key, name in _SCHEDULES:
        gap = data["gap"][key]
        rows.append([name, bounds(key), f"{gap['value']:+.4f} ± {gap['error_by_runs']:.4f}"])
    return markdown(["the same network under", "NELBO, three seeds", "over its own"], rows)


def schedule_steps() -> str:
    """What T steps cost more than continuous time."""
    data = record("schedules.json")
    run = data["runs"][0]
    steps = sorted(run["T"], key=int)
    bounds = [run["T"][key]["nelbo"] for key in steps] + [run["shapes_and_ends"]["its own"]["nelbo"]]
    values, errors = ([bound[key] for bound in bounds] for key in ("value", "error"))
    one = [run["T_over_continuous_time"][key] for key in steps]
    mean = [data["T_over_continuous_time"][key] for key in steps]
    rows = [
        [f"NELBO, seed 0, ± {min(errors):.4f} to {max(errors):.4f}", *(f"{value:.4f}" for value in values)],
        ["its distance from the last", *(f"{value - values[-1]:.4f}" for value in values[:-1]), "0"],
        ["L_T − L_∞, seed 0", *(f"{found['value']:.4f} ± {found['error']:.4f}" for found in one), "0"],
        [
            "L_T − L_∞, three seeds",
            *(f"{found['value']:.4f} ± {found['error_by_runs']:.4f}" for found in mean),
            "0",
        ],
    ]
    return markdown(["VDM's T (T + 1 latents)", *steps, "∞"], rows)


def schedule_variance() -> str:
    """Variance of one draw of the loss under each shape, relative to that under the learned shape."""
    data, rows = record("schedules.json"), []
    for key, found in data["variance"].items():
        ratios = [run["variance"][key] / run["variance"]["its own"] for run in data["runs"]]
        decimals = 0 if found["value"] >= 100 else 2 if found["value"] >= 1 else 3
        mean = f"{found['value']:.{min(decimals, 2)}f} ± {found['error_by_runs']:.{min(decimals, 2)}f}"
        name = "the best of all shapes" if key == "best of all shapes" else key
        rows.append([name, numbers(ratios, decimals), mean, _VDM.get(key, "")])
    return markdown(["shape, the same ends", "three seeds", "mean", "VDM's on CIFAR-10"], rows)


def gpu() -> str:
    """The dry run of VDM's CIFAR-10 recipe."""
    measured = record("gpu-cifar10-dry-run.json")["measured"]
    share = f"{100 * measured['utilisation']:.0f} % of what a matrix product reaches here"
    rows = [
        ["images a second", f"{measured['images_per_second']:.1f}"],
        ["TFLOP/s", f"{measured['teraflops']:.3f}, {share}"],
        ["memory", f"{measured['resident_gibibytes']:.2f} GiB"],
    ]
    return markdown(["dry run on two cores", ""], rows)


# Systems of several models: key of the record, name, and what the model is given.
_SYSTEMS = (
    ("unconditional", "one diffusion", "nothing"),
    ("label", "one diffusion", "the label"),
    ("caption", "one diffusion", "a caption"),
    ("cascade", "cascade", "nothing"),
    ("latent", "latent diffusion (a VAE, frozen)", "nothing"),
    ("unclip", "unCLIP (a contrastive encoder, frozen)", "the label, for encoder and prior"),
)


def composite_bits(file: str = "systems_mnist.json") -> str:
    """For every system, its bits/dim: the mean over seeds, its standard error, and each seed with its Monte Carlo error."""
    rows, systems = [], record(file)["systems"]
    for key, name, given in _SYSTEMS:
        seeds = list(systems[key]["seeds"].values())
        each = ", ".join(f"{one['bits']['value']:.3f} ± {one['bits']['error']:.3f}" for one in seeds)
        weights = sum(seeds[0]["weights"].values())
        took = " + ".join(f"{value:.1f}" for value in seeds[0]["training_seconds"].values())
        mean = "{:.3f} ± {:.3f}".format(*over_seeds(one["bits"] for one in seeds))
        rows.append([name, given, mean, each, took, f"{weights / 1e6:.2f}"])
    return markdown(["system", "given", "bits/dim", "of each seed", "CPU-seconds by stage", "M weights"], rows)


def composite_bits_short() -> str:
    """The same after shorter trainings on smaller images."""
    return composite_bits("systems_mnist8.json")


def composite_stages() -> str:
    """For every system, the nats of every stage: the means over seeds of the sums of its terms."""
    rows, systems = [], record("systems_mnist.json")["systems"]
    for key, name, _ in _SYSTEMS:
        seeds = list(systems[key]["seeds"].values())
        stages: dict[str, float] = {}
        for one in seeds:
            for term, cost in one["terms"].items():
                stage = term.partition(".")[0] if "." in term else "model"
                stages[stage] = stages.get(stage, 0.0) + cost["value"] / len(seeds)
        parts = " + ".join(f"{value:.1f} {stage}" for stage, value in stages.items()).replace("-", "−")
        rows.append([f"{name}, {key}" if name == "one diffusion" else name, parts, f"{sum(stages.values()):.1f}"])
    return markdown(["system", "nats by stage", "in all"], rows)


def composite_information() -> str:
    """I(x; c) of labels and captions, nats: the estimate, that of shuffled conditions, and for labels the bounded form and H(label)."""
    rows = []
    for key, name in (("label", "label"), ("caption", "caption")):
        for seed, one in record("systems_mnist.json")["systems"][key]["seeds"].items():
            found, form = one["information"], one.get("bounded")
            cells = [
                f"{found[part]['value']:.2f} ± {found[part]['error']:.2f}".replace("-", "−")
                for part in ("information_nats", "shuffled_nats")
            ]
            if form is None:
                cells += ["", ""]
            else:
                least, most = (form[part]["value"] for part in ("least", "most"))
                cells += [f"{least:.2f} to {most:.2f}", f"{form['entropy_of_labels']:.2f}"]
            rows.append([name, seed, *cells])
    return markdown(["condition", "seed", "i(x; c), mean", "of other items", "bounded form", "H(label)"], rows)


def codec_files() -> str:
    """Files of the digits' models: bits of the items, the bound of the same path, and what is added."""
    rows = []
    for name, file in record("codec.json")["files"].items():
        latents = "" if file["latents"] is None or "T =" in name else f", T = {file['latents']}"
        rows.append(
            [
                name.replace("_", " ").replace("hierarchical vae", "hierarchical VAE").replace("vae", "VAE") + latents,
                f"{file['items']}",
                f"{file['items_bits_per_dim']:.4f}",
                f"{file['same_path_bits_per_dim']:.4f}",
                numbers([file["overhead"]], 4),
                with_error(file["bound_bits_per_dim"], file["bound_error"]),
                f"{file['borrowed_bits']:,}",
                f"{file['header_bits']:,}",
                f"{file['bytes']:,}",
                f"{two_digits(file['coded_per_second'])}, {two_digits(file['decoded_per_second'])}",
            ]
        )
    header = ["model", "items", "the items, bits/dim", "bound of the same path", "overhead", "NELBO", "borrowed, bits"]
    return markdown([*header, "header, bits", "file, bytes", "items per second, coding and decoding"], rows)


def codec_others() -> str:
    """Bytes of the test digits by other compressors, and by the codec."""
    found = record("codec.json")
    whole = {name: file for name, file in found["files"].items() if file["items"] == found["items"]}
    sizes = dict(found["others"]) | {
        f"this codec, {name.replace('_', ' ').replace('vae', 'VAE')}": file["bytes"] for name, file in whole.items()
    }
    per = 8 / (found["items"] * found["dimensions"])
    rows = [[name, f"{size:,}", f"{size * per:.3f}"] for name, size in sorted(sizes.items(), key=lambda row: -row[1])]
    return markdown(["file", "bytes", "bits/dim"], rows)


def codec_speed() -> str:
    """Items per second at T = 50, by the number of dimensions."""
    rows = [
        [f"{row['dimensions']}", f"{row['coded_per_second']:.1f}", f"{row['decoded_per_second']:.1f}"]
        for row in record("codec.json")["speed"]
    ]
    return markdown(["dimensions", "coded per second", "decoded per second"], rows)
