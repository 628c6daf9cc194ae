"""Server-sent events out of a byte stream.

The part of the protocol (WHATWG HTML, section 9.2) that completion servers use: `data:` lines, ended by a blank line.
Comments and other fields are skipped.

Caveat that shaped it: JSON may hold U+2028, U+0085 and other characters that `str.splitlines` (and with it
`httpx.Response.aiter_lines`) takes for a line end, and models do generate them. A line ends at a line feed only, with
or without a carriage return before it, and is decoded only when it is whole.
"""


class EventDecoder:
    """Turns successive reads into whole events, whatever the cut."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[str] = []

    def feed(self, read: bytes) -> list[str]:
        """Return the payloads of the events that `read` completes, in order.

        Raises:
            UnicodeDecodeError: a line is not UTF-8.
        """
        self._line += read
        *lines, rest = self._line.split(b"\n")
        self._line = bytearray(rest)
        events = []
        for line in lines:
            text = line.decode().removesuffix("\r")
            if text.startswith("data:"):
                self._data.append(text.removeprefix("data:").removeprefix(" "))
            elif not text and self._data:
                events.append("\n".join(self._data))
                self._data.clear()
        return events

    @property
    def pending(self) -> bool:
        """Whether an event has begun that no blank line has ended yet."""
        return bool(self._line or self._data)
