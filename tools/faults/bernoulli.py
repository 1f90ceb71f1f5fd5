"""Faults of bernoulli.py."""

from faults.row import fault

FAULTS = [
    fault(
        "bernoulli.py",
        "a KL of near bits that cancels",
        "torch.where(delta.abs() < 1, near, far)",
        "torch.where(delta.abs() < 0, near, far)",
        "test_bernoulli.py::test_kl_and_entropy_to_the_last_digits",
    ),
    fault(
        "bernoulli.py",
        "the signs of a KL's logits not turned",
        "torch.where(self.logit > 0, -1.0, 1.0)",
        "torch.where(self.logit > 0, 1.0, 1.0)",
        "test_bernoulli.py::test_kl_and_entropy_to_the_last_digits",
    ),
    fault(
        "bernoulli.py",
        "bits that fall as the noise rises",
        "log_ndtr(-noise.double())",
        "log_ndtr(noise.double())",
        "test_bernoulli.py::test_the_law_of_a_sample",
    ),
]
