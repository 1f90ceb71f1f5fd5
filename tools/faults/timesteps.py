"""Faults of timesteps.py."""

from faults.row import fault

FAULTS = [
    fault(
        "timesteps.py",
        "t from 0 for t from 1",
        "SampledTimesteps((v * timesteps).long() + 1",
        "SampledTimesteps((v * timesteps).long()",
        "test_timesteps.py::test_each_level_comes_as_often_as_its_weight_says[1-uniform]",
    ),
    fault(
        "timesteps.py",
        "the end of a level's cell for its middle",
        "(level.double() - 0.5) / timesteps",
        "level.double() / timesteps",
        "test_timesteps.py::test_position_is_the_middle_of_the_cell",
    ),
    fault(
        "timesteps.py",
        "second moment for its root",
        "(self.second_moment / self.norm).sqrt()",
        "(self.second_moment / self.norm)",
        "test_timesteps.py::test_adaptive_learns_the_root_of_the_second_moment",
    ),
    fault(
        "timesteps.py",
        "importance sampling without its weights",
        "1 / (_cumulative(edges, end) - _cumulative(edges, start))",
        "torch.full_like(u, timesteps)",
        "test_timesteps.py::test_many_levels_have_exact_weights",
    ),
    fault(
        "timesteps.py",
        "1/π of a cell for 1/F'",
        "1 / (mass[cell] * cells)",
        "1 / mass[cell]",
        "test_timesteps.py::test_continuous_time",
    ),
    fault(
        "timesteps.py",
        "strata dealt in order, not at random",
        "torch.randperm(n, generator=generator, device=device)",
        "torch.arange(n, device=device)",
        "test_timesteps.py::test_an_item_sees_all_levels_under_stratification",
    ),
    fault(
        "timesteps.py",
        "uniform numbers of float32",
        "v = torch.rand(n, dtype=torch.float64",
        "v = torch.rand(n, dtype=torch.float32",
        "test_timesteps.py::test_continuous_levels_have_all_digits_of_float64",
    ),
    fault(
        "timesteps.py",
        "the first costs kept, not the last",
        "self.seen[t] % self.history",
        "self.seen[t].clamp(max=self.history - 1)",
        "test_timesteps.py::test_second_moment_is_of_the_last_costs",
    ),
    fault(
        "timesteps.py",
        "the mean cost for the root of its second moment",
        "self.costs.square().mean(1).sqrt()",
        "self.costs.mean(1)",
        "test_timesteps.py::test_second_moment_is_of_the_last_costs",
    ),
    fault(
        "timesteps.py",
        "warm with the first level",
        "(self.seen < self.history).any()",
        "(self.seen < self.history).all()",
        "test_timesteps.py::test_second_moment_is_uniform_until_every_level_is_warm",
    ),
    fault(
        "timesteps.py",
        "the second moment's weights left at uniform",
        "SampledTimesteps(level + 1, 1 / mass[level])",
        "SampledTimesteps(level + 1, torch.full_like(mass[level], timesteps))",
        "test_timesteps.py::test_second_moment_draws_as_its_weights_say",
    ),
    fault(
        "timesteps.py",
        "a state that learns on",
        '"costs": self.costs.clone()',
        '"costs": self.costs',
        "test_timesteps.py::test_second_moment_state_round_trip",
    ),
    fault(
        "timesteps.py",
        "cells between levels, which none visits",
        "self.cells if timesteps is None else min(self.cells, timesteps)",
        "self.cells",
        "test_timesteps.py::test_fewer_levels_than_cells_are_a_cell_each",
    ),
]
