"""How nanoVLM writes a conversation: chat template, tile markers, and the plain prompt of its first versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerFast

from model.chat import ImagePiece, Message
from model.config import VLMConfig
from model.errors import InputError
from model.image import ProcessedImage


class NanoVLMChat:
    """See :class:`model.chat.ChatFormat`.

    Checkpoints before June 2025 have no image token (their images are put before the text as embeddings); theirs is
    the first id beyond the vocabulary.
    """

    image_text = ""
    opening_ids: tuple[int, ...] = ()

    def __init__(self, config: VLMConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._special = tokenizer.get_added_vocab()
        image_token = config.image_token
        self.image_token_id: int = config.lm_vocab_size if image_token is None else self._special[image_token]
        eos = config.extra.get("lm_eos_token_id") if config.lm_chat_template is None else None
        self.eos_token_id: int = tokenizer.eos_token_id if eos is None else int(eos)
        self._template = None
        if config.lm_chat_template is not None:
            environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
            try:
                self._template = environment.from_string(config.lm_chat_template)
            except TemplateError as error:
                raise InputError(f"lm_chat_template in config.json is no valid template ({error}).") from error

    @property
    def max_positions(self) -> int:
        return self.config.lm_max_position_embeddings

    @property
    def placement(self) -> Literal["template", "message", "row"]:
        # The plain prompt has no place for images: they come before all of it.
        return "row" if self._template is None else "message"

    def write(self, messages: Sequence[Message], slots: Sequence[str], add_generation_prompt: bool) -> str:
        if self._template is None:
            # nanoVLM up to June 2025; the end token is written by its name so that it is found like the template's.
            eos = str(self.tokenizer.convert_ids_to_tokens(self.eos_token_id))
            formats = {"user": "Question: {} Answer:", "assistant": "{}" + eos, "system": "{} "}
            return "".join(formats[message.role].format(slot) for message, slot in zip(messages, slots, strict=True))
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": slot} for m, slot in zip(messages, slots, strict=True)],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.tokenizer.bos_token or "",
                eos_token=self.tokenizer.eos_token,
            )
        except TemplateError as error:
            raise InputError(f"lm_chat_template in config.json can't render this conversation ({error}).") from error

    def trims(self, messages: Sequence[Message]) -> tuple[tuple[bool, bool], ...]:
        return ((False, False),) * len(messages)  # upstream's template writes what it is given

    def write_image(self, image: ProcessedImage, index: int, several: bool) -> list[ImagePiece]:
        def run(tile: int) -> ImagePiece:
            return ImagePiece("image", tile, ids=(self.image_token_id,) * self.config.tokens_per_tile)

        def marker(token: str, tile: int) -> ImagePiece:
            return ImagePiece("region", tile, token, (self._special[token],))

        if not self.config.splits_images:
            return [run(0)]
        pieces = [ImagePiece("region", None, f"<image: {index}>")] if several else []
        rows, cols = image.grid
        if self.config.global_image_token is not None:
            pieces += [marker(self.config.global_image_token, 0), run(0)]
        if (rows, cols) == (1, 1) and self.config.global_image_token is not None:
            return pieces  # the only tile is the thumbnail
        for row in range(rows):
            for col in range(cols):
                tile = row * cols + col + image.has_thumbnail
                pieces += [marker(self.config.region_token(row, col), tile), run(tile)]
        return pieces
