"""The model's configuration, in nanoVLM's own key names, validated once.

nanoVLM's ``config.json`` changed four times without a version number; which keys are present tells the versions apart
(:attr:`VLMConfig.generation`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from model.errors import InputError
from model.values import is_number, is_whole, name_value

logger = logging.getLogger(__name__)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Generation = Literal["v0.1", "v0.2", "2025-07", "2025-08"]
Activation = Literal["gelu_tanh", "gelu", "quick_gelu"]
ACTIVATIONS: tuple[Activation, ...] = ("gelu_tanh", "gelu", "quick_gelu")
PROJECTORS = ("linear", "mlp")

# Written by older versions and read by none of their code paths.
_OBSOLETE_KEYS = frozenset({"lm_eos_token_id"})

# Far beyond what any model of this kind has, and small enough that nothing of such a size has to be built, or drawn to
# the end, before it can be compared with the weights.
MOST_POSITIONS = 16_777_216
_LARGEST = {
    "vit_hidden_dim": 65_536,
    "vit_inter_dim": 262_144,
    "vit_patch_size": 4_096,
    "vit_img_size": 8_192,
    "vit_n_heads": 1_024,
    "vit_n_blocks": 1_024,
    "lm_hidden_dim": 65_536,
    "lm_inter_dim": 262_144,
    "lm_n_heads": 1_024,
    "lm_n_kv_heads": 1_024,
    "lm_n_blocks": 1_024,
    "lm_vocab_size": 4_194_304,
    "lm_max_position_embeddings": MOST_POSITIONS,
    "mp_pixel_shuffle_factor": 64,
    "max_img_size": 32_768,
}
_MOST_WEIGHTS = 200_000_000_000
_MOST_BYTES = 4 << 20
"""Of a config.json; the longest of nanoVLM's has 4,000."""


def region_tokens(rows: int, cols: int) -> dict[str, str]:
    """The ``<row_r_col_c>`` tokens of a grid of at most ``rows`` × ``cols`` tiles, keyed ``r1c1`` … as upstream."""
    return {f"r{r}c{c}": f"<row_{r}_col_{c}>" for r in range(1, rows + 1) for c in range(1, cols + 1)}


@dataclass(frozen=True)
class VLMConfig:
    """Every key of nanoVLM's ``config.json`` that the model or its data side reads, plus ``extra`` for the others.

    ``vit_*`` is the image encoder, ``mp_*`` the projector ("modality projector"), ``lm_*`` the language model. Sizes in
    pixels: ``vit_img_size`` is the side of a tile, ``vit_patch_size`` of a patch, ``max_img_size`` the longest side
    that an image is resized to. Raises :class:`InputError` when the values contradict one another.

    :data:`BEYOND` are keys that nanoVLM doesn't have, for parts of other families: an encoder that reads a class token
    beside the patches (it is left out behind the last block), has a norm before the first block or none behind the last
    one, and another activation; a language model whose heads have a width of their own, biases at queries, keys and
    values, or norms over each head's queries and keys; a projector of two layers. They are written where they say
    something else than nanoVLM does.
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
    vit_class_token: bool = False
    vit_pre_norm: bool = False
    vit_post_norm: bool = True
    vit_activation: Activation = "gelu_tanh"
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
    lm_head_dim: int | None = None
    lm_qkv_bias: bool = False
    lm_qk_norm: bool = False
    lm_max_length: int = 8192
    lm_use_tokens: bool = False
    lm_tie_weights: bool = True
    lm_model_type: str = "HuggingFaceTB/SmolLM2-360M-Instruct"
    lm_tokenizer: str = "HuggingFaceTB/SmolLM2-360M-Instruct"
    lm_chat_template: str | None = CHAT_TEMPLATE

    mp_pixel_shuffle_factor: int = 4
    mp_image_token_length: int = 64
    mp_kind: Literal["linear", "mlp"] = "linear"

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

        for name, most in _LARGEST.items():
            value = getattr(self, name)
            need(is_whole(value) and value > 0, f"{name} is {name_value(value)} and must be a positive integer")
            need(value <= most, f"{name} is {name_value(value)} and may be {most:,} at most")
        for name in ("vit_ln_eps", "lm_rms_eps", "lm_re_base"):
            value = getattr(self, name)
            need(is_number(value) and value > 0, f"{name} is {name_value(value)} and must be a number above 0")
        for name in ("vit_dropout", "lm_dropout"):
            value = getattr(self, name)
            need(is_number(value) and 0 <= value < 1, f"{name} is {name_value(value)} and must be from 0 to below 1")
        for name in (
            "vit_cls_flag",
            "vit_class_token",
            "vit_pre_norm",
            "vit_post_norm",
            "lm_qkv_bias",
            "lm_qk_norm",
            "lm_tie_weights",
            "resize_to_max_side_len",
        ):
            value = getattr(self, name)
            need(isinstance(value, bool), f"{name} is {name_value(value)} and must be true or false")
        for name, choices in (("vit_activation", ACTIVATIONS), ("mp_kind", PROJECTORS)):
            value = getattr(self, name)
            need(value in choices, f"{name} is {name_value(value)} and must be one of {', '.join(choices)}")
        need(
            self.lm_head_dim is None or (is_whole(self.lm_head_dim) and 0 < self.lm_head_dim <= 65_536),
            f"lm_head_dim is {name_value(self.lm_head_dim)} and must be a positive integer",
        )
        need(isinstance(self.lm_tokenizer, str), f"lm_tokenizer is {name_value(self.lm_tokenizer)} and must be text")
        template = self.lm_chat_template
        need(
            template is None or isinstance(template, str),
            f"lm_chat_template is {name_value(template)} and must be text",
        )
        for token in self.vlm_extra_tokens.items():
            need(
                all(isinstance(part, str) and part for part in token),
                f"vlm_extra_tokens has the entry {name_value(token)}; each must give a name its token, both text",
            )
        eos = self.extra.get("lm_eos_token_id")
        need(
            eos is None or (is_whole(eos) and 0 <= eos < self.lm_vocab_size),
            f"lm_eos_token_id is {name_value(eos)} and must be a token of the vocabulary",
        )
        need(
            self.vit_hidden_dim % self.vit_n_heads == 0,
            f"vit_hidden_dim {self.vit_hidden_dim} is not a multiple of vit_n_heads {self.vit_n_heads}",
        )
        need(
            self.lm_head_dim is not None or self.lm_hidden_dim % self.lm_n_heads == 0,
            f"lm_hidden_dim {self.lm_hidden_dim} is not a multiple of lm_n_heads {self.lm_n_heads}",
        )
        need(
            self.head_dim % 2 == 0,
            f"a head of the language model is {self.head_dim} wide and must be even, for its "
            "positions are turned in pairs",
        )
        need(
            self.lm_n_heads % self.lm_n_kv_heads == 0,
            f"lm_n_heads {self.lm_n_heads} is not a multiple of lm_n_kv_heads {self.lm_n_kv_heads}",
        )
        need(
            self.vit_img_size % (self.vit_patch_size * self.mp_pixel_shuffle_factor) == 0,
            f"a tile of {self.vit_img_size} px does not divide into patches of {self.vit_patch_size} px "
            f"shuffled by {self.mp_pixel_shuffle_factor}",
        )
        need(
            self.mp_image_token_length == self.cells_per_side**2,
            f"mp_image_token_length is {name_value(self.mp_image_token_length)} where the tile gives "
            f"({self.vit_img_size} / {self.vit_patch_size} / {self.mp_pixel_shuffle_factor})² = "
            f"{self.cells_per_side**2} image tokens",
        )
        need(
            not self.splits_images or self.max_img_size % self.vit_img_size == 0,
            f"max_img_size {self.max_img_size} is not a multiple of vit_img_size {self.vit_img_size}, so that an "
            "image of that size can't be cut into tiles",
        )
        need(not self.vit_cls_flag, "vit_cls_flag is true, but the projector has no place for a class token")
        need(
            self.generation == "v0.1" or "image_token" in self.vlm_extra_tokens, "vlm_extra_tokens names no image_token"
        )
        need(
            self.weights <= _MOST_WEIGHTS,
            f"its sizes make {self.weights:.1e} weights and {_MOST_WEIGHTS:.0e} are the most that this code builds",
        )

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
        return self.lm_hidden_dim // self.lm_n_heads if self.lm_head_dim is None else self.lm_head_dim

    @property
    def beyond(self) -> tuple[str, ...]:
        """What nanoVLM can't read of this model: keys of :data:`BEYOND`, and what they say."""
        own = {name: getattr(self, name) for name in BEYOND}
        return tuple(f"{name} = {value}" for name, value in own.items() if value != BEYOND[name])

    @property
    def weights(self) -> int:
        """How many weights the matrices have; vectors such as norms and biases are left out."""
        vit, lm = self.vit_hidden_dim, self.lm_hidden_dim
        patches = (self.vit_img_size // self.vit_patch_size) ** 2
        encoder = vit * (3 * self.vit_patch_size**2 + patches) + self.vit_n_blocks * vit * (
            4 * vit + 2 * self.vit_inter_dim
        )
        projector = vit * self.mp_pixel_shuffle_factor**2 * lm + (lm * lm if self.mp_kind == "mlp" else 0)
        attention = lm * 2 * self.head_dim * (self.lm_n_heads + self.lm_n_kv_heads)
        vocabularies = self.lm_vocab_size * (1 if self.lm_tie_weights else 2)
        return encoder + projector + lm * vocabularies + self.lm_n_blocks * (attention + 3 * lm * self.lm_inter_dim)

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
        for name, kind in (
            ("vit_img_size", int),
            ("vit_patch_size", int),
            ("mp_pixel_shuffle_factor", int),
            ("lm_base_vocab_size", int),
            ("lm_vocab_size", int),
            ("extra_token_amount", int),
            ("vlm_extra_tokens", Mapping),
        ):
            if name in values and (not isinstance(values[name], kind) or isinstance(values[name], bool)):
                wanted = "a whole number" if kind is int else "an object of token names"
                raise InputError(
                    f"config.json has a value of the wrong type: {name} is {name_value(values[name])} and must be "
                    f"{wanted}. Compare it with nanoVLM's."
                )
        factor = values.setdefault("mp_pixel_shuffle_factor", 2)
        if min(values["vit_patch_size"], factor) > 0:
            side = values["vit_img_size"] // values["vit_patch_size"] // factor
            values.setdefault("mp_image_token_length", side * side)
        extra_tokens = len(values["vlm_extra_tokens"])
        values.setdefault("extra_token_amount", extra_tokens)
        vocab_size = values.setdefault("lm_vocab_size", values.get("lm_base_vocab_size", 49152) + extra_tokens)
        values.setdefault("lm_base_vocab_size", vocab_size - values["extra_token_amount"])
        return cls(**values, generation=generation, extra=unknown)

    @classmethod
    def read(cls, path: Path) -> VLMConfig:
        """From a ``config.json``. InputError if the file is missing or is no JSON object."""
        try:
            if (size := path.stat().st_size) > _MOST_BYTES:
                raise InputError(f"{path} has {size:,} bytes; a config.json of nanoVLM's is much smaller, fetch it.")
            text = path.read_text(encoding="utf-8")
            return cls.from_dict(json.loads(text, parse_constant=_refuse_number, parse_float=_read_float))
        except FileNotFoundError:
            raise InputError(f"{path.parent} has no {path.name}; a nanoVLM checkpoint folder holds one.") from None
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror}); check the folder.") from error
        except (ValueError, RecursionError) as error:  # no text, no JSON, a number of 5,000 digits, endless nesting
            raise InputError(f"{path} is not valid JSON ({error}); it may be cut off, fetch it again.") from error

    def to_dict(self) -> dict[str, Any]:
        """The keys that the checkpoint's own version writes, in nanoVLM's order."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["generation"], values["extra"]
        values["vlm_extra_tokens"] = dict(self.vlm_extra_tokens)
        dropped = tuple(name for name, usual in BEYOND.items() if getattr(self, name) == usual)
        if self.generation == "v0.1":
            dropped += (
                "lm_base_vocab_size",
                "extra_token_amount",
                "lm_chat_template",
                "mp_image_token_length",
                "max_img_size",
                "resize_to_max_side_len",
                "vlm_extra_tokens",
                "hf_repo_name",
            )
        elif self.generation == "v0.2":
            dropped += ("max_img_size", "resize_to_max_side_len")
            dropped += ("lm_chat_template",) if self.lm_chat_template is None else ()
        elif self.generation == "2025-07":
            dropped += ("resize_to_max_side_len",)
        for name in dropped:
            del values[name]
        return {**values, **self.extra}


BEYOND = {
    name: VLMConfig.__dataclass_fields__[name].default
    for name in (
        "vit_class_token",
        "vit_pre_norm",
        "vit_post_norm",
        "vit_activation",
        "lm_head_dim",
        "lm_qkv_bias",
        "lm_qk_norm",
        "mp_kind",
    )
}
"""Keys of parts that nanoVLM doesn't have, and what its own are like."""


def _refuse_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


def _read_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value
