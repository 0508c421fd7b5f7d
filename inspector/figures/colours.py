"""One colour per image and per kind of span, the same everywhere."""

IMAGE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07AA1", "#8C6D1F")
"""Tell-apart colours for colour-blind eyes too (after Okabe & Ito); beyond six they repeat with a pattern."""

KIND_COLOURS = {
    "padding": "#9aa0aa",
    "separator": "#6b7280",
    "special": "#7F63B8",
    "role": "#a58fd0",
    "region": "#4d9de0",
    "image": "#0072B2",
    "text": "#c9a227",
    "answer": "#d1495b",
}


def image_colour(index: int) -> str:
    """The colour of the image with 0-based ``index``."""
    return IMAGE_COLOURS[index % len(IMAGE_COLOURS)]
