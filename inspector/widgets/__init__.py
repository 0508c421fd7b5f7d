"""Parts of the page that Gradio has no component for. Data goes in as JSON, the drawing happens in the browser."""

from inspector.widgets.components import EditBoard, HeadBoard, ImageViewer, Readout, TokenStrip, encode
from inspector.widgets.file_inputs import FileInput, FilesButton
from inspector.widgets.loss_chart import LossChart
from inspector.widgets.panel import ChoiceBoard, Panel, PatchPicker
from inspector.widgets.sight import Sight, answer_sight

__all__ = [
    "ChoiceBoard",
    "EditBoard",
    "FileInput",
    "FilesButton",
    "HeadBoard",
    "ImageViewer",
    "LossChart",
    "Panel",
    "PatchPicker",
    "Readout",
    "Sight",
    "TokenStrip",
    "answer_sight",
    "encode",
]
