"""The one exception that means "what came in is not usable"."""


class InputError(ValueError):
    """Bad input from a person or a file.

    Its message is one sentence that says what came, what is allowed and what to do; the app shows it as it is and
    the command line prints it and exits with status 2.
    """


def name_value(value: object) -> str:
    """A value of any kind and size, as short as a sentence can hold."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str | bytes | list | tuple | dict | set) and len(value) > 40:
        return f"a {type(value).__name__} of {len(value):,}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"
