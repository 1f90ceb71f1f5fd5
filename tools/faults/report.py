"""Faults of report/."""

from faults.row import fault

FAULTS = [
    fault(
        "report/page.py",
        "the first of two undecided runs is tagged as the lowest",
        'return best if all(abs(one.value) > verdicts.SURE * one.error for one in own) else ""',
        "return best",
        "report/test_page.py::test_a_run_is_tagged_as_the_lowest_only_if_the_difference_is_sure",
    ),
    fault(
        "report/verdicts.py",
        "the higher of two bounds is called the lower",
        "names[0] if difference.value <= 0 else names[1]",
        "names[0] if difference.value >= 0 else names[1]",
        "report/test_page.py::test_which_model_is_better",
    ),
    fault(
        "report/tabular.py",
        "PIT values count ties as below",
        "return (below + upto) / (2 * len(ordered))",
        "return upto / len(ordered)",
        "report/test_charts.py::test_pit_values_of_integers_are_uniform_too",
    ),
    fault(
        "report/bands.py",
        "bands of levels leave out the noisiest level",
        "value, off = kl @ share,",
        "value, off = kl[:-1] @ share[:-1],",
        "report/test_page.py::test_the_waterfall_adds_up_with_the_levels_in_bands",
    ),
    fault(
        "report/bands.py",
        "differences by cost have the errors of separate draws",
        "errors.get(x.name, math.hypot(x.error, y.error))",
        "math.hypot(x.error, y.error)",
        "report/test_page.py::test_differences_by_cost_add_up_and_have_paired_errors",
    ),
    fault(
        "report/bands.py",
        "bands divide levels that are wider than they are",
        "edges[at] - edges[at - 1] > _COARSE * width",
        "edges[at] - edges[at - 1] > 1e9 * width",
        "report/test_page.py::test_bands_of_few_levels_divide_none",
    ),
    fault(
        "report/ledgers.py",
        "every waterfall has a scale of its own",
        'unit, notes.get(name, ""), limits)',
        'unit, notes.get(name, ""))',
        "report/test_page.py::test_compared_runs_have_the_same_scale_and_rows",
    ),
    fault(
        "report/plots.py",
        "a band of one error of the bits",
        "np.where(np.isfinite(error), 2 * error, 0.0)",
        "np.where(np.isfinite(error), error, 0.0)",
        "test_plots.py::test_rate_and_distortion_have_a_band_of_two_errors_and_end_where_x_is_known",
    ),
    fault(
        "report/figures.py",
        "the last x̂ for x",
        "place, shown[k, item], 0.0, float(levels - 1)",
        "place, shown[min(k, 0), item], 0.0, float(levels - 1)",
        "test_plots.py::test_a_progressive_decoding_is_drawn_from_left_to_right",
    ),
    fault(
        "report/plots.py",
        "bands of several models have half their width",
        "spread = 2 * np.nan_to_num(groups.density_error)",
        "spread = np.nan_to_num(groups.density_error)",
        "cli/test_plot.py::test_levels_are_drawn_for_all_evaluations_with_their_bands",
    ),
    fault(
        "report/texts.py",
        "bands of masked positions leave out the single mask",
        "return np.append(first.value, kl), np.append(first.error, error)",
        "return np.append(0.0, kl), np.append(first.error, error)",
        "report/test_page.py::test_bands_of_masked_positions_add_up",
    ),
    fault(
        "report/texts.py",
        "padding counts as tokens",
        'padding = result.nelbo.n * result.dimensions - text["tokens"]',
        "padding = 0",
        "report/test_page.py::test_a_text_has_its_units_and_its_costs_by_masked_positions",
    ),
    fault(
        "report/verdicts.py",
        "a verdict's standard errors leave out the items",
        "both = abs(difference.value) / math.hypot(difference.error, difference.item_error)",
        "both = abs(difference.value) / difference.error",
        "report/test_page.py::test_which_model_is_better",
    ),
]
