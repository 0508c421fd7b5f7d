"""A conversation in the chat template that lies beside a transformers checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from model.chat import ImagePiece, Message
from model.errors import InputError
from model.image import ProcessedImage


class TemplateChat:
    """See :class:`model.chat.ChatFormat`. The template is rendered by the tokenizer, in transformers' sandbox; it
    writes ``image_text`` for each image. ``write_image``: what stands there in the row."""

    placement: Literal["template"] = "template"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: str,
        *,
        image_text: str,
        image_token_id: int,
        eos_token_id: int,
        max_positions: int,
        write_image: Callable[[ProcessedImage], list[ImagePiece]],
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.image_text, self.image_token_id = image_text, image_token_id
        self.eos_token_id, self.max_positions = eos_token_id, max_positions
        self._write_image = write_image
        bos = tokenizer.bos_token
        begun = bos is not None and self.write([Message("user", "")], [""], True).startswith(bos)
        # A template that writes the beginning itself is not given it twice.
        self.opening_ids: tuple[int, ...] = () if begun else _opening_ids(tokenizer)

    def write(self, messages: Sequence[Message], slots: Sequence[str], add_generation_prompt: bool) -> str:
        parts = [
            {"role": m.role, "content": [*({"type": "image"} for _ in m.images), {"type": "text", "text": slot}]}
            for m, slot in zip(messages, slots, strict=True)
        ]
        failed: Exception | None = None
        try:
            text = self._render(parts, add_generation_prompt)
            if "'type':" not in text:  # else a template for texts wrote the list as Python does
                return text
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            failed = error
        plain = [
            {"role": m.role, "content": self.image_text * len(m.images) + slot}
            for m, slot in zip(messages, slots, strict=True)
        ]
        try:
            return self._render(plain, add_generation_prompt)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InputError(
                f"The checkpoint's chat template can't render this conversation ({failed or error})."
            ) from error

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )

    def trims(self, messages: Sequence[Message]) -> tuple[tuple[bool, bool], ...]:
        # A stand-in with blanks around it shows whether they stay. Blanks of two kinds: the template's own text beside
        # it ends with one of a kind at most.
        slots = [f"\n \ue000{index}\ue001 \n" for index in range(len(messages))]
        text = self.write(messages, slots, False)
        return tuple(
            (f"\n \ue000{index}\ue001" not in text, f"\ue000{index}\ue001 \n" not in text)
            for index in range(len(messages))
        )

    def write_image(self, image: ProcessedImage, index: int, several: bool) -> list[ImagePiece]:
        return self._write_image(image)


def _opening_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """What the tokenizer puts before a text by itself."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole)):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()
