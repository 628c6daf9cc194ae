"""What one event of a stream says, whichever OpenAI-compatible server sent it.

Completions and chat differ in shape, servers in what they add: vLLM puts token ids into the choice and on request a
usage into every chunk, others send only text. An error comes as `{"error": {"message": ...}}`, as `{"error": "..."}`
or as `{"object": "error", "message": ...}`.
"""

from dataclasses import dataclass

import msgspec

_ABSENT = msgspec.Raw()  # never in a union: msgspec would take it for a type of its own


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = _ABSENT


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Usage(msgspec.Struct, gc=False):
    """Token counts by the server."""

    completion_tokens: int = 0
    prompt_tokens: int | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Usage | None = None


class _ErrorEvent(msgspec.Struct):
    error: msgspec.Raw = _ABSENT
    message: str | None = None


class _ErrorBody(msgspec.Struct):
    message: str


class StreamError(Exception):
    """The server said in the stream that it failed; the text is the server's."""


@dataclass(slots=True)
class Said:
    """What an event says: text and ids (None: the server gives none) of new tokens, the end's reason, token counts.

    `from_choice` is False for the final usage, which repeats what was said before.
    """

    from_choice: bool
    text: str
    token_ids: list[int] | None
    finish_reason: str | None
    usage: Usage | None


_NOTHING = _Choice()
_decode = msgspec.json.Decoder(_Event).decode


def read_event(event: str) -> Said:
    """Read the payload of one event (not `[DONE]`).

    Raises:
        StreamError: it says that the server failed.
        msgspec.DecodeError: it is not what the protocol promises.
    """
    try:
        read = _decode(event)
    except msgspec.ValidationError:
        message = error_message(event)
        if message is None:
            raise
        raise StreamError(message) from None
    if read.choices is None and read.usage is None:
        message = error_message(event)
        if message is None:
            raise msgspec.ValidationError("neither choices nor usage nor error")
        raise StreamError(message)
    choice = read.choices[0] if read.choices else _NOTHING
    text = choice.text or ""
    if choice.delta is not None:
        text = _text_of(choice.delta)
    return Said(choice is not _NOTHING, text, choice.token_ids, choice.finish_reason, read.usage)


def _text_of(delta: _Delta) -> str:
    if delta.content:
        return delta.content
    thought = delta.reasoning_content or delta.reasoning or delta.refusal
    if thought:
        return thought
    calls = bytes(delta.tool_calls)
    return "" if calls in (b"", b"[]", b"null") else calls.decode()


def error_message(body: str | bytes) -> str | None:
    """Return the message of an error in one of its shapes; None if `body` is no error."""
    try:
        read = msgspec.json.decode(body, type=_ErrorEvent)
        if not bytes(read.error):
            return read.message
        error = msgspec.json.decode(read.error, type=_ErrorBody | str | None)
    except msgspec.DecodeError:
        return None
    return error.message if isinstance(error, _ErrorBody) else error
