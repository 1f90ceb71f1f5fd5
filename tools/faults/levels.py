"""Faults of levels.py."""

from faults.row import fault

FAULTS = [
    fault(
        "levels.py",
        "t from 0 for t from 1",
        "SampledLevels((v * levels).long() + 1",
        "SampledLevels((v * levels).long()",
        "test_levels.py::test_each_level_comes_as_often_as_its_weight_says[1-uniform]",
    ),
    fault(
        "levels.py",
        "the end of a level's cell for its middle",
        "(level.double() - 0.5) / levels",
        "level.double() / levels",
        "test_levels.py::test_position_is_the_middle_of_the_cell",
    ),
    fault(
        "levels.py",
        "second moment for its root",
        "(self.second_moment / self.norm).sqrt()",
        "(self.second_moment / self.norm)",
        "test_levels.py::test_adaptive_learns_the_root_of_the_second_moment",
    ),
    fault(
        "levels.py",
        "importance sampling without its weights",
        "1 / (_cumulative(edges, end) - _cumulative(edges, start))",
        "torch.full_like(u, levels)",
        "test_levels.py::test_many_levels_have_exact_weights",
    ),
    fault(
        "levels.py",
        "1/π of a cell for 1/F'",
        "1 / (mass[cell] * cells)",
        "1 / mass[cell]",
        "test_levels.py::test_continuous_time",
    ),
    fault(
        "levels.py",
        "strata dealt in order, not at random",
        "torch.randperm(n, generator=generator, device=device)",
        "torch.arange(n, device=device)",
        "test_levels.py::test_an_item_sees_all_levels_under_stratification",
    ),
    fault(
        "levels.py",
        "uniform numbers of float32",
        "v = torch.rand(n, dtype=torch.float64",
        "v = torch.rand(n, dtype=torch.float32",
        "test_levels.py::test_continuous_levels_have_all_digits_of_float64",
    ),
    fault(
        "levels.py",
        "the first costs kept, not the last",
        "self.seen[t] % self.history",
        "self.seen[t].clamp(max=self.history - 1)",
        "test_levels.py::test_second_moment_is_of_the_last_costs",
    ),
    fault(
        "levels.py",
        "the mean cost for the root of its second moment",
        "self.costs.square().mean(1).sqrt()",
        "self.costs.mean(1)",
        "test_levels.py::test_second_moment_is_of_the_last_costs",
    ),
    fault(
        "levels.py",
        "warm with the first level",
        "(self.seen < self.history).any()",
        "(self.seen < self.history).all()",
        "test_levels.py::test_second_moment_is_uniform_until_every_level_is_warm",
    ),
    fault(
        "levels.py",
        "the second moment's weights left at uniform",
        "SampledLevels(level + 1, 1 / mass[level])",
        "SampledLevels(level + 1, torch.full_like(mass[level], levels))",
        "test_levels.py::test_second_moment_draws_as_its_weights_say",
    ),
    fault(
        "levels.py",
        "a state that learns on",
        '"costs": self.costs.clone()',
        '"costs": self.costs',
        "test_levels.py::test_second_moment_state_round_trip",
    ),
    fault(
        "levels.py",
        "cells between levels, which none visits",
        "self.cells if levels is None else min(self.cells, levels)",
        "self.cells",
        "test_levels.py::test_fewer_levels_than_cells_are_a_cell_each",
    ),
]
