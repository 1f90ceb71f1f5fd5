"""Faults of data/."""

from faults.row import fault

FAULTS = [
    fault(
        "data/captions.py",
        "a slant of the other sign",
        "_ratio(sx * sy - m * sxy,",
        "_ratio(m * sxy - sx * sy,",
        "data/test_captions.py::test_the_slant_is_that_of_a_line",
    ),
    fault(
        "data/captions.py",
        "moments in 64 bits",
        "moment.astype(object)",
        "moment",
        "data/test_captions.py::test_large_images_do_not_overflow",
    ),
    fault(
        "data/captions.py",
        "a stroke with one of its two edges",
        "_ratio(2 * _PARTS * m,",
        "_ratio(_PARTS * m,",
        "data/test_captions.py::test_the_stroke_is_the_width_of_a_line_and_the_position_its_middle",
    ),
    fault(
        "data/dataset.py",
        "the captions of other items",
        "torch.arange(len(own))[rows].tolist()",
        "range(len(chosen))",
        "data/test_captions.py::test_captions_go_with_their_items",
    ),
    fault(
        "data/texts.py",
        "embeddings of another encoder from the cache",
        "json.dumps([1, encoder.sha256, list(texts)])",
        "json.dumps([1, encoder.name, list(texts)])",
        "text/test_pretrained.py::test_embeddings_are_computed_once",
    ),
    fault(
        "data/given.py",
        "padding of tokens that counts as present",
        "out[row, : len(array)], mask[row, : len(array)] = array, True",
        "out[row, : len(array)], mask[row] = array, True",
        "data/test_given.py::test_conditions_are_those_of_their_items",
    ),
    fault(
        "data/given.py",
        "the texts of other rows",
        "return tuple(self.values[rows].tolist())",
        "return tuple(self.values.tolist())[: len(self.values[rows])]",
        "data/test_given.py::test_conditions_are_those_of_their_items",
    ),
    fault(
        "data/sidecar.py",
        "the line of the first image for all of them",
        "[[rows[name].get(key) for key in names] for name in images]",
        "[[rows[images[0]].get(key) for key in names] for name in images]",
        "data/test_given.py::test_conditions_are_those_of_their_items",
    ),
    fault(
        "data/alphabets.py",
        "characters between two tokens are dropped",
        "edges[:1] = 0",
        "edges[:1] = starts[:1]",
        "data/test_tokenizers.py::test_every_character_and_byte_is_counted_once",
    ),
    fault(
        "data/alphabets.py",
        "a character of several bytes counts several times",
        "(tokens & 0xC0 != 0x80)",
        "(tokens & 0xFF != 0x80)",
        "data/test_tokenizers.py::test_every_character_and_byte_is_counted_once",
    ),
    fault(
        "data/prompts.py",
        "spaces at the end of a prompt are lost",
        "prompt[len(kept) :] + continuation",
        "continuation",
        "data/test_prompts.py::test_spaces_move",
    ),
    fault(
        "data/prompts.py",
        "characters are lost where a tokenizer merges a prompt and its continuation",
        "if both[: len(own)] != own:",
        "if not both:",
        "data/test_prompts.py::test_a_continuation_that_merges_with_its_prompt_is_tokenized_by_itself",
    ),
]
