"""Faults of absorbing.py."""

from faults.row import fault

FAULTS = [
    fault(
        "absorbing.py",
        "ρ_t relative to all positions, not to the masked ones",
        "return (now - after) / (1 - after)",
        "return now - after",
        "test_masked_worlds.py::test_every_cost_of_a_masked_chain_by_the_sum_over_its_latents",
    ),
    fault(
        "absorbing.py",
        "one of t masks is shown where there are t + 1",
        "torch.as_tensor(level).device) + 1).double()",
        "torch.as_tensor(level).device)).double()",
        "test_masked_worlds.py::test_a_network_s_loss_and_evaluations_agree_with_the_exact_numbers",
    ),
    fault(
        "absorbing.py",
        "the category by the noise of the chosen mask, which is not uniform",
        "u = -torch.expm1(self._masks.sum(1) * torch.special.log_ndtr(-least))",
        "u = ndtr(least)",
        "battery/test_models.py::test_weights_have_the_mean_p_of_x",
    ),
]
