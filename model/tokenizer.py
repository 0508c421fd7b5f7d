"""Loading a tokenizer, and encoding text that a person typed so that it can never become a special token."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from model.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def load_tokenizer(
    source: str | Path, extra_tokens: Mapping[str, str], *, lend_pad: bool = False
) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder that holds ``tokenizer.json``, or of a hub id, with ``extra_tokens`` (name → token)
    appended in their order, as nanoVLM does; each is then an attribute, ``tokenizer.image_token_id``.

    ``PreTrainedTokenizerFast`` is used whatever class the folder names: under transformers 5 the class that SmolLM2's
    names (GPT2Tokenizer) drops the rule that splits digits. ``lend_pad``: one without a padding token pads with its end
    token, as nanoVLM's does. InputError if there is none or it can't be read.
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
    if lend_pad and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise InputError(
            f"The tokenizer of “{source}” has no end or padding token; name eos_token and pad_token in "
            "tokenizer_config.json."
        )
    return tokenizer


def check_letters(text: str) -> None:
    """InputError for half of a surrogate pair and for control characters (Unicode's Cc but for tabs and line ends): no
    tokenizer was taught them, some end the program, and in a text they are the trace of a fault."""
    if text.isprintable() or (found := NO_LETTER.search(text)) is None:  # the first is told faster
        return
    code = ord(found[0])
    what = "half of a surrogate pair" if 0xD800 <= code < 0xE000 else "a control character"
    raise InputError(f"The text holds U+{code:04X} at letter {found.start() + 1:,}, {what} and no letter; take it out.")


NO_LETTER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class TextEncoder:
    """Encodes plain text: a typed ``<|image|>`` stays the characters ``<|image|>``.

    Works on a copy of the tokenizer without its added tokens, so that there is nothing in it that could match them;
    only runs of blanks that a vocabulary has as added tokens stay, which are no special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        blank = [token for token in definition["added_tokens"] if not token["content"].strip(" \n\t\r▁")]
        # Bytes that a vocabulary lacks become the unknown token, which is no more special than other text.
        unknown = definition["model"].get("unk_token")
        harmless = {token["id"] for token in blank} | {definition["model"].get("unk_id")}
        harmless |= {tokenizer.convert_tokens_to_ids(unknown)} if unknown else set()
        self._special_ids = frozenset(token["id"] for token in definition["added_tokens"]) - harmless
        definition["added_tokens"] = [token for token in blank if not token["special"]]
        definition["post_processor"] = None
        definition["padding"] = definition["truncation"] = None
        # Only the plain pieces may be produced; a special token that is part of the vocabulary must have no merge.
        self._tokenizer = Tokenizer.from_str(json.dumps(definition))
        self._first = self._tokenizer
        if _drop_first_blank(definition["pre_tokenizer"]):
            self._tokenizer = Tokenizer.from_str(json.dumps(definition))

    def encode(self, text: str, *, at_start: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the half-open range of characters that each covers. ``at_start``: the text begins a row; some
        tokenizers put a blank before that. InputError if a special token came out, which a vocabulary with merges for
        its own special tokens would allow, or as :func:`check_letters`."""
        check_letters(text)
        encoding = (self._first if at_start else self._tokenizer).encode(text, add_special_tokens=False)
        if self._special_ids.intersection(encoding.ids):
            raise InputError("This tokenizer turns plain text into a special token; its merges must not build one.")
        return encoding.ids, encoding.offsets


def _drop_first_blank(pre_tokenizer: Any) -> bool:
    """Changes the definition of a pre-tokenizer so that it puts no blank before a text that it takes for the first of
    a row; whether there was anything to change."""
    if not isinstance(pre_tokenizer, dict):
        return False
    if pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") == "first":
        pre_tokenizer["prepend_scheme"] = "never"
        return True
    changed = [_drop_first_blank(one) for one in pre_tokenizer.get("pretokenizers", [])]
    return any(changed)


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Text of ``ids``, special tokens written out, blanks as they are."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_text(tokenizer: PreTrainedTokenizerFast, token_id: int) -> str:
    """One token as text. Bytes that are no whole character are written ⟨0xE6⟩, ids beyond the vocabulary ⟨id⟩."""
    token: object = tokenizer.convert_ids_to_tokens(token_id)
    if not isinstance(token, str):
        return f"⟨{token_id}⟩"
    text = decode(tokenizer, [token_id])
    if token.startswith("▁") and not text.startswith(" "):
        text = f" {text}"  # SentencePiece's decoder takes the first blank of a text away
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
