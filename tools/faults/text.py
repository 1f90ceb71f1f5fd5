"""Faults of text/."""

from faults.row import fault

FAULTS = [
    fault(
        "text/base.py",
        "padding that counts as tokens",
        "mask[row, : len(own)] = True",
        "mask[row] = True",
        "text/test_hashed.py::test_the_embeddings_of_a_text_do_not_depend_on_the_others",
    ),
    fault(
        "text/hashed.py",
        "a word without the one before it",
        'features.append(f"pair {before} {word}")',
        'features.append(f"pair {word} {word}")',
        "text/test_hashed.py::test_a_token_is_the_sum_of_its_features_over_the_root_of_their_number",
    ),
    fault(
        "text/pretrained.py",
        "the hash without the weights",
        "files += weights_of(self.folder) + ([]",
        "files += ([]",
        "text/test_pretrained.py::test_the_hash_is_that_of_the_weights_and_the_tokenizer",
    ),
    fault(
        "text/pretrained.py",
        "weights that are missing left random",
        "        if missing:\n",
        "        if False:\n",
        "text/test_pretrained.py::test_models_that_cannot_be_loaded",
    ),
    fault(
        "text/pretrained.py",
        "sentences that are not normalised",
        "functional.normalize(vector, dim=1) if normalise",
        "functional.normalize(vector, dim=1) if not normalise",
        "text/test_pretrained.py::test_the_pooling_of_sentence_transformers",
    ),
    fault(
        "text/record.py",
        "an encoder that changed taken for the same",
        "if sha256 != self.sha256:",
        "if not sha256:",
        "text/test_hashed.py::test_a_record_pads_tokens_to_the_length_of_the_training_data",
    ),
]
