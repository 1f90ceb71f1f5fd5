"""Faults of baselines.py."""

from faults.row import fault

FAULTS = [
    fault(
        "baselines.py",
        "histogram's masses over N + a for N + a K",
        "(len(raw) + a * space.levels)",
        "(len(raw) + a)",
        "test_baselines.py::test_factorised_is_the_smoothed_histogram",
    ),
    fault(
        "baselines.py",
        "smoothing of a mixture's weights dropped",
        "(n_c + a) / (n + a * c)",
        "n_c / n",
        "test_baselines.py::test_an_em_step_is_its_formula",
    ),
    fault(
        "baselines.py",
        "½ ln det for ln det of the factor",
        "self.factor.diagonal().log().sum()",
        "0.5 * self.factor.diagonal().log().sum()",
        "test_baselines.py::test_gaussian_is_scipy_s_in_the_original_units",
    ),
    fault(
        "baselines.py",
        "sign of the log-Jacobian",
        "half_log_det - self.space.log_jacobian()",
        "half_log_det + self.space.log_jacobian()",
        "test_baselines.py::test_gaussian_is_scipy_s_in_the_original_units",
    ),
    fault(
        "baselines.py",
        "S added whole to the shrunk covariance",
        "(1 - rho) * s + rho",
        "s + rho",
        "test_baselines.py::test_gaussian_is_scipy_s_in_the_original_units",
    ),
]
