"""Loading a tokenizer, and encoding text that a person typed so that it can never become a special token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from model.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def load_tokenizer(source: str | Path, extra_tokens: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder that holds ``tokenizer.json``, or of a hub id, with ``extra_tokens`` (name → token)
    appended in their order, as nanoVLM does; each is then an attribute, ``tokenizer.image_token_id``.

    ``PreTrainedTokenizerFast`` is used whatever class the folder names: under transformers 5 the class that SmolLM2's
    names (GPT2Tokenizer) drops the rule that splits digits. InputError if there is none or it can't be read.
    """
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            str(source), extra_special_tokens=dict(extra_tokens), local_files_only=Path(source).is_dir()
        )
    except Exception as error:  # the hub, the file system and the parser each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"No tokenizer could be read from “{source}” ({reason}); put its tokenizer.json there."
        ) from error
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise InputError(
            f"The tokenizer of “{source}” has no end or padding token; name eos_token and pad_token in "
            "tokenizer_config.json."
        )
    return tokenizer


class TextEncoder:
    """Encodes plain text: a typed ``<|image|>`` stays the characters ``<|image|>``.

    Works on a copy of the tokenizer without its added tokens, so that there is nothing in it that could match them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        self._special_ids = frozenset(token["id"] for token in definition["added_tokens"])
        definition["added_tokens"] = []
        definition["post_processor"] = None
        definition["padding"] = definition["truncation"] = None
        # Only the plain pieces may be produced; a special token that is part of the vocabulary must have no merge.
        self._tokenizer = Tokenizer.from_str(json.dumps(definition))

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the half-open range of characters that each covers. InputError if a special token came out, which
        a vocabulary with merges for its own special tokens would allow."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if self._special_ids.intersection(encoding.ids):
            raise InputError("This tokenizer turns plain text into a special token; its merges must not build one.")
        return encoding.ids, encoding.offsets


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Text of ``ids``, special tokens written out, blanks as they are."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_text(tokenizer: PreTrainedTokenizerFast, token_id: int) -> str:
    """One token as text. Bytes that are no whole character are written ⟨0xE6⟩, ids beyond the vocabulary ⟨id⟩."""
    token: object = tokenizer.convert_ids_to_tokens(token_id)
    if not isinstance(token, str):
        return f"⟨{token_id}⟩"
    text = decode(tokenizer, [token_id])
    if "\ufffd" not in text:
        return text
    raw = bytes(_BYTE_OF_SYMBOL[symbol] for symbol in token if symbol in _BYTE_OF_SYMBOL)
    return "".join(f"⟨0x{byte:02X}⟩" if byte >= 0x80 else chr(byte) for byte in raw) or text


def _byte_symbols() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte: printable Latin-1 stands for itself, the others are
    moved to 256 and up in order (Radford et al. 2019)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_SYMBOL = _byte_symbols()
