"""The language model of a transformers checkpoint behind the same tap as ours: read, cut, patched, and cached.

The text model is run on embeddings that the caller made, under a mask and positions of the caller's. One attention
function, known to transformers by a name, does what :class:`model.language.CausalAttention` does: cuts edges, lets the
reader look, then has PyTorch's kernel do the work, so that reading leaves the output as it is to the last bit. What a
pass is to do travels with the pass as one argument; nothing of it stays in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import InputError
from model.families.checkpoint_files import KNOWN_TEXT
from model.language import KeptKeys, KVCache
from model.masks import Documents, mask_visible
from model.tap import Tap

ATTENTION = "vlm_inspector"
"""The name under which transformers knows our attention."""
_FULL, _SLIDING = "full_attention", "sliding_attention"
_STEADY_ROPE = ("default", "linear", "llama3", "yarn", "proportional")
"""Kinds of rotary angles that don't change with the length of the row."""


@dataclass(frozen=True)
class _Pass:
    """What all layers of one pass share. Of ``documents`` the mask says nothing: they stand for it."""

    tap: Tap | None
    first_query: int
    documents: Documents | None = None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    inspected: _Pass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: rotated ``query [batch head pos d]``, ``key`` and ``value`` ``[batch kv_head
    pos d]``, the ``attention_mask [batch 1 query key]`` of :mod:`model.masks`. Gives ``[batch pos head d]``."""
    assert inspected is not None
    layer = int(cast(int, module.layer_idx))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask, tap, kernel = attention_mask, inspected.tap, F.scaled_dot_product_attention
    if tap is not None:
        kernel = tap.attend
        mask = tap.edit(layer, mask, query.shape[1], inspected.first_query, query.dtype)
        if tap.reader is not None:
            output = cast(nn.Linear, module.o_proj).weight
            tap.reader.observe(query, key, value, mask, scale, output)
    if inspected.documents is not None:
        shared = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
        return inspected.documents.attend(kernel, query, key, value, **shared).transpose(1, 2).contiguous(), None
    causal = mask.dtype == torch.bool  # only the plain causal one is not made additive
    found = kernel(
        query,
        key,
        value,
        attn_mask=None if causal else mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found.transpose(1, 2).contiguous(), None


def register_attention(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Makes ``attention`` known to transformers. Under the same ``name`` as a maker of masks, too: transformers would
    else hand on none, and a layer would see the future."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)


class _CacheView:
    """A :class:`KVCache` as transformers' layers see a cache."""

    is_compileable = False

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        own, theirs = self.cache.append(layer, keys, values)
        # A cache is on one device; the layers of a model that is spread over several are not.
        return own.to(keys.device), theirs.to(keys.device)

    def get_seq_length(self, layer: int = 0) -> int:
        return self.cache.length


class TextModel:
    """``model``: transformers' text model, with ``layers``, ``norm`` and ``rotary_emb``; ``head`` makes logits of its
    states. InputError for one whose attention is of a kind that can't be cut or read."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        self.model, self.head = model, head
        self.config = cast(Any, model).config
        self.layers = cast(nn.ModuleList, model.layers)
        kinds = set(getattr(self.config, "layer_types", None) or (_FULL,))
        name = self.config.model_type
        if other := sorted(kinds - {_FULL, _SLIDING}):
            raise InputError(
                f"The language model ({name}) has layers of {', '.join(other)}, where no edge of attention can be cut; "
                f"it can't be inspected here, {KNOWN_TEXT}."
            )
        attentions = [getattr(layer, "self_attn", None) for layer in self.layers]
        if any(not isinstance(getattr(one, "o_proj", None), nn.Linear) for one in attentions) or getattr(
            self.config, "attn_logit_softcapping", None
        ):
            raise InputError(f"The language model ({name}) has a kind of attention that isn't read here; {KNOWN_TEXT}.")
        self.n_layers, self.n_heads = len(self.layers), int(self.config.num_attention_heads)
        self.n_kv_heads = int(getattr(self.config, "num_key_value_heads", None) or self.n_heads)
        self.width = int(self.config.hidden_size)
        self.head_dim = int(getattr(self.config, "head_dim", None) or self.width // self.n_heads)
        window = getattr(self.config, "sliding_window", None)
        slides = _SLIDING in kinds or (getattr(self.config, "layer_types", None) is None and window)
        self.window: int | None = int(window) if slides and window else None
        self.mixed = len(kinds) > 1
        self.norm = _check_ends(name, cast(Any, model), head, self.width)
        register_attention(ATTENTION, attend)
        self.config._attn_implementation = ATTENTION
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(_patch_before(index), with_kwargs=True)
            # What stands between attention and MLP is what the MLP's norm is given; a norm isn't told of the pass.
            between = getattr(layer, "pre_feedforward_layernorm", None) or layer.post_attention_layernorm
            cast(nn.Module, between).register_forward_pre_hook(_own(_keep_middle))
            layer.register_forward_hook(_observe(index), with_kwargs=True)
        self.layers[-1].register_forward_hook(_patch_behind(self.n_layers), with_kwargs=True)

    def new_cache(self, positions: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        return KVCache(
            layers=self.n_layers,
            kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            batch=1,
            capacity=positions,
            device=device,
            dtype=dtype,
        )

    def run(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        visible: Tensor | Documents,
        cache: KVCache | None = None,
        tap: Tap | None = None,
        **more: Any,
    ) -> Tensor:
        """See :meth:`model.families.protocol.InspectableVLM.decode`; ``more`` goes to the text model as it is. Without
        a cache there may be several rows: ``embeds [batch pos width]``, ``position_ids [axes batch pos]``, ``visible
        [batch 1 pos pos]``; or documents in one flat row, none longer than a window of the model's."""
        masks: Tensor | dict[str, Tensor]
        if isinstance(visible, Documents):
            inspected = _Pass(tap, 0, visible)
            # Without any mask transformers would make one.
            none = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds.device)
            masks = {_FULL: none, _SLIDING: none} if self.mixed else none
        else:
            count, keys = visible.shape[-2:]
            places = self._place_keys(position_ids, cache, keys)
            masks = self._make_masks(visible, position_ids[0], places, embeds)
            inspected = _Pass(tap, keys - count)
        positions = position_ids.to(embeds.device)
        if positions.ndim == 2:
            positions = positions[:, None]
        reads = _READS.set(tap is not None and tap.states is not None)
        try:
            output = self.model(
                inputs_embeds=embeds,
                attention_mask=masks,
                # [batch pos], or [axes batch pos] where positions have several axes.
                position_ids=positions[0] if len(positions) == 1 else positions,
                past_key_values=None if cache is None else _CacheView(cache),
                use_cache=cache is not None,
                inspected=inspected,
                **more,
            )
        finally:
            _READS.reset(reads)
            _MIDDLE.set(None)
        if cache is not None and not isinstance(cache, KeptKeys):
            cache.length += embeds.shape[1]
        hidden: Tensor = output.last_hidden_state
        return hidden

    @property
    def shifts(self) -> bool:
        """Whether what a row means stays the same where all of it stands further on."""
        kind: Any = getattr(self.model.rotary_emb, "rope_type", "default")
        kinds = kind.values() if isinstance(kind, Mapping) else (kind,)
        return all(one in _STEADY_ROPE for one in kinds)

    def rotate_keys(self, keys: Tensor, by: int) -> Tensor:
        """See :meth:`model.families.protocol.InspectableVLM.rotate_keys`."""
        rope: Any = self.model.rotary_emb
        if isinstance(getattr(rope, "rope_type", None), Mapping):  # each kind of layer has its own angles
            kinds = self.config.layer_types
            return torch.stack([self._rotate(one, by, kind) for one, kind in zip(keys, kinds, strict=True)])
        return self._rotate(keys, by)

    def _rotate(self, keys: Tensor, by: int, layer_kind: str | None = None) -> Tensor:
        """``keys [… pos d]`` of layers that share their angles; ``layer_kind`` where others have others."""
        rope: Any = self.model.rotary_emb
        kind: Any = getattr(rope, "rope_type", "default")
        if layer_kind is not None:
            kind = kind[layer_kind]
        if not isinstance(kind, str) or kind not in _STEADY_ROPE:
            raise ValueError(f"The rotary angles of this model are of the kind {kind}, by which keys can't be moved.")
        axes = 3 if getattr(rope, "mrope_section", None) else 1
        places = torch.full((axes, 1, 1) if axes > 1 else (1, 1), by, device=keys.device)
        cos, sin = rope(keys.float(), places) if layer_kind is None else rope(keys.float(), places, layer_kind)
        # The scheme may scale what it turns; keys that are cached are scaled already.
        scale = float(
            getattr(rope, "attention_scaling" if layer_kind is None else f"{layer_kind}_attention_scaling", 1.0)
        )
        cos, sin = cos.reshape(-1, cos.shape[-1])[-1] / scale, sin.reshape(-1, sin.shape[-1])[-1] / scale
        turned, rest = keys[..., : len(cos)].float(), keys[..., len(cos) :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
        return torch.cat((turned.to(keys.dtype), rest), dim=-1)

    def watch(self, before_block: Callable[[], None], others: Sequence[nn.Module]) -> None:
        """Has ``before_block`` called before every layer and every one of ``others``."""
        for block in (*others, *self.layers):
            block.register_forward_pre_hook(_own(lambda *_: before_block()))

    def _place_keys(self, position_ids: Tensor, cache: KVCache | None, keys: int) -> Tensor:
        """``[key]``: rotary positions of all keys, the pass's own written down in the cache."""
        if cache is None:
            return position_ids[0].cpu()
        if not isinstance(cache, KeptKeys):
            cache.positions[cache.length : cache.length + position_ids.shape[1]] = position_ids[0].cpu()
        return cache.positions[:keys]

    def _make_masks(
        self, visible: Tensor, queries: Tensor, places: Tensor, embeds: Tensor
    ) -> Tensor | dict[str, Tensor]:
        def mask(seen: Tensor) -> Tensor:
            return mask_visible(seen, embeds.dtype, embeds.device)

        if self.window is None:
            return mask(visible)
        near = (queries.cpu()[..., :, None] - places[..., None, :]) < self.window
        if near.ndim == 3:
            near = near[:, None]
        sliding = mask(visible & near.to(visible.device))
        return {_FULL: mask(visible), _SLIDING: sliding} if self.mixed else sliding


def _check_ends(name: str, model: Any, head: nn.Module, width: int) -> nn.Module:
    """The last norm. InputError where it, the head, or a layer's norm of the MLP isn't where a lens needs it."""
    norm = getattr(model, "norm", None)
    weight = getattr(norm, "weight", None)
    if not isinstance(norm, nn.Module) or weight is None or tuple(weight.shape) != (width,):
        raise InputError(
            f"The language model ({name}) has no last norm of its {width} numbers a position; its states can't be put "
            "into words, so it can't be inspected here."
        )
    if not isinstance(head, nn.Linear) or head.in_features != width:
        raise InputError(
            f"The language model ({name}) has no linear head on its {width} numbers a position; its states can't be "
            "put into words, so it can't be inspected here."
        )
    for layer in model.layers:
        before_mlp = any(hasattr(layer, key) for key in ("pre_feedforward_layernorm", "post_attention_layernorm"))
        # A norm behind the MLP and none before it: the one behind attention isn't given the residual either (OLMo 2).
        norms_behind = hasattr(layer, "post_feedforward_layernorm") and not hasattr(layer, "pre_feedforward_layernorm")
        if not before_mlp or norms_behind:
            raise InputError(
                f"The language model ({name}) has layers without a norm before the MLP; what attention and MLP add "
                "can't be told apart, so it can't be inspected here."
            )
    return norm


_MIDDLE: ContextVar[Tensor | None] = ContextVar("middle", default=None)
"""Of the layer that this thread computes: passes of several threads go through the same layers."""
_READS: ContextVar[bool] = ContextVar("reads", default=False)


def _keep_middle(_: nn.Module, args: tuple[Any, ...]) -> None:
    if _READS.get():
        _MIDDLE.set(args[0])


def _observe(layer: int) -> Callable[..., Any]:
    def observe(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inspected = kwargs.get("inspected")
        if inspected is None or inspected.tap is None or inspected.tap.states is None:
            return
        middle = _MIDDLE.get()
        assert middle is not None
        after = output[0] if isinstance(output, tuple) else output
        inspected.tap.states.observe(layer, args[0], middle, after)

    return _own(observe)


def _patch_before(layer: int) -> Callable[..., Any]:
    def patch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inspected = kwargs.get("inspected")
        if inspected is None or inspected.tap is None or not inspected.tap.patches:
            return None
        return (inspected.tap.replace(layer, args[0], inspected.first_query), *args[1:]), kwargs

    return _own(patch)


def _patch_behind(layer: int) -> Callable[..., Any]:
    def patch(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        inspected = kwargs.get("inspected")
        if inspected is None or inspected.tap is None or not inspected.tap.patches:
            return None
        if isinstance(output, tuple):
            return (inspected.tap.replace(layer, output[0], inspected.first_query), *output[1:])
        return inspected.tap.replace(layer, output, inspected.first_query)

    return _own(patch)


def _own(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a hook as one of this module's; transformers hangs some of its own on the same blocks."""
    hook.inspects = True  # type: ignore[attr-defined]
    return hook


def forget_hooks(model: nn.Module) -> None:
    """Takes the hooks of this module off a copy of a model, which came along."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "inspects", False)]:
                del hooks[key]
