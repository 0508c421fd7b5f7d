"""The one exception that means "what came in is not usable"."""


class InputError(ValueError):
    """Bad input from a person or a file.

    Its message is one sentence that says what came, what is allowed and what to do; the app shows it as it is and
    the command line prints it and exits with status 2.
    """


class TooLongError(InputError):
    """A prompt has more tokens than the model reads."""
