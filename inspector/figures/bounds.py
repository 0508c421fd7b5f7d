"""What this server gives, for the foot of the page."""

from __future__ import annotations

from dataclasses import fields
from html import escape

from inspector.bounds import Bounds, format_bound


def show_bounds(bounds: Bounds) -> str:
    """A table of every bound, folded."""
    rows = "".join(
        f"<tr><td>{escape(f.metadata['what'])}</td>"
        f"<td>{escape(format_bound(getattr(bounds, f.name), f.metadata['unit']))}</td></tr>"
        for f in fields(bounds)
    )
    return (
        '<details class="vi-caption"><summary>What this server gives, and how long it keeps what</summary>'
        '<div class="vi-scroll" tabindex="0" role="region" aria-label="Bounds of this server"><table class="vi-table">'
        f"<thead><tr><th>what</th><th>bound</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
