"""Tables of docs/audit: the index of all faults, and the sizes and sources of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from result_tables.common import markdown, record, with_error

GITHUB = "https://github.com"
# Repositories as they were read: version, if there is one, and commit.
READ = {
    "Project-MONAI/MONAI": ("1.5.0", "d388d1c6fec8cb3a0eebee5b5a0b9776ca59ca83"),
    "jmtomczak/intro_dgm": ("", "28bbc85bb9430515f9beef8a282c8bc503174725"),
    "openai/improved-diffusion": ("", "1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5"),
    "google-research/vdm": ("", "dc27b98a554f65cdc654b800da5aa1846545d41b"),
    "lucidrains/denoising-diffusion-pytorch": ("2.3.1", "faed4db28e724735323fa91c70aa9b28a6e1cbac"),
    "Kim-Dongjun/Soft-Truncation": ("", "23d1fe9dc21b51b15b703db30e3af34eed07fc59"),
    "yang-song/score_sde_pytorch": ("", "cb1f359f4aadf0ff9a5e122fe8fffc9451fd6e44"),
    "crowsonkb/k-diffusion": ("", "4601bf085320592473f681a62808ed873d17fad5"),
    "facebookresearch/flow_matching": ("", "11568d37f8d5a080e12aa7b5305d9c35ae07d136"),
    "rtqichen/torchdiffeq": ("", "657943acefa826ef04c025ebeb1ff5e9d60dc268"),
    "kuleshov-group/mdlm": ("", "c112c526d193436838c98d81455ee51f90309470"),
    "ML-GSAI/LLaDA": ("", "b7e6c3565f194352da44b38dd12b6970597309f3"),
    "diffusion-classifier/diffusion-classifier": ("", "e9f772d78b75976112d88a1002c496f6ef0cb27e"),
    "thu-ml/i-DODE": ("", "8cb8092cb1a69c7c34b974aa7ad93add33e0a426"),
    "lihenryhfl/pcdm": ("", "b43cfa187c05b4609e44dc4fcba119966ba766a0"),
    "facebookresearch/DiT": ("", "ed81ce2229091fd4ecc9a223645f95cf379d582b"),
    "rosinality/glow-pytorch": ("", "97081ff115a694cf04aeedbd58447f33d242c879"),
}


@dataclass(frozen=True)
class Source:
    """A file (with lines) of a repository at the commit that was read, or an issue, and what it does.

    `faulty` is False for a place that does not have the fault, such as one that is right: its repository is not named in the index.
    """

    repository: str
    place: str
    what: str
    faulty: bool = True

    def link(self) -> str:
        """Return a Markdown link to it."""
        if self.place.startswith("#"):
            kind = "issues"
            return f"[{self.repository} {self.place}]({GITHUB}/{self.repository}/{kind}/{self.place[1:]})"
        path, _, line = self.place.partition(":")
        anchor = ("?plain=1" if path.endswith(".ipynb") else "") + (f"#L{line}" if line else "")
        return f"[{path}]({GITHUB}/{self.repository}/blob/{READ[self.repository][1]}/{path}{anchor})"

    def version(self) -> str:
        """Return the version and the commit, or "" for an issue."""
        if self.place.startswith("#"):
            return ""
        version, commit = READ[self.repository]
        return f"{version} ({commit[:7]})" if version else commit[:7]


@dataclass(frozen=True)
class Fault:
    """A fault: its name, where it was found, the tests of ours that fail if it is made here, and the case of the index."""

    name: str
    sources: tuple[Source, ...]
    tests: tuple[str, ...]
    case: str | None = ""


_MONAI = "Project-MONAI/MONAI"
_INFERER = "monai/inferers/inferer.py"
FAULTS: dict[str, Fault] = {
    "bin-widths": Fault(
        "Bins 2/255 and 2/256 mixed",
        (
            Source("rosinality/glow-pytorch", "#17", "levels 1/255 apart with noise and offset of 1/2ⁿ; corrected since"),
            Source("openai/improved-diffusion", "improved_diffusion/losses.py:64", "bins 2/255 wide: right for x/127.5 − 1", faulty=False),
            Source("google-research/vdm", "model_vdm.py:196", "levels 2/256 apart, with a decoder for them: right", faulty=False),
            Source("vislearn/IB-INN", "#3", "an offset for uniform noise, with Gaussian noise as well"),
        ),
        ("tests/models/test_likelihood.py::test_normalised_and_as_written_out", "tests/test_audit.py::test_bins_of_another_width_lose_mass"),
        "Jacobian",
    ),
    "half-bins": Fault(
        "Noise in half of a bin",
        (Source("jmtomczak/intro_dgm", "flows/realnvp_example.ipynb:275", "adds (1 − u)/2 to integers"),),
        ("tests/test_properties.py::test_no_model_beats_the_entropy", "tests/test_audit.py::test_noise_in_half_of_a_bin_beats_the_entropy"),
        "half of the bin",
    ),
    "decoder-variance": Fault(
        "A decoder of variance 1e-20",
        (
            Source(_MONAI, "monai/networks/schedulers/ddpm.py:176", "the variance 0 of the last step is raised to 1e-20"),
            Source(_MONAI, _INFERER + ":1023", "and used as the decoder's"),
            Source("lucidrains/denoising-diffusion-pytorch", "denoising_diffusion_pytorch/learned_gaussian_diffusion.py:145",
                   "the lower end of a learned variance at the first level is 1e-20"),
            Source("openai/improved-diffusion", "improved_diffusion/gaussian_diffusion.py:160", "right: takes the second step's variance instead", faulty=False),
        ),
        ("tests/models/test_likelihood.py::test_discretized_gaussian_takes_sigma_1",),
    ),
    "open-bins": Fault(
        "Open bins at ±0.999 for data in [0, 1]",
        (Source(_MONAI, _INFERER + ":1095", "the lowest bin is open below −0.999; the default range of the data is [0, 1]"),),
        ("tests/models/test_likelihood.py::test_normalised_and_as_written_out", "tests/test_audit.py::test_a_closed_edge_loses_mass"),
    ),
    "latents": Fault(
        "Bins of grey levels for latents",
        (
            Source(_MONAI, _INFERER + ":1305", "passes scaled latents to the likelihood of images, with its default range of 256 levels in [0, 1]"),
            Source("facebookresearch/DiT", "diffusion/gaussian_diffusion.py:704",
                   "bins of 2/255 in `_vb_terms_bpd`, for latents: in training, and in `calc_bpd_loop`, which no script there calls"),
            Source("facebookresearch/DiT", "train.py:203", "the latents, times 0.18215"),
            Source("facebookresearch/DiT", "#52", "reports it"),
        ),
        (
            "tests/models/test_likelihood.py::test_a_mass_function_over_the_reals_is_refused",
            "tests/test_audit.py::test_open_bins_for_latents_are_no_distribution",
        ),
        "latents of standard deviation 1",
    ),
    "no-prior": Fault(
        "No prior term",
        (Source(_MONAI, _INFERER + ":1041", "adds the terms of the levels and returns their sum"),),
        ("tests/models/test_reverse.py::test_prior_kl", "tests/test_claims.py::test_control_fails"),
        "linear β, T = 100",
    ),
    "subset-of-levels": Fault(
        "A subset of the levels",
        (Source(_MONAI, _INFERER + ":969", "visits `scheduler.timesteps`, with the KL divergence of single steps"),),
        ("tests/evaluation/test_sweep.py::test_every_level_is_that_of_the_gaussian_world",),
        "50 of 1,000",
    ),
    "one-noise": Fault(
        "One noise for all levels",
        (Source(_MONAI, _INFERER + ":967", "draws the noise once, before the loop over levels"),),
        ("tests/evaluation/test_sweep.py::test_every_level_s_error_in_closed_form",),
        "the network",
    ),
    "own-level": Fault(
        "Transitions scored at z_t itself",
        (Source("jmtomczak/intro_dgm", "ddgms/ddgm_example.ipynb:266", "ln q(z_i | z_i) instead of ln q(z_i | z_{i−1})"),),
        ("tests/battery/test_models.py::test_the_path_form_is_the_other_form_of_the_bound",),
    ),
    "wrong-networks": Fault(
        "Networks paired with the wrong level",
        (Source("jmtomczak/intro_dgm", "ddgms/ddgm_example.ipynb:250", "lists outputs from the last level, compares from the first"),),
        ("tests/battery/test_models.py::test_weights_have_the_mean_p_of_x",),
    ),
    "missing-entropy": Fault(
        "A missing entropy",
        (
            Source("Kim-Dongjun/Soft-Truncation", "#2", "reports it; the author withdrew the number"),
            Source("Kim-Dongjun/Soft-Truncation", "likelihood.py:271", "corrected: the entropy is subtracted"),
        ),
        ("tests/test_properties.py::test_no_model_beats_the_entropy", "tests/battery/test_models.py::test_weights_have_the_mean_p_of_x",
         "tests/evaluation/test_ode.py::test_discrete_data_have_a_bound_that_draws_tighten"),
        "VP-SDE at t = 1e-5",
    ),
    "simple-loss": Fault(
        "L_simple as a likelihood",
        (Source("diffusion-classifier/diffusion-classifier", "eval_prob_adaptive.py:113",
                "squared errors without the weights of the bound; described there as an approximation"),),
        ("tests/models/test_diffusion.py::test_simple_loss_is_the_mean_squared_noise_error",),
    ),
    "clipping": Fault(
        "Clipping in the evaluation only",
        (
            Source("openai/improved-diffusion", "improved_diffusion/gaussian_diffusion.py:770", "clips by default in `calc_bpd_loop`"),
            Source("openai/improved-diffusion", "improved_diffusion/gaussian_diffusion.py:704", "does not clip in training"),
            Source("lucidrains/denoising-diffusion-pytorch", "denoising_diffusion_pytorch/denoising_diffusion_pytorch.py:677", "always clips in sampling; has no likelihood", faulty=False),
        ),
        ("tests/interop/test_checkpoint.py::test_clipping_decides_the_number_and_is_one_flag_away",),
    ),
    "shared-steps": Fault(
        "Steps shared by a batch",
        (
            Source("yang-song/score_sde_pytorch", "likelihood.py:99", "one `solve_ivp` for the flattened batch"),
            Source("crowsonkb/k-diffusion", "k_diffusion/sampling.py:298", "one `odeint` for the batch"),
            Source("rtqichen/torchdiffeq", "torchdiffeq/_impl/misc.py:22", "the error norm is a mean over the batch"),
        ),
        (
            "tests/evaluation/test_ode.py::test_a_score_is_the_same_alone_and_in_any_batch",
            "tests/evaluation/test_ode.py::test_every_item_has_steps_of_its_own",
        ),
        "tolerance 0.001",
    ),
    "one-probe": Fault(
        "One trace probe, without its error",
        (
            Source("yang-song/score_sde_pytorch", "likelihood.py:87", "one probe of an item, no error"),
            Source("crowsonkb/k-diffusion", "k_diffusion/sampling.py:284", "one probe of an item, no error"),
            Source("facebookresearch/flow_matching", "flow_matching/solver/ode_solver.py:145",
                   "one probe, no error; the exact divergence runs over the second axis only, which is right for (B, D)"),
        ),
        (
            "tests/evaluation/test_ode.py::test_probes_are_within_their_own_error",
            "tests/test_audit.py::test_the_variance_of_one_probe",
        ),
    ),
    "units": Fault(
        "Per pixel, per dimension, nats, bits",
        (
            Source(_MONAI, _INFERER + ":1041", "a mean of nats over voxels, called a log-likelihood"),
            Source("lihenryhfl/pcdm", "README.md", "“eval_bpd=2.637, which matches the result in the paper (2.35)”"),
            Source("openai/parameter-golf", "#1106", "one masked model: 2.41 by draws, 1.15 by a discrete bound"),
        ),
        ("tests/test_ledger.py::test_units",),
        "mean nats per voxel, read as bits/dim",
    ),
    "t-range": Fault(
        "t on [ε, 1] averaged as [0, 1]",
        (
            Source("kuleshov-group/mdlm", "diffusion.py:805", "t = (1 − ε) u + ε, ε = 1e-3, averaged without a correction"),
            Source("ML-GSAI/LLaDA", "GUIDELINES.md:28", "the same for the share of masked tokens"),
        ),
        ("tests/outside/test_outside.py::test_the_bound_of_masked_bits_against_enumeration", "tests/test_audit.py::test_the_integral_over_all_t_is_the_likelihood"),
        "ε = 0.1",
    ),
    "imagenet-32": Fault(
        "ImageNet-32, old and new",
        (
            Source("tensorflow/datasets", "#4662", "the two versions, and that the old one has 49,999 validation images", faulty=False),
            Source("Rayhane-mamah/Efficient-VDVAE", "#6", "numbers of the new version beside numbers of the old one"),
            Source("thu-ml/i-DODE", "README.md", "right: evaluates one method on both, 3.43 and 3.69", faulty=False),
        ),
        ("tests/test_known_data.py::test_records_name_the_version_and_tables_refuse_two",),
        None,
    ),
}  # fmt: skip


def _cases(slug: str) -> list[dict[str, Any]]:
    return [one for one in record("audit.json")["cases"] if one["fault"] == slug]


def _number(value: dict[str, float], signed: bool = True) -> str:
    """Return a size with its error, with four digits after the point where it is exact."""
    amount, error = value["value"], value["error"]
    if abs(amount) < 5e-5 and error < 5e-5:
        return "0.0000"
    text = with_error(amount, error) if error > 5e-5 else f"{amount:.4f}"
    return (f"+{text}" if signed and amount > 0 else text).replace("-", "−")


def _sizes(slug: str) -> str:
    rows = [
        [one["data"], one["case"] or "", _number(one["size"]), _number(one["second"]), one["route"], "yes" if one["agree"] else "no"]
        for one in _cases(slug)
    ]  # fmt: skip
    return markdown(["data", "case", "size, bits/dim", "second derivation", "how", "agree"], rows)


def _sources(slug: str) -> str:
    rows = [[one.repository, one.link(), one.version(), one.what] for one in FAULTS[slug].sources]
    return markdown(["repository", "where", "version", "what it does"], rows)


def _tests(slug: str) -> str:
    return markdown(["test that fails if the fault is made here"], [[f"`{test}`"] for test in FAULTS[slug].tests])


def audit_index() -> str:
    """All faults, with the size of the case that the index shows."""
    rows = []
    for slug, fault in FAULTS.items():
        shown = {}
        for one in _cases(slug):
            if fault.case is not None and (
                one["case"] == fault.case or (fault.case and one["case"].startswith(fault.case))
            ):
                shown.setdefault(one["data"], _number(one["size"]))
        found = sorted({source.repository for source in fault.sources if source.faulty})
        case = fault.case or ""
        case = "published: 3.43 and 3.69" if fault.case is None else case
        rows.append(
            [f"[{fault.name}]({slug}.md)", case, shown.get("digits", ""), shown.get("MNIST", ""), ", ".join(found)]
        )
    return markdown(["fault", "case", "digits, bits/dim", "MNIST, bits/dim", "seen in, or reported for"], rows)


PAGES: dict[str, Callable[[], str]] = {"audit_index": audit_index}
for _slug in FAULTS:
    _name = _slug.replace("-", "_")
    PAGES |= {f"sources_{_name}": partial(_sources, _slug), f"tests_{_name}": partial(_tests, _slug)}
    if FAULTS[_slug].case is not None:
        PAGES[f"sizes_{_name}"] = partial(_sizes, _slug)
