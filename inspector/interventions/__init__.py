"""Changing what one answer was computed from: continuations, image ablation, attention knockout."""
