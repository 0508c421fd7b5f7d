"""The model's configuration, in nanoVLM's own key names, validated once.

nanoVLM's ``config.json`` changed four times without a version number; which keys are present tells the versions apart
(:attr:`VLMConfig.generation`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from model.errors import InputError

logger = logging.getLogger(__name__)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Generation = Literal["v0.1", "v0.2", "2025-07", "2025-08"]

# Written by older versions and read by none of their code paths.
_OBSOLETE_KEYS = frozenset({"lm_eos_token_id"})


def region_tokens(rows: int, cols: int) -> dict[str, str]:
    """The ``<row_r_col_c>`` tokens of a grid of at most ``rows`` × ``cols`` tiles, keyed ``r1c1`` … as upstream."""
    return {f"r{r}c{c}": f"<row_{r}_col_{c}>" for r in range(1, rows + 1) for c in range(1, cols + 1)}


@dataclass(frozen=True)
class VLMConfig:
    """Every key of nanoVLM's ``config.json`` that the model or its data side reads, plus ``extra`` for the others.

    ``vit_*`` is the image encoder, ``mp_*`` the projector ("modality projector"), ``lm_*`` the language model. Sizes in
    pixels: ``vit_img_size`` is the side of a tile, ``vit_patch_size`` of a patch, ``max_img_size`` the longest side
    that an image is resized to. Raises :class:`InputError` when the values contradict one another.
    """

    vit_hidden_dim: int = 768
    vit_inter_dim: int = 3072
    vit_patch_size: int = 16
    vit_img_size: int = 512
    vit_n_heads: int = 12
    vit_dropout: float = 0.0
    vit_n_blocks: int = 12
    vit_ln_eps: float = 1e-6
    vit_cls_flag: bool = False
    vit_model_type: str = "google/siglip2-base-patch16-512"

    lm_hidden_dim: int = 960
    lm_inter_dim: int = 2560
    lm_rms_eps: float = 1e-5
    lm_re_base: float = 100000
    lm_max_position_embeddings: int = 8192
    lm_base_vocab_size: int = 49152
    extra_token_amount: int = 66
    lm_vocab_size: int = 49218
    lm_n_heads: int = 15
    lm_n_kv_heads: int = 5
    lm_dropout: float = 0.0
    lm_n_blocks: int = 32
    lm_attn_scaling: float = 1.0
    lm_max_length: int = 8192
    lm_use_tokens: bool = False
    lm_tie_weights: bool = True
    lm_model_type: str = "HuggingFaceTB/SmolLM2-360M-Instruct"
    lm_tokenizer: str = "HuggingFaceTB/SmolLM2-360M-Instruct"
    lm_chat_template: str | None = CHAT_TEMPLATE

    mp_pixel_shuffle_factor: int = 4
    mp_image_token_length: int = 64

    max_img_size: int = 2048
    resize_to_max_side_len: bool = True

    vlm_extra_tokens: Mapping[str, str] = field(
        default_factory=lambda: {
            "image_token": "<|image|>",
            "global_image_token": "<|global_image|>",
            **region_tokens(8, 8),
        }
    )
    vlm_load_backbone_weights: bool = True
    vlm_checkpoint_path: str = "checkpoints"
    hf_repo_name: str | None = None

    generation: Generation = "2025-08"
    """Which version of nanoVLM's data side the checkpoint was written for; told from the keys, never written."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the file that this code does not know; kept for saving."""

    def __post_init__(self) -> None:
        def need(ok: bool, sentence: str) -> None:
            if not ok:
                raise InputError(f"The configuration contradicts itself: {sentence}. Correct config.json.")

        for name in ("vit_hidden_dim", "vit_patch_size", "vit_img_size", "vit_n_heads", "vit_n_blocks", "vit_inter_dim",
                     "lm_hidden_dim", "lm_inter_dim", "lm_n_heads", "lm_n_kv_heads", "lm_n_blocks", "lm_vocab_size",
                     "lm_max_position_embeddings", "mp_pixel_shuffle_factor", "max_img_size"):  # fmt: skip
            value = getattr(self, name)
            need(isinstance(value, int) and value > 0, f"{name} is {value!r} and must be a positive integer")
        for name in ("vit_ln_eps", "lm_rms_eps", "lm_re_base", "vit_dropout", "lm_dropout"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            need(number, f"{name} is {value!r} and must be a number")
        for name in ("vit_cls_flag", "lm_tie_weights", "resize_to_max_side_len"):
            need(isinstance(getattr(self, name), bool), f"{name} is {getattr(self, name)!r} and must be true or false")
        template = self.lm_chat_template
        need(template is None or isinstance(template, str), f"lm_chat_template is {template!r} and must be text")
        need(self.vit_hidden_dim % self.vit_n_heads == 0,
             f"vit_hidden_dim {self.vit_hidden_dim} is not a multiple of vit_n_heads {self.vit_n_heads}")  # fmt: skip
        need(self.lm_hidden_dim % self.lm_n_heads == 0,
             f"lm_hidden_dim {self.lm_hidden_dim} is not a multiple of lm_n_heads {self.lm_n_heads}")  # fmt: skip
        need(self.lm_n_heads % self.lm_n_kv_heads == 0,
             f"lm_n_heads {self.lm_n_heads} is not a multiple of lm_n_kv_heads {self.lm_n_kv_heads}")  # fmt: skip
        need(self.vit_img_size % (self.vit_patch_size * self.mp_pixel_shuffle_factor) == 0,
             f"a tile of {self.vit_img_size} px does not divide into patches of {self.vit_patch_size} px "
             f"shuffled by {self.mp_pixel_shuffle_factor}")  # fmt: skip
        need(self.mp_image_token_length == self.cells_per_side**2,
             f"mp_image_token_length is {self.mp_image_token_length} where the tile gives "
             f"({self.vit_img_size} / {self.vit_patch_size} / {self.mp_pixel_shuffle_factor})² = "
             f"{self.cells_per_side**2} image tokens")  # fmt: skip
        need(not self.vit_cls_flag, "vit_cls_flag is true, but the projector has no place for a class token")
        need(self.generation == "v0.1" or "image_token" in self.vlm_extra_tokens,
             "vlm_extra_tokens names no image_token")  # fmt: skip

    @cached_property
    def cells_per_side(self) -> int:
        """Image tokens along one side of a tile."""
        return self.vit_img_size // self.vit_patch_size // self.mp_pixel_shuffle_factor

    @property
    def tokens_per_tile(self) -> int:
        return self.cells_per_side**2

    @property
    def tile_px(self) -> int:
        return self.vit_img_size

    @property
    def patch_px(self) -> int:
        return self.vit_patch_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the language model."""
        return self.lm_hidden_dim // self.lm_n_heads

    @property
    def splits_images(self) -> bool:
        """Whether an image may become several tiles (since July 2025)."""
        return self.generation in ("2025-07", "2025-08")

    @property
    def image_token(self) -> str | None:
        return self.vlm_extra_tokens.get("image_token")

    @property
    def global_image_token(self) -> str | None:
        """Marks the thumbnail; None in checkpoints that drop it."""
        return self.vlm_extra_tokens.get("global_image_token")

    def region_token(self, row: int, col: int) -> str:
        """The marker of the tile at 0-based ``row``, ``col``. InputError if the vocabulary has none so far out."""
        token = self.vlm_extra_tokens.get(f"r{row + 1}c{col + 1}")
        if token is None:
            regions = sum(1 for name in self.vlm_extra_tokens if name.startswith("r"))
            raise InputError(
                f"An image needs the tile marker <row_{row + 1}_col_{col + 1}>, but this checkpoint has only {regions} "
                f"markers; use a smaller or less elongated image, or a smaller max_img_size."
            )
        return token

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VLMConfig:
        """Reads any version's keys. Unknown keys are kept in ``extra`` with a logged warning; missing ones get the
        defaults of the version that left them out. InputError for a wrong type or a contradiction."""
        if not isinstance(values, Mapping):
            raise InputError(f"config.json holds a {type(values).__name__}; it must hold an object of nanoVLM's keys.")
        values = dict(values)
        required = {"vit_hidden_dim", "vit_img_size", "vit_patch_size", "lm_hidden_dim", "lm_n_blocks"}
        if missing := sorted(required - values.keys()):
            raise InputError(
                f"config.json lacks {', '.join(missing)}; it must be the one that nanoVLM wrote beside the weights."
            )
        known = {f.name for f in dataclasses.fields(cls)} - {"generation", "extra"}
        for key in _OBSOLETE_KEYS & values.keys():
            logger.info("config.json: %s is ignored, as in every version of nanoVLM", key)
        unknown = {key: values.pop(key) for key in list(values) if key not in known}
        if surprising := sorted(unknown.keys() - _OBSOLETE_KEYS):
            logger.warning("config.json has keys that are not nanoVLM's and are kept unread: %s", ", ".join(surprising))

        generation: Generation
        if "vlm_extra_tokens" not in values:
            generation = "v0.1"
            values.setdefault("vlm_extra_tokens", {})
            values.setdefault("lm_chat_template", None)
        elif "max_img_size" not in values:
            generation = "v0.2"
            # The first 450M checkpoints carry no template and used the plain prompt.
            values.setdefault("lm_chat_template", None)
        elif "resize_to_max_side_len" not in values:
            generation = "2025-07"
        else:
            generation = "2025-08"
        values.setdefault("resize_to_max_side_len", False)
        if "max_img_size" not in values:
            values["max_img_size"] = values["vit_img_size"]
        try:
            factor = values.setdefault("mp_pixel_shuffle_factor", 2)
            side = values["vit_img_size"] // values["vit_patch_size"] // factor
            values.setdefault("mp_image_token_length", side * side)
            extra_tokens = len(values["vlm_extra_tokens"])
            values.setdefault("extra_token_amount", extra_tokens)
            vocab_size = values.setdefault("lm_vocab_size", values.get("lm_base_vocab_size", 49152) + extra_tokens)
            values.setdefault("lm_base_vocab_size", vocab_size - values["extra_token_amount"])
            return cls(**values, generation=generation, extra=unknown)
        except (TypeError, ZeroDivisionError, AttributeError) as error:
            raise InputError(
                f"config.json has a value of the wrong type ({error}); compare it with nanoVLM's."
            ) from error

    @classmethod
    def read(cls, path: Path) -> VLMConfig:
        """From a ``config.json``. InputError if the file is missing or is no JSON object."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise InputError(f"{path.parent} has no {path.name}; a nanoVLM checkpoint folder holds one.") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid JSON ({error}); it may be cut off, fetch it again.") from error

    def to_dict(self) -> dict[str, Any]:
        """The keys that the checkpoint's own version writes, in nanoVLM's order."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["generation"], values["extra"]
        values["vlm_extra_tokens"] = dict(self.vlm_extra_tokens)
        dropped: tuple[str, ...] = ()
        if self.generation == "v0.1":
            dropped = ("lm_base_vocab_size", "extra_token_amount", "lm_chat_template", "mp_image_token_length",
                       "max_img_size", "resize_to_max_side_len", "vlm_extra_tokens", "hf_repo_name")  # fmt: skip
        elif self.generation == "v0.2":
            dropped = ("max_img_size", "resize_to_max_side_len")
            dropped += ("lm_chat_template",) if self.lm_chat_template is None else ()
        elif self.generation == "2025-07":
            dropped = ("resize_to_max_side_len",)
        for name in dropped:
            del values[name]
        return {**values, **self.extra}
