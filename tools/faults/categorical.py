"""Faults of categorical.py."""

from faults.row import fault

FAULTS = [
    fault(
        "categorical.py",
        "a KL of near distributions that cancels",
        "torch.where(delta.abs() < 1, near, far)",
        "torch.where(delta.abs() < 0, near, far)",
        "test_categorical.py::test_a_divergence_of_neighbours_keeps_its_digits",
    ),
    fault(
        "categorical.py",
        "a KL without what the other has where this one has nothing",
        "torch.where(none, r.exp(), torch",
        "torch.where(none, 0.0, torch",
        "test_categorical.py::test_values_without_probability",
    ),
    fault(
        "categorical.py",
        "values that fall as the noise rises",
        "ndtr(noise.double())",
        "ndtr(-noise.double())",
        "test_categorical.py::test_draws_rise_with_the_noise_and_have_its_type",
    ),
    fault(
        "categorical.py",
        "the value below the one drawn",
        "(upto <= u[..., None]).sum(-1)",
        "(upto <= u[..., None]).sum(-1).sub(1).clamp(min=0)",
        "battery/test_parts.py::test_distributions_are_what_they_draw[Categorical]",
    ),
    fault(
        "categorical.py",
        "values without probability drawn in the far tails",
        "(upto <= u[..., None])",
        "(upto < u[..., None])",
        "test_categorical.py::test_values_without_probability",
    ),
]
