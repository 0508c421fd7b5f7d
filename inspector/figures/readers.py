"""Which later tokens look at a token, layer by layer, as a page part."""

from __future__ import annotations

from html import escape

from inspector.figures.colours import DEEPEST, HUE
from inspector.figures.markup import badge, describe_token, show_share, visible
from inspector.row.attention import TOP_READERS, ReaderMap, mean_of
from inspector.row.token_table import TokenTable

NO_READER = "No later token can look at"


def name_tokens(table: TokenTable, first: int, last: int) -> str:
    """One token, or a stretch of them, as escaped HTML."""
    if first == last:
        return describe_token(table, last)
    return f"tokens {first} to {last} ({last - first + 1} of them)"


def tell_readers(
    table: TokenTable, readers: ReaderMap, layer: int | None = None, head: int | None = None, where: str = ""
) -> str:
    """How much later tokens give it, and which give most; ``where`` names the layer and head."""
    whose = name_tokens(table, readers.first, readers.position)
    if not readers.readers:
        return f"<p>{NO_READER} {whose}.</p>"
    named = f" ({where})" if where else ""
    top = ", ".join(
        f"{describe_token(table, one.position)} <span data-copy>{show_share(one.share)}</span>"
        for one in readers.find_top(TOP_READERS, layer, head)
    )
    return (
        f"<p>Later tokens that can look at {whose}: {len(readers.readers):,}. On average each gives it "
        f"<b data-copy>{show_share(mean_of(readers.received, layer, head))}</b> of its attention{named}.</p>"
        f'<p class="vi-caption">Most: {top}. What a token gives is mixed into it; whether the answer needs it, only '
        "cutting edges can show.</p>"
    )


def show_readers(table: TokenTable, readers: ReaderMap) -> str:
    """:func:`tell_readers`, then a line for each layer: what each kind of reader gives, and who gives most."""
    said = tell_readers(table, readers, where="mean over layers and heads")
    if not readers.readers:
        return said
    head = "".join(f"<th scope=col>{_name_kind(kind)}</th>" for kind in readers.kinds)
    top = max(float(readers.received_kinds.max()), 1e-9)
    lines = "".join(
        f"<tr><th scope=row>{layer}</th>{''.join(_show_cell(share, top) for share in shares)}"
        f"<td>{_show_top(table, readers, layer)}</td></tr>"
        for layer, shares in enumerate(readers.received_kinds.tolist())
    )
    return (
        f'{said}<div class="vi-scroll" tabindex="0" role="region" aria-label="readers by layer">'
        '<table class="vi-table"><thead><tr><th scope=col>layer</th>'
        f"{head}<th scope=col>gives most</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _name_kind(kind: str) -> str:
    image = kind.removeprefix("image ")
    return badge(int(image) - 1) if image.isdigit() else escape(kind)


def _show_cell(share: float, top: float) -> str:
    alpha = DEEPEST * share / top
    return f'<td class="num" style="background:rgba({HUE},{alpha:.3f})"><span data-copy>{show_share(share)}</span></td>'


def _show_top(table: TokenTable, readers: ReaderMap, layer: int) -> str:
    best = readers.find_top(1, layer)[0]
    text = f"<code>{escape(visible(table.text(best.position)))}</code> at {best.position}"
    return (
        f'<button type="button" class="vi-token" data-vlm-position="{best.position}">{text}</button> '
        f"<small>{show_share(best.share)}</small>"
    )
