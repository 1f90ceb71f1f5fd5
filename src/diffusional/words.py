"""The names that other libraries use for options of this one: models accept them, and errors suggest ours.

They are from diffusers, OpenAI's improved and guided diffusion, and the released code of DDPM and VDM. Does not import torch.
"""

from collections.abc import Sequence

from diffusional.errors import DiffusionalError

# For each option, our words, and the words of others for each.
_OTHERS: dict[str, dict[str, tuple[str, ...]]] = {
    "predicts": {
        "noise": ("epsilon", "eps", "epsilon_prediction", "eps_prediction", "pred_noise", "pred_epsilon", "pred_eps"),
        "data": (
            *("sample", "x0", "x_0", "x", "xstart", "x_start", "start_x", "pred_x0", "pred_xstart", "pred_x_start"),
            *("x0_prediction", "x_prediction", "sample_prediction", "pred_original_sample", "denoised"),
        ),
        "v": ("v_prediction", "v_pred", "pred_v"),
        "score": ("score_prediction", "pred_score"),
        "levels": ("logits",),
    },
    "variance": {
        "posterior": ("fixed_small", "fixedsmall", "fixed_small_log"),
        "transition": ("fixed_large", "fixedlarge", "fixed_large_log"),
        "learned": ("learned_range",),
    },
    "schedule.kind": {"cosine": ("squaredcos_cap_v2",), "learned": ("learnable_nnet",)},
    "objective": {
        "simple": ("l_simple", "simple_loss", "mse", "l2"),
        "hybrid": ("l_hybrid", "rescaled_mse"),
        "elbo": ("vlb", "l_vlb", "vb", "kl", "rescaled_kl", "nelbo"),
    },
    "sampler": {"second-moment": ("loss_second_moment",), "stratified": ("antithetic", "antithetic_time_sampling")},
    "method": {"ancestral": ("ddpm", "p_sample")},
    "unit": {"bits/dim": ("bpd", "bits_per_dim", "bits_per_dimension"), "nats": ("nat",)},
    "precision": {"no": ("fp32", "float32", "32"), "bf16": ("bfloat16",)},
    "head": {"categorical": ("softmax", "logits"), "logistic": ("discretized_logistic", "discretised_logistic")},
}
# Words that have no counterpart here, with an explanation.
_NOTES: dict[str, dict[str, str]] = {
    "predicts": dict.fromkeys(
        ("velocity", "flow", "flow_prediction", "vector_field", "u"),
        '"v" is α ε − σ x of a variance-preserving diffusion (diffusers\' "v_prediction"); the velocity dx/dt of a flow is another '
        "quantity: use df.wrap.flow",
    ),
    "schedule.kind": {
        "scaled_linear": "betas that are linear in their square roots are given by schedule.from_betas in Python"
    },
    "precision": dict.fromkeys(
        ("fp16", "float16", "half"), 'float16 has too small a range for likelihoods: use "bf16" or "no"'
    ),
}


def hint(option: str, word: object) -> str | None:
    """Return the counterpart of another library's `word` for an option, as a sentence; None for an unknown word.

    `option` is its name, with or without the sections before it.

    >>> hint("model.predicts", "epsilon")
    "'epsilon' is called 'noise' here: use predicts='noise'."
    >>> hint("variance", "nothing")
    """
    key = _key(option)
    if key is None or not isinstance(word, str):
        return None
    plain = _plain(word)
    name = key.rpartition(".")[2]
    for ours, others in _OTHERS[key].items():
        if plain in map(_plain, (ours, *others)):
            return f"{word!r} is called {ours!r} here: use {name}={ours!r}."
    note = {_plain(theirs): said for theirs, said in _NOTES.get(key, {}).items()}.get(plain)
    return None if note is None else f"{word!r}: {note}."


def check_word(option: str, word: object, known: Sequence[str]) -> None:
    """Raise DiffusionalError, with a suggestion, unless `word` is one of the `known` words.

    >>> check_word("predicts", "eps", ("noise", "data"))
    Traceback (most recent call last):
        ...
    diffusional.errors.DiffusionalError: expected predicts to be one of noise, data, got 'eps'. 'eps' is called 'noise' here: use predicts='noise'.
    """
    if word not in known:
        meant = hint(option, word)
        raise DiffusionalError(
            f"expected {option} to be one of {', '.join(known)}, got {word!r}" + ("" if meant is None else f". {meant}")
        )


def our_word(option: str, word: object, known: Sequence[str]) -> str:
    """Return the word of ours that means the same as another library's; one of `known` words is returned as it is.

    Raises DiffusionalError, with a suggestion if there is one, for other words.

    >>> our_word("predicts", "v_prediction", ("noise", "data", "v"))
    'v'
    """
    if isinstance(word, str) and word not in known and (key := _key(option)) is not None:
        plain = _plain(word)
        for ours, others in _OTHERS[key].items():
            if ours in known and plain in map(_plain, (ours, *others)):
                return ours
    check_word(option, word, known)
    return str(word)


def _key(option: str) -> str | None:
    last = option.rpartition(".")[2]
    return next((key for key in (option, last) if key in _OTHERS), None)


def _plain(word: str) -> str:
    return word.strip().lower().replace("-", "_").replace(" ", "_")
