"""Faults of binomial.py."""

from faults.row import fault

FAULTS = [
    fault(
        "binomial.py",
        "λ of the signal's square, as a Gaussian's α² is",
        "torch.log1p(2 * log_signal.exp() / -torch.expm1(log_signal))",
        "torch.log1p(2 * (2 * log_signal).exp() / -torch.expm1(2 * log_signal))",
        "test_binomial.py::test_marginals_and_transitions",
    ),
    fault(
        "binomial.py",
        "the posterior sees z_t through ᾱ_t for ᾱ_{t|s}",
        "seen_through(z_t, self.log_odds(t, s))",
        "seen_through(z_t, self.log_odds(t))",
        "test_binomial.py::test_the_posterior_is_bayes_rule",
    ),
    fault(
        "binomial.py",
        "the paper's schedule one step ahead",
        "torch.arange(steps, 0, -1, dtype=torch.float64)",
        "torch.arange(steps + 1, 1, -1, dtype=torch.float64)",
        "test_binomial.py::test_the_paper_s_schedule_erases_one_part_in_t_of_the_signal_per_step",
    ),
    fault(
        "binomial.py",
        "log-SNR of ᾱ for ᾱ²",
        "twice = 2 * self._log_signal(t)",
        "twice = self._log_signal(t)",
        "test_binomial.py::test_log_odds_and_gamma_to_the_last_digits",
    ),
]
