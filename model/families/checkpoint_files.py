"""The files of a transformers checkpoint: read without running anything of it, and refused in one sentence."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from model.devices import Placement
from model.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

KNOWN_TEXT = "open a checkpoint whose language model is of the kind of Llama, Mistral, Qwen2, Qwen3 or Gemma 3"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_MOST_BYTES = 64 << 20
"""Of a JSON file; an index of the largest models has 10 million."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_UNPACKED = ("lm_head", "vision_tower", "vision_model", "visual", "connector", "multi_modal_projector", "o_proj")
"""Parts of a model that aren't quantised."""
_DERIVED = ("position_ids", "inv_freq")
"""Buffers that older versions saved and that follow from the configuration."""


def read_object(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file and that is allowed. InputError for anything else."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes; it is no {path.name}, fetch it again.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise InputError(f"{path.parent} has no {path.name}; {_what_else(path.parent)}") from None
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); check the folder.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); it may be cut off, fetch it again.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}; it must hold an object.")
    return values


def _what_else(folder: Path) -> str:
    """What a folder without a configuration seems to be."""
    return _other_kind(folder) or "a checkpoint folder holds one."


def _other_kind(folder: Path) -> str:
    """What weights of another kind a folder holds, and what to use instead; empty if it holds none."""
    if (folder / "adapter_config.json").is_file():
        return "it is an adapter (LoRA) without its base model: merge the two and open what comes out."
    if any(folder.glob("*.gguf")):
        return "GGUF files are not read here: use the checkpoint that they were made from."
    return ""


def check_weights(folder: Path) -> None:
    """InputError unless the weights are there, whole and in safetensors."""
    if (folder / INDEX).is_file():
        listed = read_object(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise InputError(f"{folder / INDEX} has no weight_map of file names; fetch it again.")
        names = sorted(set(listed.values()))
        if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise InputError(f"{folder / INDEX} names “{outside[0][:60]}”; only safetensors files beside it are read.")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise InputError(
                f"{folder} lacks {len(missing)} of {len(names)} files of its weights ({', '.join(missing[:3])}"
                f"{' …' if len(missing) > 3 else ''}); fetch them."
            )
        return
    if (folder / WEIGHTS).is_file():
        return
    if kind := _other_kind(folder):  # training scripts write the base model's config.json beside an adapter
        raise InputError(f"{folder} has no {WEIGHTS}; {kind}")
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{folder} has no {WEIGHTS}. {', '.join(pickles[:3])} can hold code and is not read; convert it to "
            "safetensors."
        )
    raise InputError(f"{folder} has no {WEIGHTS}; it must lie beside {CONFIG}.")


def load_weights(kind: type[PreTrainedModel], folder: Path, placement: Placement) -> PreTrainedModel:
    """The model in evaluation mode, every weight from the files. InputError if one is missing, left over, of another
    shape, or no finite number. On the device meta it has none, and no file of them is needed."""
    if placement.device.type == "meta":
        return _build_shape(kind, folder)
    check_weights(folder)
    with quiet_transformers():
        try:
            model, found = cast(Any, kind).from_pretrained(
                str(folder),
                dtype=placement.dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below, and refused
                attn_implementation="sdpa",
                **_placing(placement),
            )
        except Exception as error:  # configurations, files and shapes each fail in their own way
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if "does not support an attention implementation" in reason:  # Gemma 2's capped scores, for one
                raise InputError(
                    f"{reason.split()[0]} has a kind of attention that isn't read here; {KNOWN_TEXT}."
                ) from error
            raise InputError(f"The checkpoint in {folder} can't be loaded ({reason[:300]}).") from error
    faults = {
        "missing": sorted(map(str, found["missing_keys"])),
        "not wanted": sorted(key for key in map(str, found["unexpected_keys"]) if not key.endswith(_DERIVED)),
        "of another shape": sorted(str(one[0] if isinstance(one, tuple) else one) for one in found["mismatched_keys"]),
    }
    check_fit(faults, folder)
    check_numbers(model.state_dict(), folder)
    model.requires_grad_(False)
    if placement.balanced or placement.quantize:  # where they belong already; accelerate wouldn't have them moved
        return cast("PreTrainedModel", model.eval())
    moved: PreTrainedModel = model.to(placement.device).eval()
    return moved


def _build_shape(kind: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    from transformers import GenerationConfig

    with quiet_transformers():
        try:
            config = cast(Any, kind).config_class.from_pretrained(str(folder), local_files_only=True)
            with torch.device("meta"):
                model: PreTrainedModel = cast(Any, kind)._from_config(config, attn_implementation="sdpa")
            if (folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # configurations fail in their own way
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"The checkpoint in {folder} can't be built ({reason[:300]}).") from error
    return model.requires_grad_(False).eval()


def _placing(placement: Placement) -> dict[str, Any]:
    """What transformers is told of where weights go and how they are packed."""
    found: dict[str, Any] = {}
    if placement.balanced:
        # Every weight on a GPU: one that waits in memory isn't there when the reader looks at a layer.
        free = {n: torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count())}
        found |= {"device_map": "balanced", "max_memory": free}
    if placement.quantize:
        from transformers import BitsAndBytesConfig

        found["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=placement.quantize == "4bit",
            load_in_8bit=placement.quantize == "8bit",
            bnb_4bit_compute_dtype=placement.dtype,
            # The encoder is small, and the reader multiplies with the output projections itself.
            llm_int8_skip_modules=list(_UNPACKED),
        )
        found.setdefault("device_map", {"": placement.device})
    return found


def load_image_processor(folder: Path, known: Sequence[str]) -> Any:
    """The settings for images as the family's own processor reads them. ``known``: names of transformers' classes, the
    usual one first. InputError if there are none, or they are of another class."""
    import transformers

    values = read_object(folder / "preprocessor_config.json", missing_ok=True)
    nested = read_object(folder / "processor_config.json", missing_ok=True).get("image_processor")
    if isinstance(nested, dict):
        values = nested
    if not values:
        raise InputError(f"{folder} has no settings for images (preprocessor_config.json); fetch them.")
    name = str(values.get("image_processor_type") or known[0]).removesuffix("Fast").removesuffix("Pil")
    if name not in known:
        raise InputError(f"The checkpoint's images are prepared by {name[:60]}; known here: {', '.join(known)}.")
    with quiet_transformers():
        try:
            kind: Any = getattr(transformers, f"{name}Pil")
            return kind.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # files and settings each fail in their own way
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{folder} has no settings for images that can be read ({reason[:300]}).") from error


def load_chat_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """The tokenizer as the family's own processor loads it. InputError if there is none, or it is of another model."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the file system and the parser each raise their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"No tokenizer could be read from {folder} ({reason[:300]}); fetch its files.") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"The tokenizer in {folder} is a {type(tokenizer).__name__}; it needs a tokenizer.json.")
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if number >= vocabulary:
        raise InputError(
            f"The tokenizer in {folder} gives “{token[:40]}” the id {number} and the model knows {vocabulary:,}; "
            "it is not this checkpoint's tokenizer."
        )
    return tokenizer


def read_template(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The checkpoint's chat template, from where its processor would take it; None if there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        values = read_object(folder / name, missing_ok=True)
        if isinstance(template := values.get("chat_template"), str):
            return template
    own = tokenizer.chat_template
    if isinstance(own, Mapping):
        own = own.get("default")
    return own if isinstance(own, str) else None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Its progress bars and advice are for programmers; what matters of a checkpoint is said here."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


def check_fit(faults: Mapping[str, list[str]], folder: Path) -> None:
    """InputError if any of ``faults`` (what is wrong → names of weights) has a name."""
    if told := [f"{what}: {_shorten(names)}" for what, names in faults.items() if names]:
        raise InputError(
            f"The weights in {folder} don't fit its config.json; {'; '.join(told)}. "
            "Use the config.json that was saved with them."
        )


def check_numbers(state: Mapping[str, Tensor], folder: Path) -> None:
    """InputError, with their names, if weights hold NaN or infinity."""
    faults = [
        f"{name} ({bad:,} of {tensor.numel():,})"
        for name, tensor in sorted(state.items())
        if tensor.is_floating_point() and (bad := tensor.numel() - int(tensor.isfinite().sum()))
    ]
    if faults:
        raise InputError(
            f"The weights in {folder} hold values that are no finite numbers (NaN or infinite): {_shorten(faults)}. "
            "The training that made them diverged or the file is damaged; use another checkpoint."
        )


def _shorten(names: list[str], limit: int = 6) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
