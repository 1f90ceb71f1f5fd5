"""Faults of gaussian.py."""

from faults.row import fault

FAULTS = [
    fault(
        "gaussian.py",
        "φ's sign of δ",
        "torch.expm1(delta) - delta",
        "torch.expm1(delta) + delta",
        "test_gaussian.py::test_phi_against_mpmath",
    ),
    fault(
        "gaussian.py",
        "φ's series without δ²/2",
        "range(9, 1, -1)",
        "range(9, 2, -1)",
        "test_gaussian.py::test_phi_against_mpmath",
    ),
    fault(
        "gaussian.py",
        "variance for standard deviation",
        "(0.5 * self.log_variance).exp()",
        "self.log_variance.exp()",
        "test_gaussian.py::test_a_sample_is_mean_plus_std_times_noise",
    ),
    fault(
        "gaussian.py",
        "ln variance dropped from the density",
        "squared + self.log_variance + math.log",
        "squared + math.log",
        "test_gaussian.py::test_against_torch_distributions",
    ),
    fault(
        "gaussian.py",
        "KL's squared part over v_q for v_p",
        "(-other.log_variance).exp()",
        "(-self.log_variance).exp()",
        "test_gaussian.py::test_against_torch_distributions",
    ),
    fault(
        "gaussian.py",
        "KL without ½ of its squared part",
        "0.5 * (phi(delta) + squared)",
        "0.5 * phi(delta) + squared",
        "test_gaussian.py::test_against_torch_distributions",
    ),
]
