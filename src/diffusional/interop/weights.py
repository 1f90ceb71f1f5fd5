"""The network of a checkpoint: built by diffusers, and filled with its weights, all of them and no others."""

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusional.errors import DiffusionalError
from diffusional.extras import needed_for
from diffusional.files import check_regular, load_json, sha256
from diffusional.interop.place import NETWORK, WEIGHTS, Place, quiet
from diffusional.interop.record import Origin


def load_network(place: Place, origin: Origin) -> nn.Module:
    """Build the network and fill it with its weights, all of them and no others."""
    with needed_for("diffusers"):
        import diffusers
        from diffusers.models.modeling_utils import ModelMixin

    config_file = place.network / NETWORK
    config = load_json(config_file)
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise DiffusionalError(
            f"{config_file} has no _class_name; expected the config that diffusers wrote with a model"
        )
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        close = difflib.get_close_matches(name, dir(diffusers), n=1)
        raise DiffusionalError(
            f"{config_file}: diffusers {diffusers.__version__} has no model {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
            + " Models of your own go through df.wrap"
        )
    files, variant = _weights(place.network, place.variant, origin)
    types = _check_files(files)
    for file in (config_file, *files):
        origin.files[os.path.relpath(file, place.folder)] = sha256(file)
    wide = types == {"F64"}
    short = sorted(types - {"F64", "F32"} - {t for t in types if t.startswith(("I", "U", "BOOL"))})
    if short:
        origin.notes.append(f"weights stored as {', '.join(short)} are evaluated in float32")
    safe = files[0].suffix == ".safetensors"
    if not safe:
        origin.notes.append(
            f"{files[0].name} is a pickle; it was read by torch.load(weights_only=True), which runs no code"
        )
    try:
        with quiet():
            loaded: Any = kind.from_pretrained(
                str(place.network),
                variant=variant,
                use_safetensors=safe,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                local_files_only=True,
                torch_dtype=torch.float64 if wide else torch.float32,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of many kinds: a config that does not fit the class, weights that cannot be read
        lines = str(error).strip().splitlines()
        raise DiffusionalError(
            f"{place.network} could not be loaded as a {name}: {lines[0] if lines else type(error).__name__}"
        ) from error
    network, info = loaded
    _check_loading(place.network, name, info)
    network = network.eval()
    broken = [
        key for key, value in network.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise DiffusionalError(
            f"the weights in {place.network} are not finite: {broken[0]} and {len(broken) - 1} others"
        )
    count = sum(p.numel() for p in network.parameters())
    origin.config["network"] = f"network {name}, {count:,} weights"
    return network


def _weights(folder: Path, variant: str | None, origin: Origin) -> tuple[list[Path], str | None]:
    """Return the weight files of a model's folder, and their variant."""
    middle = "" if variant is None else f".{variant}"
    for suffix in ("safetensors", "bin"):
        single = folder / f"{WEIGHTS}{middle}.{suffix}"
        if os.path.lexists(single):
            return [single], variant
        for index in (
            folder / f"{WEIGHTS}.{suffix}.index{middle}.json",
            folder / f"{WEIGHTS}{middle}.{suffix}.index.json",
        ):
            if index.is_file():
                names = sorted(set(load_json(index).get("weight_map", {}).values()))
                missing = [name for name in names if not (folder / name).is_file()]
                if missing or not names:
                    raise DiffusionalError(
                        f"{index} names {', '.join(missing[:3]) or 'no files'}, which do not exist; restore them"
                    )
                return [folder / name for name in names], variant
    there = sorted(path.name for path in folder.glob(f"{WEIGHTS}*") if path.suffix in (".safetensors", ".bin"))
    variants = sorted(
        {match.group(1) for name in there if (match := re.fullmatch(rf"{WEIGHTS}\.(\w+)\.(?:safetensors|bin)", name))}
    )
    if variant is None and len(variants) == 1:
        origin.notes.append(f'only the variant "{variants[0]}" of the weights is there, and is used')
        return _weights(folder, variants[0], origin)
    what = "" if variant is None else f' of the variant "{variant}"'
    raise DiffusionalError(
        f"{folder} has no weights{what}: expected {WEIGHTS}{middle}.safetensors, got {', '.join(there) or 'none'}"
        + (
            f". Choose one of the variants that are there: {', '.join(variants)}"
            if variants
            else "; restore the file, or download the checkpoint again"
        )
    )


def _check_files(files: list[Path]) -> set[str]:
    """Check that weight files are whole; return the types of their tensors, by the names of safetensors."""
    types: set[str] = set()
    for file in files:
        check_regular(file)
        if file.suffix == ".safetensors":
            types |= _header_types(file)
        else:
            types |= _pickled_types(file)
    return types


def _header_types(file: Path) -> set[str]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise DiffusionalError(_damaged(file, "its header is cut off"))
        try:
            header = json.loads(stream.read(length))
            tensors = [value for key, value in header.items() if key != "__metadata__"]
            end = max((value["data_offsets"][1] for value in tensors), default=0)
            types = {value["dtype"] for value in tensors}
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise DiffusionalError(_damaged(file, "it is not a safetensors file")) from error
    if 8 + length + end != size:
        raise DiffusionalError(_damaged(file, f"expected {8 + length + end:,} bytes, got {size:,}"))
    return types


def _damaged(file: Path, why: str) -> str:
    return f"{file} is damaged ({why}); download or copy it again"


def _pickled_types(file: Path) -> set[str]:
    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        tensors = list(state.values())
        if not all(isinstance(one, Tensor) for one in tensors):
            raise TypeError("it holds more than tensors")
    except Exception as error:  # of many kinds, among them refusals of code
        lines = str(error).strip().splitlines()
        raise DiffusionalError(
            f"{file} is a pickle that torch.load(weights_only=True) does not read ({lines[0][:150] if lines else type(error).__name__}); a pickle "
            "can run code, and it was not loaded. Convert it where you trust it: safetensors.torch.save_file(state_dict, path)"
        ) from error
    return {names.get(one.dtype, "I") for one in tensors}


def _check_loading(folder: Path, name: str, info: Mapping[str, Any]) -> None:
    """Raise DiffusionalError unless weights and network have the same names and shapes: diffusers only warns."""
    wrong = [f"{key} is missing" for key in info.get("missing_keys", ())]
    wrong += [f"{key} is unknown" for key in info.get("unexpected_keys", ())]
    for one in info.get("mismatched_keys", ()):
        parts: list[Any] = [*one, None, None]
        key, there, here = parts[:3]
        wrong.append(
            f"{key} has shape {tuple(there)} there, {tuple(here)} here"
            if here is not None
            else f"{key} has another shape"
        )
    wrong += [str(one) for one in info.get("error_msgs", ())]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise DiffusionalError(
            f"the weights in {folder} do not fit the {name} of its {NETWORK}: {shown}. The two belong to different models, or the config was "
            "edited"
        )
