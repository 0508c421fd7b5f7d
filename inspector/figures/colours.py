"""One colour per image and per kind of span, the same everywhere."""

IMAGE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A65628", "#A23E8C")
"""Told apart by colour-blind eyes too: the first four are Okabe & Ito's, the others are as far from them as two colours
can be that stand out from the light and the dark page. Beyond six they repeat with a pattern."""

KIND_COLOURS = {
    "padding": "#9aa0aa",
    "separator": "#6b7280",
    "special": "#7F63B8",
    "role": "#a58fd0",
    "region": "#8d99ae",
    "text": "#64748b",
    "answer": "#64748b",
}
"""Image tokens have the colour of their image."""
KIND_PATTERNS = {"padding": ".", "separator": "-", "region": "x", "answer": "/"}
"""Beside the colour, so that no two kinds look alike."""
HUE = "224,0,122"
"""Of heat, as red, green and blue: more of it covers more, and nothing of it is clear."""
DEEPEST = 0.6
"""So opaque is the largest share in a table: the numbers on it stay readable in both themes."""


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on ``colour`` (#rrggbb): its contrast is at least 4.58 (WCAG 2)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return "#000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#fff"


def image_colour(index: int) -> str:
    """The colour of the image with 0-based ``index``."""
    return IMAGE_COLOURS[index % len(IMAGE_COLOURS)]
