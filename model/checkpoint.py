"""Opening checkpoints, and writing those in nanoVLM's format: ``config.json``, ``model.safetensors``, a tokenizer.

Nothing here unpickles, runs code from a checkpoint, or asks the hub about a local folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedTokenizerFast

from model.config import VLMConfig
from model.devices import BALANCED, Placement, place
from model.errors import InputError
from model.families.adapter import add_adapter, holds_adapter, read_adapter
from model.families.checkpoint_files import check_fit, check_numbers, read_object
from model.families.nanovlm import VLM
from model.families.protocol import InspectableVLM
from model.families.table import find_family
from model.hub import TEXT_FILES, WEIGHT_FILES
from model.memory import MemoryNeed, check_memory, estimate_memory, read_stored, refuse_shortage
from model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from model.families.transformers_vlm import TransformersVLM

EMBEDDED = Path(__file__).parent / "embedded"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_HEAD, _EMBEDDING = "decoder.head.weight", "decoder.token_embedding.weight"
_MOST_CONFIG_BYTES = 16 << 20
_MOST_TOKENIZER_BYTES = 200 << 20
"""Of a tokenizer.json; those of the largest vocabularies have 35 million."""


@overload
def load_vlm(
    source: Literal["embedded"],
    *,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
    tokenizer: str | Path | PreTrainedTokenizerFast | None = None,
    quantize: str | None = None,
    opened: Iterable[InspectableVLM] = (),
) -> VLM: ...


@overload
def load_vlm(
    source: str | Path,
    *,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
    tokenizer: str | Path | PreTrainedTokenizerFast | None = None,
    quantize: str | None = None,
    opened: Iterable[InspectableVLM] = (),
) -> InspectableVLM: ...


def load_vlm(
    source: str | Path,
    *,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
    tokenizer: str | Path | PreTrainedTokenizerFast | None = None,
    quantize: str | None = None,
    opened: Iterable[InspectableVLM] = (),
) -> InspectableVLM:
    """The model of a checkpoint, in evaluation mode; its family is told from its config.json.

    ``source``: ``"embedded"`` (the one that ships with the repo), a folder, or a hub id ``owner/name``. ``tokenizer``
    overrides where a nanoVLM checkpoint's tokenizer comes from; by default the folder's own, else one named
    ``lm_tokenizer`` beside it. ``device``, ``dtype`` and ``quantize``: see :mod:`model.devices`. ``opened``: models
    that were opened with the same three; if an adapter's base is among them it isn't read again, and the two share the
    weights that the adapter leaves as they are. InputError if anything is missing, extra, of another shape or no finite
    number (nothing is ever left at random), for a family that isn't known or can't be inspected, and before anything is
    loaded if the weights don't fit the device.
    """
    folder, local = find_folder(source)
    if holds_adapter(folder):
        return _open_adapter(folder, device, dtype, quantize, opened)
    family = _find_family(folder)
    placement = place(device, dtype, read_stored(folder).bytes_by_dtype, quantize)
    if family is None:
        return _load(folder, local, placement, tokenizer)
    check_memory(estimate_memory(folder, placement))
    more = {} if quantize is None else {"quantize": quantize}
    with refuse_shortage():
        return family(folder, BALANCED if placement.balanced else placement.device, placement.dtype, **more)


def _open_adapter(
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype | str,
    quantize: str | None,
    opened: Iterable[InspectableVLM],
) -> InspectableVLM:
    """The adapter's base, changed by it."""
    from model.families.transformers_vlm import TransformersVLM  # which takes long to import

    adapter = read_adapter(folder)
    if quantize is not None:
        raise InputError("An adapter can't be added into quantised weights; open it without --quantize.")
    try:
        lies = find_folder(adapter.base)[0].resolve()
        ours = (one for one in opened if isinstance(one, TransformersVLM) and one.can_share and not one.adapted)
        known = next((one for one in ours if one.folder.resolve() == lies), None)
        base = load_vlm(adapter.base, device=device, dtype=dtype) if known is None else known.share(adapter.changes)
    except InputError as error:
        raise InputError(f"The adapter in {folder} changes “{adapter.base}”, which can't be opened: {error}") from error
    if not isinstance(base, TransformersVLM) or holds_adapter(find_folder(adapter.base)[0]):
        raise InputError(
            f"The adapter in {folder} changes “{adapter.base}”, which is no checkpoint of transformers; adapters are "
            "read for these alone."
        )
    return add_adapter(base, adapter, folder)


def _find_base(source: str | Path) -> Path:
    """Where the weights of a checkpoint lie: an adapter's are its base's."""
    folder, _ = find_folder(source)
    return find_folder(read_adapter(folder).base)[0] if holds_adapter(folder) else folder


def plan_memory(
    source: str | Path,
    *,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
    quantize: str | None = None,
    positions: int | None = None,
) -> MemoryNeed:
    """What :func:`load_vlm` will take and what is free, before anything is loaded; a hub id is fetched for it.
    ``positions``: how long a prompt is planned for. InputError as for :func:`load_vlm`."""
    folder = _find_base(source)
    placement = place(device, dtype, read_stored(folder).bytes_by_dtype, quantize)
    return estimate_memory(folder, placement, positions)


def read_kind(source: str | Path) -> str:
    """“nanoVLM”, or the ``model_type`` of the checkpoint's config.json; a hub id is fetched for it. InputError where
    there is none."""
    folder = _find_base(source)
    return str(read_object(folder / CONFIG).get("model_type") or "nanoVLM")[:60]


def load_nanovlm(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    tokenizer: str | Path | PreTrainedTokenizerFast | None = None,
) -> VLM:
    """:func:`load_vlm` for what only nanoVLM's models can do, training above all. InputError for another family."""
    folder, local = find_folder(source)
    if (family := _find_family(folder)) is not None:
        raise InputError(
            f"This is a {family.name} model, and this is done with nanoVLM's alone; tune it by a recipe: python -m "
            "model.training run."
        )
    placement = place(device, dtype, read_stored(folder).bytes_by_dtype)
    return _load(folder, local, placement, tokenizer)


def _find_family(folder: Path) -> type[TransformersVLM] | None:
    path = folder / CONFIG
    if path.is_file():
        try:
            values = json.loads(path.read_bytes()) if path.stat().st_size < _MOST_CONFIG_BYTES else None
        except (OSError, ValueError, RecursionError):
            return None  # read again, and refused, as nanoVLM's
        return find_family(values) if isinstance(values, dict) else None
    if any(folder.glob("*.gguf")) or (folder / "adapter_config.json").is_file():
        read_object(path)  # says what it is instead
    return None


def _load(
    folder: Path,
    local: bool,
    placement: Placement,
    tokenizer: str | Path | PreTrainedTokenizerFast | None,
) -> VLM:
    if placement.balanced or placement.quantize:
        raise InputError(
            "A nanoVLM fits one device and is not quantised here; choose --device auto, cpu, cuda, "
            "cuda:N or mps, and no --quantize."
        )
    dtype = placement.dtype
    config = VLMConfig.read(folder / CONFIG)
    check_memory(estimate_memory(folder, placement))
    if tokenizer is None:
        tokenizer = _find_tokenizer(folder, config, local)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer = load_tokenizer(tokenizer, config.vlm_extra_tokens)
    if len(tokenizer) > config.lm_vocab_size:
        raise InputError(
            f"The tokenizer has {len(tokenizer)} tokens and lm_vocab_size is {config.lm_vocab_size}; "
            "it is not this checkpoint's tokenizer."
        )
    _check_ids(config, tokenizer)
    state = _read_weights(folder, config)
    vlm = empty_vlm(config, tokenizer)
    _check_keys(vlm, state, folder)
    angles = state["decoder.rotary_embd.inv_freq"].float()
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    check_numbers(state, folder)
    _fill(vlm, state)
    # Rotary angles need float32 whatever the weights are.
    vlm.decoder.rotary_embd.inv_freq = angles
    vlm.folder = folder
    with refuse_shortage():
        return vlm.to(placement.device).eval()


def copy_vlm(vlm: VLM, state: Mapping[str, Tensor] | None = None) -> VLM:
    """A model of its own with the same configuration and tokenizer, in evaluation mode; ``state`` (the whole state
    dict) in place of the model's weights, if given."""
    copy = empty_vlm(vlm.config, vlm.tokenizer)
    source = vlm.state_dict() if state is None else state
    _fill(copy, {name: tensor.detach().clone() for name, tensor in source.items()})
    return copy.eval()


def empty_vlm(config: VLMConfig, tokenizer: PreTrainedTokenizerFast) -> VLM:
    """A model of this shape on torch's meta device: it has no weights and takes no memory, and can be counted."""
    with torch.device("meta"), _Undrawn():
        vlm = VLM(config, tokenizer)
    _tie(vlm)
    return vlm


class _Undrawn(TorchFunctionMode):
    """New layers don't draw their first weights. On the meta device that would draw nothing and yet import torch's
    compiler, which takes as long as importing all the rest of torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def _fill(vlm: VLM, state: Mapping[str, Tensor]) -> None:
    """Makes the tensors of a whole state dict the model's own."""
    vlm.load_state_dict(state, strict=True, assign=True)
    _tie(vlm)


def _tie(vlm: VLM) -> None:
    if vlm.config.lm_tie_weights:
        vlm.decoder.head.weight = vlm.decoder.token_embedding.weight


def find_folder(source: str | Path, *, weights: bool = True) -> tuple[Path, bool]:
    """Where a checkpoint lies, and whether it lay there before: a hub id is fetched, without ``weights`` only its small
    files. InputError if it can't be."""
    if source == "embedded":
        return EMBEDDED, True
    path = Path(source).expanduser()
    if str(source).strip() and path.is_dir():
        return path, True
    text = str(source)
    if isinstance(source, Path) or path.exists() or text.startswith((".", "~", os.sep)) or text.count("/") != 1:
        raise InputError(f"“{text}” is no folder; give “embedded”, a checkpoint folder, or a hub id owner/name.")
    try:
        patterns = [CONFIG, *(WEIGHT_FILES if weights else ()), *TEXT_FILES]
        return Path(snapshot_download(text, allow_patterns=patterns)), False
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        # Processes that work for strangers have no token; what the owner fetched with one is there already.
        with contextlib.suppress(HTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            return Path(snapshot_download(text, allow_patterns=patterns, local_files_only=True)), False
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"“{text}” is no folder here and can't be fetched from the hub ({reason}).") from error


def _find_tokenizer(folder: Path, config: VLMConfig, local: bool) -> str | Path:
    # Only the last part of the name: a configuration must not point anywhere else on the disk.
    name = Path(config.lm_tokenizer).name
    for candidate in (folder, folder / name, folder.parent / name):
        if (file := candidate / "tokenizer.json").is_file():
            if (size := file.stat().st_size) > _MOST_TOKENIZER_BYTES:
                raise InputError(
                    f"{file} has {size:,} bytes; at most {_MOST_TOKENIZER_BYTES:,} are read, it is no tokenizer's."
                )
            return candidate
    if local:
        raise InputError(
            f"{folder} has no tokenizer.json; copy the tokenizer of “{config.lm_tokenizer}” into it "
            "(a local checkpoint never asks the hub)."
        )
    return config.lm_tokenizer


def _read_weights(folder: Path, config: VLMConfig) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
        hint = f" {', '.join(others)} can hold code and is not read; convert it to safetensors." if others else ""
        raise InputError(f"{folder} has no {WEIGHTS}.{hint or ' It must lie beside config.json.'}")
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        # The last four: kinds of numbers that this torch doesn't know, and shapes that overflow.
        raise InputError(f"{path} can't be read ({error}); it may be cut off, fetch it again.") from error
    if config.lm_tie_weights:
        # nanoVLM drops one of the two names when saving; which one has changed between versions.
        both = [torch.nan_to_num(state[name]) for name in (_HEAD, _EMBEDDING) if name in state]  # NaN is named later
        if len(both) == 2 and not torch.equal(*both):
            raise InputError(
                f"{path} has different {_HEAD} and {_EMBEDDING}, but lm_tie_weights says they are one; correct it."
            )
        for name, twin in ((_EMBEDDING, _HEAD), (_HEAD, _EMBEDDING)):
            if name not in state and twin in state:
                state[name] = state[twin]
    return state


def _check_ids(config: VLMConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    """A vocabulary may leave out ids, so that its largest is beyond its size."""
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= config.lm_vocab_size}
    if beyond:
        token, number = max(beyond.items(), key=lambda item: item[1])
        raise InputError(
            f"The tokenizer gives “{token[:40]}” the id {number} and lm_vocab_size is {config.lm_vocab_size}; "
            "it is not this checkpoint's tokenizer."
        )


def _check_keys(vlm: VLM, state: dict[str, Tensor], folder: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in vlm.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    shapes = [
        f"{name} is {found[name]} and should be {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    kinds = [
        f"{name} is {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in sorted(state.items())
        if name in wanted and not tensor.is_floating_point()
    ]
    faults = {
        "missing": missing,
        "not wanted": extra,
        "of another shape": shapes,
        "no floating-point numbers": kinds,
    }
    check_fit(faults, folder)


def save_vlm(vlm: VLM, folder: str | Path) -> None:
    """Writes config, weights and tokenizer so that nanoVLM reads them too. Everything is first written beside the
    folder and then moved in, the weights last: a crash or a full disk leaves what was there before."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_shape(vlm, staging)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in vlm.state_dict().items()}
        metadata = None
        if vlm.config.lm_tie_weights:
            del state[_EMBEDDING]
            metadata = {_EMBEDDING: _HEAD}
        save_file(state, staging / WEIGHTS, metadata=metadata)
        for path in staging.iterdir():
            path.chmod(0o644)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        folder.mkdir(exist_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == WEIGHTS):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def save_shape(vlm: InspectableVLM, folder: Path) -> None:
    """Writes config, tokenizer and what else there is of a checkpoint but its weights."""
    if not isinstance(vlm, VLM):
        source = cast("TransformersVLM", vlm).folder
        for path in {found for pattern in (CONFIG, *TEXT_FILES) for found in source.glob(pattern) if found.is_file()}:
            shutil.copyfile(path, folder / path.name)
        return
    vlm.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    _write_tokenizer_config(vlm, folder)
    text = json.dumps(vlm.config.to_dict(), indent=4, ensure_ascii=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def load_shape(folder: Path) -> InspectableVLM:
    """A model without weights (see :func:`empty_vlm`) from what :func:`save_shape` wrote."""
    if (family := _find_family(folder)) is not None:
        return family(folder, "meta")
    config = VLMConfig.read(folder / CONFIG)
    return empty_vlm(config, load_tokenizer(folder, config.vlm_extra_tokens))


def _write_tokenizer_config(vlm: VLM, folder: Path) -> None:
    tokenizer = vlm.tokenizer
    named = {
        name: str(getattr(tokenizer, name))
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if getattr(tokenizer, name) is not None
    }
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **named,
        "extra_special_tokens": dict(vlm.config.vlm_extra_tokens),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
