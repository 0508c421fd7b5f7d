"""Fixtures of tiny checkpoints of other families (see tests/tiny_checkpoints.py)."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.processing_utils import ProcessorMixin

from tests.tiny_checkpoints import (
    STRING_CHAT,
    TRIMMING_CHAT,
    Tiny,
    build_idefics3,
    build_llava,
    write_checkpoint,
)


@pytest.fixture(scope="session", autouse=True)
def processors_without_video() -> Iterator[None]:
    """Processors with a video part ask for torchvision's classes and for words for numbers; images need neither."""
    from transformers.models.smolvlm import processing_smolvlm

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda self, *_, **__: None)
        patched.setattr(processing_smolvlm, "num2words", str)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield


@pytest.fixture(scope="session")
def byte_tokenizer(golden: Path) -> Callable[[list[str]], Any]:
    """A byte-level tokenizer of 1,024 tokens with more special tokens."""

    def make(extra: list[str]) -> Any:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(golden / "tiny_tokenizer")
        tokenizer.add_special_tokens({"additional_special_tokens": extra})
        return tokenizer

    return make


@pytest.fixture(scope="session")
def piece_tokenizer() -> Callable[[str], Any]:
    """Like Llama's: pieces with ▁ for blanks, one before the text, unknown characters as bytes, <s> put before a
    text."""

    def make(scheme: str) -> Any:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
        words = "USER: What colour is it? ASSISTANT: The shape is red. And this? 0 1 2 3 4 5 6 7 8 9"
        tokenizer.train_from_iterator([words] * 20, trainer)
        # Bytes are pieces like others; only the first three are special.
        state = json.loads(tokenizer.to_str())
        state["added_tokens"] = state["added_tokens"][:3]
        tokenizer = Tokenizer.from_str(json.dumps(state))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
        )
        fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
        return fast

    return make


@pytest.fixture(scope="session")
def tiny(
    tmp_path_factory: pytest.TempPathFactory,
    byte_tokenizer: Callable[[list[str]], Any],
    piece_tokenizer: Callable[[str], Any],
) -> Callable[[str], Tiny]:
    """Checkpoints by name, each made at first use: the families, and other shapes of them."""
    builders: dict[str, Callable[[], tuple[Any, Any]]] = {
        "idefics3": lambda: build_idefics3(byte_tokenizer),
        "smolvlm": lambda: build_idefics3(byte_tokenizer, smol=True, tie_word_embeddings=True),
        "idefics3 trims": lambda: build_idefics3(byte_tokenizer, chat=TRIMMING_CHAT, num_attention_heads=8),
        "idefics3 few marks": lambda: build_idefics3(byte_tokenizer, rows=2, num_key_value_heads=4),
        "llava": lambda: build_llava(piece_tokenizer("first")),
        "llava always": lambda: build_llava(piece_tokenizer("always"), strategy="full", num_key_value_heads=1),
        "llava text": lambda: build_llava(byte_tokenizer(["<image>"]), chat=STRING_CHAT),
    }

    @cache
    def make(name: str) -> Tiny:
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        model, processor = builders[name]()
        write_checkpoint(model, processor, folder)
        return Tiny(folder, model, processor)

    return make


@pytest.fixture(
    params=["idefics3", "smolvlm", "idefics3 trims", "idefics3 few marks", "llava", "llava always", "llava text"]
)
def any_tiny(request: pytest.FixtureRequest, tiny: Callable[[str], Tiny]) -> Tiny:
    """Every checkpoint in turn."""
    return tiny(request.param)


@pytest.fixture
def copy_of(tiny: Callable[[str], Tiny], tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint folder that a test may spoil."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(tiny(name).folder, tmp_path / "copy"))

    return make
