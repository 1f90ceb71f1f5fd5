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
        "distances of a multiple of 255 without their last byte",
        "[_MORE] * (distance // _MORE) + [distance % _MORE]",
        "[_MORE] * (distance // _MORE) + [distance % _MORE] * (distance % _MORE > 0)",
        "codec/test_codec.py::test_values_beyond_the_window_are_coded",
    ),
    fault(
        "codec/stack.py",
        "probabilities in the order of the array",
        "np.ascontiguousarray(np.maximum(probabilities, _LEAST))",
        "np.maximum(probabilities, _LEAST)",
        "codec/test_codec.py::test_levels_have_the_length_of_their_probability_whatever_the_order_of_the_array",
    ),
    fault(
        "codec/bitswap.py",
        "a spacing of four standard deviations",
        "for step in steps) / FINENESS",
        "for step in steps) * 4",
        "codec/test_codec.py::test_a_file_is_as_long_as_the_path_form_of_the_bound",
    ),
    fault(
        "codec/bitswap.py",
        "as many items in the first group as in the others",
        "min(self.rows, start // _PAID)",
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
]
