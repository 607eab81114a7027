"""What a file that cannot be used raises."""


class MediaError(ValueError):
    """A media file cannot be used as asked; the message names the file and the next step."""

    def __init__(self, *arguments: object):
        # File names need not be UTF-8; as they are, no terminal and no report could show them.
        super().__init__(*(printable(value) if isinstance(value, str) else value for value in arguments))


def printable(text: str) -> str:
    """The text with escapes for the bytes of a file name that are not UTF-8."""
    return text.encode("utf-8", errors="backslashreplace").decode()
