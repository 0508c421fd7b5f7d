"""A readable nanoVLM-compatible vision-language model: data, network, generation, checkpoints.

Names exported here keep their meaning; everything else may change.
"""

from model.chat import Conversation, Message
from model.checkpoint import load_vlm, plan_memory, read_kind, save_vlm
from model.collator import Batch, collate
from model.config import VLMConfig
from model.errors import InputError
from model.families.nanovlm import VLM
from model.families.protocol import InspectableVLM
from model.generate import Step
from model.image import Box, ImagePlan, OpenedImage, ProcessedImage, open_image, plan_image, process_image
from model.memory import MemoryNeed
from model.packing import pack_samples
from model.sample import Row, Sample, Span, TokenGrid
from model.tap import (
    STREAMS,
    ActivationPatch,
    AttentionReader,
    AttentionReading,
    ColumnReader,
    Cut,
    StateReader,
    StretchReader,
    Tap,
)

__all__ = [
    "STREAMS",
    "VLM",
    "ActivationPatch",
    "AttentionReader",
    "AttentionReading",
    "Batch",
    "Box",
    "ColumnReader",
    "Conversation",
    "Cut",
    "ImagePlan",
    "InputError",
    "InspectableVLM",
    "MemoryNeed",
    "Message",
    "OpenedImage",
    "ProcessedImage",
    "Row",
    "Sample",
    "Span",
    "StateReader",
    "Step",
    "StretchReader",
    "Tap",
    "TokenGrid",
    "VLMConfig",
    "collate",
    "load_vlm",
    "open_image",
    "pack_samples",
    "plan_image",
    "plan_memory",
    "process_image",
    "read_kind",
    "save_vlm",
]
