"""The errors that a person is shown as one line, without a traceback."""


class ClinstackError(Exception):
    """Something failed while it ran; the command line prints the message and exits with 1."""

    exit_code = 1


class DivergedError(ClinstackError):
    """Training came to a loss that is no number; other settings are needed, not another start."""


class InputError(ClinstackError):
    """The input or the recipe is wrong; the message names file, row or key and the remedy. Exits with 2."""

    exit_code = 2
