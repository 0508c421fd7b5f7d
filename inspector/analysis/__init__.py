"""Tensors in, frozen results out; no gradio and no plotting here."""
