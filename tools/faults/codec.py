"""Faults of the codec."""

from faults.row import fault

FAULTS = [
    fault(
        "codec/stack.py",
        "bits that are popped as they were pushed",
        "words[start:] ^= stream",
        "words[start:] ^= 0 * stream",
        "codec/test_codec.py::test_a_file_is_as_long_as_the_path_form_of_the_bound",
    ),
    fault(
        "codec/stack.py",
        "distances of another number of bits",
        "for _ in range(n - 1):",
        "for _ in range(n):",
        "codec/test_codec.py::test_values_beyond_the_window_are_coded",
    ),
    fault(
        "codec/stack.py",
        "leading bits of the state that are made uniform",
        "_LEADING = 10",
        "_LEADING = 1",
        "codec/test_codec.py::test_hiding_does_not_make_the_stack_longer",
    ),
    fault(
        "codec/laws.py",
        "the values of probability zero for the others",
        "descending=True, stable=True",
        "descending=False, stable=True",
        "codec/test_families.py::test_values_of_probability_zero_are_never_popped",
    ),
    fault(
        "codec/laws.py",
        "ln σ² for ln σ in the length of a grid point",
        "+ np.log(self._std)",
        "+ 2 * np.log(self._std)",
        "codec/test_families.py::test_items_come_back_and_take_what_their_path_costs",
    ),
    fault(
        "codec/stack.py",
        "probabilities in the order of the array",
        "np.ascontiguousarray(np.maximum(probabilities, _LEAST))",
        "np.maximum(probabilities, _LEAST)",
        "codec/test_codec.py::test_levels_have_the_length_of_their_probability_whatever_the_order_of_the_array",
    ),
    fault(
        "codec/coder.py",
        "a spacing of four standard deviations",
        "move.finest / FINENESS",
        "move.finest * 4",
        "codec/test_codec.py::test_a_file_is_as_long_as_the_path_form_of_the_bound",
    ),
    fault(
        "codec/coder.py",
        "as many items in the first group as in the others",
        "min(self.rows, start // self.paid)",
        "self.rows",
        "codec/test_codec.py::test_few_bits_are_borrowed",
    ),
    fault(
        "codec/container.py",
        "a checksum that is not compared",
        "hashlib.sha256(body).digest() != checksum",
        "len(checksum) != _CHECKSUM",
        "codec/test_codec.py::test_damaged_files_are_refused",
    ),
    fault(
        "codec/coder.py",
        "a VAE's spacing of sixteen standard deviations",
        "torch.log2(std / FINENESS)",
        "torch.log2(std * FINENESS)",
        "codec/test_families.py::test_the_path_is_a_draw_of_the_bound",
    ),
    fault(
        "codec/__init__.py",
        "a condition that is not compared",
        'if condition_record(condition) != header["condition"]:',
        "if False:",
        "codec/test_families.py::test_a_missing_or_wrong_condition_is_refused",
    ),
    fault(
        "codec/steps.py",
        "the longest file",
        "Choice(min(bits",
        "Choice(max(bits",
        "codec/test_codec.py::test_the_chosen_steps_have_the_shortest_file",
    ),
    fault(
        "codec/rate.py",
        "the bits of a level from the wrong end",
        "ledger.kl.flip(1)",
        "ledger.kl",
        "codec/test_codec.py::test_rate_and_distortion",
    ),
]
