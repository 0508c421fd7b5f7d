"""Prompts whose truth is known, run and scored."""
