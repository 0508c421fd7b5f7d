"""How the Train tab says no."""

from __future__ import annotations

import gradio as gr

from inspector.discretion import hide_paths
from model import InputError


def refuse(error: InputError) -> gr.Error:
    """The sentence, until it is clicked away."""
    return gr.Error(hide_paths(str(error)), duration=None, print_exception=False)
