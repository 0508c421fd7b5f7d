"""A page that stands for itself: prompt, tokens, answer, verdict and every panel, without a script or a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from inspector.facts import write_json
from inspector.figures.charts import thumbnail
from inspector.figures.colours import image_colour
from inspector.figures.markup import badge, show_answer, show_seen, visible
from inspector.row.ask import Inspection
from inspector.which_image.seen import SeenAnswer

_STYLES = [Path(__file__).parents[1] / "widgets" / name for name in ("page.css", "which_image.css")]
# What Gradio's theme gives the page; a report brings its own, for both grounds.
_LIGHT = (
    "--body-text-color: #0f172a; --body-text-color-subdued: #566070; --border-color-primary: #cbd5e1; "
    "--background-fill-primary: #fff; --background-fill-secondary: #f1f5f9; --color-accent: #1d5fd1"
)
_DARK = (
    "--body-text-color: #eef2f7; --body-text-color-subdued: #a9b2c0; --border-color-primary: #3b4759; "
    "--background-fill-primary: #0f1623; --background-fill-secondary: #1e293b; --color-accent: #7aa7ff"
)
_OWN = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; color: var(--body-text-color); background: var(--background-fill-primary); }
main { max-width: 1040px; margin: 0 auto; padding: 16px; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 14px; margin: 24px 0 4px; text-transform: uppercase; letter-spacing: .06em; color: var(--body-text-color-subdued); }
[data-copy] { cursor: auto; } [data-copy]:hover { text-decoration: none; }
.rp-strip { font: 13px/1.9 ui-monospace, monospace; overflow-wrap: anywhere; } .rp-strip div { margin: 2px 0; }
.rp-strip span { white-space: pre-wrap; border-bottom: 1px solid var(--border-color-primary); margin-right: 2px; padding: 0 1px; }
.rp-strip .rp-special, .rp-strip .rp-role { border-bottom: 2px solid #7F63B8; }
.rp-strip .rp-region { border-bottom: 3px solid var(--image); }
.rp-strip .rp-image { background: color-mix(in srgb, var(--image) 25%, transparent); border-bottom: 2px solid var(--image); padding: 1px 5px; }
.rp-strip .rp-answer { border-bottom: 3px solid var(--body-text-color); font-weight: 600; }
.rp-strip .rp-separator, .rp-strip .rp-padding { border: 1px dashed var(--body-text-color-subdued); }
.rp-pictures { display: flex; flex-wrap: wrap; gap: 16px; } .rp-pictures figure { margin: 0; font-size: 13px; } .rp-pictures .wi-thumb { max-width: 100%; }
pre.rp-json { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; max-height: 480px; overflow-y: auto; }
@media (prefers-color-scheme: dark) { .wi-table .wi-diverging { background: color-mix(in srgb, var(--heat) var(--share), #1b2536); color: #fff; } }
@media print { details > * { display: block; } pre.rp-json { max-height: none; } }
"""  # noqa: E501


def write_report(
    inspection: Inspection,
    *,
    model: str,
    names: Sequence[str],
    turn: int,
    seen: SeenAnswer | None,
    verdict: str,
    panels: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """``model`` says in a line what answered; ``names`` are the images' files; ``verdict`` and ``panels`` are HTML as
    the page shows it; ``facts`` the same as JSON. ``turn`` (from 1) is the one that is explained."""
    asked = inspection.prompt.turns[turn - 1].user
    styles = "\n".join(path.read_text("utf-8") for path in _STYLES)
    pictures = "".join(
        f"<figure>{thumbnail(image.preview, f'image {n + 1}', 240)}<figcaption>{badge(n)} {escape(name)}, "
        f"{image.size[0]}×{image.size[1]}</figcaption></figure>"
        for n, (image, name) in enumerate(zip(inspection.prompt.images, names, strict=True))
    )
    turns = zip(inspection.prompt.turns, inspection.answers, strict=True)
    # Places are left out: nothing on this page could be selected by them.
    answer = show_answer([(one.user, one.assistant, tokens, ()) for one, tokens in turns])
    below = show_seen(() if seen is None else (seen,))
    mask = ", document mask" if inspection.prompt.document_mask else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which image? {escape(asked)}</title>
<style>:root {{ color-scheme: light dark; {_LIGHT}; --font-mono: ui-monospace, monospace }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
{styles}{_OWN}</style></head>
<body><main>
<h1>Which image does the answer rest on?</h1>
<p class="vi-caption">{escape(model)} · #{escape(inspection.fingerprint[:16])} · {len(inspection.row):,} positions</p>
<h2>Verdict</h2>{verdict}
<h2>Prompt and answer</h2><div class="rp-pictures">{pictures}</div>{answer}{below}
<p class="vi-caption">Layout: {escape(inspection.prompt.layout)}{mask}. Turn {turn} is explained.</p>
<h2>Tokens</h2>{show_row(inspection)}
<h2>Tests</h2>{"".join(panels)}
<h2>Numbers</h2><details><summary>Everything above as JSON</summary>
<pre class="rp-json" tabindex="0">{escape(write_json(facts, indent=1))}</pre></details>
</main></body></html>
"""


def show_row(inspection: Inspection) -> str:
    """The row, one line for each message; the tokens of an image's tile are folded to their number."""
    table = inspection.table
    lines: list[list[str]] = [[]]
    message: int | None = None
    for span, title in zip(table.spans, table.titles, strict=True):
        if span.message != message and lines[-1]:
            lines.append([])
        message = span.message
        style = f' style="--image:{image_colour(span.image)}"' if span.image is not None else ""
        if span.kind in ("image", "padding"):
            what = title.removeprefix(f"image {(span.image or 0) + 1} · tile ") if span.kind == "image" else "padding"
            own = badge(span.image) if span.image is not None else ""
            lines[-1].append(
                f'<span class="rp-{span.kind}"{style} title="{escape(title)}, positions {span.start} to '
                f'{span.stop - 1}">{own} {escape(what)} ×{len(span)}</span>'
            )
            continue
        for position in range(span.start, span.stop):
            label = "trained" if table.trained[position] else "not trained"
            lines[-1].append(
                f'<span class="rp-{span.kind}"{style} title="position {position}, id {table.ids[position]}, '
                f'{escape(title)}, {label}">{escape(visible(table.text(position)))}</span>'
            )
    written = "".join("<div>" + "".join(line) + "</div>" for line in lines)
    return f'<div class="rp-strip">{written}</div>'
