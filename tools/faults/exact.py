"""Faults of exact.py."""

from faults.row import fault

FAULTS = [
    fault(
        "exact.py",
        "mmse(γ_t) for mmse(γ_{t+1}) in KL_t",
        "(snr[:-1] - snr[1:]) * error[1:]",
        "(snr[:-1] - snr[1:]) * error[:-1]",
        "models/test_diffusion.py::test_every_cost_in_a_gaussian_world[betas-noise-float64]",
    ),
    fault(
        "exact.py",
        "−1 dropped from r − 1 − ln r",
        "(r - 1 - torch.log(r))",
        "(r - torch.log(r))",
        "models/test_diffusion.py::test_every_cost_in_a_gaussian_world[betas-noise-float64]",
    ),
    fault(
        "exact.py",
        "KL_T without its ½",
        "prior = 0.5 * (prior",
        "prior = (prior",
        "models/test_diffusion.py::test_every_cost_in_a_gaussian_world[betas-noise-float64]",
    ),
    fault(
        "exact.py",
        "I(x; z) of a Gaussian without its ½",
        "0.5 * float(torch.log1p(snr",
        "float(torch.log1p(snr",
        "test_exact.py::test_closed_forms_agree_with_quadrature",
    ),
    fault(
        "exact.py",
        "variance between components dropped from the mmse",
        "(within + (x - mean.unsqueeze(1)).square().sum(2))",
        "within",
        "test_exact.py::test_one_dimensional_mixture_against_its_definitions",
    ),
    fault(
        "exact.py",
        "h(z|x) without its 1",
        "float(_LOG_2PI + 1 + torch.log(torch.sigmoid(g)))",
        "float(_LOG_2PI + torch.log(torch.sigmoid(g)))",
        "test_exact.py::test_one_dimensional_mixture_against_its_definitions",
    ),
    fault(
        "exact.py",
        "α² for α in the points' evidence",
        "torch.sigmoid(-gamma).sqrt() / torch.sigmoid(gamma)",
        "torch.sigmoid(-gamma) / torch.sigmoid(gamma)",
        "test_exact.py::test_finite_chunks_change_nothing",
    ),
    fault(
        "exact.py",
        "weights of repeated points dropped",
        "self.weights.log() + alpha_over_sigma2",
        "alpha_over_sigma2",
        "test_exact.py::test_finite_information_reaches_ln_n_and_vanishes",
    ),
]
