"""Faults of redrawn.py."""

from faults.row import fault

FAULTS = [
    fault(
        "redrawn.py",
        "a redrawn position never gets its own category again",
        "(keep + fresh).expand(*z.shape, 1)",
        "keep.expand(*z.shape, 1)",
        "test_masked_worlds.py::test_every_cost_of_a_uniform_chain_by_the_sum_over_its_latents",
    ),
    fault(
        "redrawn.py",
        "a jump of continuous time to any category, where the rate is that to one",
        "return slope / (self.categories * self._at(u)[0])",
        "return slope / self._at(u)[0]",
        "test_uniform_continuous.py::test_one_position_costs_what_its_logits_say",
    ),
    fault(
        "redrawn.py",
        "tilted draws without their weight where z is x",
        "torch.where(some < 0.5, 2 * (1 - some), 1.0)",
        "torch.where(some < 0.5, 1.0, 1.0)",
        "test_uniform_continuous.py::test_tilted_draws_have_every_expectation_of_the_marginal",
    ),
    fault(
        "redrawn.py",
        "draws near a = 1 that rarely differ from x",
        "often = some.clamp(min=0.5)",
        "often = some.clamp(min=1e-300)",
        "test_uniform_continuous.py::test_visits_have_bounded_variance_at_every_level",
    ),
]
