"""Why the server did not answer a request. None of the messages holds a word of a note."""

from __future__ import annotations

from clinstack.errors import ClinstackError


class QueueFull(ClinstackError):  # noqa: N818 - named as what the client is told
    """More waits than can be answered in time; nothing of the request was computed.

    Attributes
    ----------
    retry_after : float
        Seconds after which there is room, at the measured speed and if nobody else asks.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"The server is busy; try again in {retry_after:.1f} seconds.")
        self.retry_after = retry_after


class RequestTooLarge(ClinstackError):  # noqa: N818 - named as what the client is told
    """One request has more tokens than the whole queue takes; to wait would not help."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"The request comes to {tokens:,} tokens over all its notes and tasks; the server takes {limit:,} at most. "
            "Send fewer notes at once, or ask for fewer tasks."
        )


class DeadlineExceeded(ClinstackError):  # noqa: N818 - named as what the client is told
    """The time of a request was over before all of it had been started."""

    def __init__(self) -> None:
        super().__init__("The request's time was over before the server came to it.")


class UnknownStack(ClinstackError):  # noqa: N818 - named as what the client is told
    """No stack of this name is served, or it is being removed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No stack {name!r} is served.")
        self.name = name


class ShuttingDown(ClinstackError):  # noqa: N818 - named as what the client is told
    """The server finishes what it has taken and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down.")


class ModelFailed(ClinstackError):  # noqa: N818 - named as what the client is told
    """The model raised an error on a note, also when the note was alone. The log has its type and where."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"The model failed on this note ({type(error).__name__}).")
