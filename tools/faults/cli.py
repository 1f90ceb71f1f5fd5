"""Faults of cli/."""

from faults.row import fault

FAULTS = [
    fault(
        "cli/drawing.py",
        "stages of a cascade are not brought to the size of x",
        "pictures.append(enlarged(shown, block).numpy())",
        "pictures.append(shown.repeat(1, 1, block, block).numpy())",
        "cli/test_report_of_systems.py::test_a_cascade_shows_its_samples_by_stage",
    ),
    fault(
        "cli/evaluate.py",
        "real values that are levels are a warning of the training only",
        "space.scaled_levels(some_of(chosen.data))) is not None",
        "space.scaled_levels(some_of(chosen.data))) is None",
        "cli/test_report.py::test_real_values_that_are_levels_are_a_caveat",
    ),
    fault(
        "cli/__init__.py",
        "a control that passes goes unpunished",
        'claim["holds"] and claim["control_fails"]',
        'claim["holds"]',
        "test_claims.py::test_a_control_that_passes_is_a_failure",
    ),
    fault(
        "cli/evaluate.py",
        "0.01 nats for 0.01 bits/dim",
        '_ERROR * per_unit("bits/dim", dimensions) / per_unit(command.unit, dimensions)',
        "_ERROR",
        "cli/test_default_error.py",
    ),
    fault(
        "cli/prompted.py",
        "tokens of the prompts count as tokens of the continuations",
        "for one in (rows.free, rows.characters, rows.bytes)",
        "for one in (rows.lengths, rows.characters, rows.bytes)",
        "cli/test_language_models.py::test_prompts_are_never_masked_and_only_continuations_count",
    ),
    fault(
        "cli/prompted.py",
        "a bound from all masks is called ln p",
        'sign = "=" if free == 1 else "≥"',
        'sign = "≥" if error else "="',
        "cli/test_language_models.py::test_prompts_are_never_masked_and_only_continuations_count",
    ),
    fault(
        "cli/evaluate.py",
        "a condition that all items have anyway has a plan of its own",
        "if equal_conditions(other_condition, chosen.condition):",
        "if other_condition is chosen.condition:",
        "cli/test_guidance.py::test_two_conditions_of_one_run_are_compared",
    ),
    fault(
        "cli/report.py",
        "reports of language models forget the length of blocks",
        "checkpoint_options=its, text_options=text)",
        "checkpoint_options=its)",
        "cli/test_language_models.py::test_report_has_units_of_the_text_masked_positions_and_blocks",
    ),
    fault(
        "cli/drawing.py",
        "the paths of another stage",
        "model.sampled_by(last, drawn[firsts[-1]], generator, condition)",
        "model.sampled_by(last, 0 * drawn[firsts[-1]], generator, condition)",
        "cli/test_report_of_systems.py::test_paths_are_those_of_the_last_stage",
    ),
    fault(
        "cli/score.py",
        "maps of the first items instead of the listed ones",
        "stage_maps(model, chosen.x[ends.item]",
        "stage_maps(model, chosen.x[: len(ends.item)]",
        "cli/test_report_of_systems.py::test_score_writes_the_maps_of_a_system",
    ),
    fault(
        "cli/prompted.py",
        "the error over rows takes their numbers of tokens as fixed",
        "order - order.sum() / free.sum() * free",
        "order - order.mean()",
        "cli/test_language_models.py::test_a_report_of_prompts_counts_scored_tokens",
    ),
    fault(
        "cli/sample.py",
        "a run of sequences is sampled in its own steps, whatever --steps",
        "model, steps = model.regrid(steps), None",
        "steps = None",
        "training/test_sequences.py::test_the_command_line_evaluates_it",
    ),
    fault(
        "cli/items.py",
        "another column of conditions ignored for the data of the run",
        "if condition is not None:\n            own = record.config.data",
        "if condition is not None and not data:\n            own = record.config.data",
        "cli/test_two_conditions.py::test_another_column_is_not_ignored_for_the_data_of_the_run",
    ),
]
