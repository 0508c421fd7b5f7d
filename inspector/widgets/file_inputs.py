"""Inputs for files that leave nothing of their own behind."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.utils import NamedString
from gradio_client import utils as client_utils

from inspector.server.toasts import refuse


def _take(component: Any, file: Any) -> NamedString:
    """Gradio's own does the same and makes an empty file in its cache for each one that it takes."""
    if component.file_types and not client_utils.is_valid_file(file.path, component.file_types):
        kinds = ", ".join(component.file_types)
        raise refuse(f"A file of another kind came; choose one of these: {kinds}.")
    return NamedString(file.path)


class FileInput(gr.File):
    """``gr.File`` for file paths."""

    is_template = True

    def _process_single_file(self, f: Any) -> Any:
        return _take(self, f)


class FilesButton(gr.UploadButton):
    """``gr.UploadButton`` for file paths."""

    is_template = True

    def _process_single_file(self, f: Any) -> Any:
        return _take(self, f)
