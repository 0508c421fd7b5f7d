"""Measuring what never was trained on."""
