"""The events of one mock stream as bytes, in the shape of vLLM's two endpoints.

Made by hand from parts that are encoded once: an encoder would cost more than all the rest of a chunk.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class EventShape:
    """What the chunks of one stream look like.

    Attributes:
        response_id: The stream's id.
        model: The model's name.
        chat: The shape of chat completions, else of completions.
        prompt_ids: The prompt as the mock tokenises it.
        token_ids: Send `token_ids`, and `prompt_token_ids` once.
        usage: Send the final usage chunk.
        continuous_usage: Send the usage so far in every chunk.
    """

    response_id: str
    model: str
    chat: bool
    prompt_ids: list[int]
    token_ids: bool
    usage: bool
    continuous_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))
    sent: int = 0
    _first: bool = True

    def opening(self) -> bytes:
        """Return what comes before the first token: in chat the role, as OpenAI sends it, else nothing."""
        if not self.chat:
            return b""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return self._event({"choices": [choice]})

    def tokens(self, ids: tuple[int, ...], finish_reason: str | None) -> bytes:
        """Return the chunk with these tokens; with none of them it only says that the stream ends."""
        self.sent += len(ids)
        text = "".join([f" {token}" for token in ids])
        finish = "null" if finish_reason is None else f'"{finish_reason}"'
        content = f'"delta":{{"content":"{text}"}}' if self.chat else f'"text":"{text}"'
        listed = f',"token_ids":[{",".join(map(str, ids))}]' if self.token_ids else ""
        extra = ""
        if self._first and self.token_ids:
            prompt = f',"prompt_token_ids":{self.prompt_ids}'
            listed, extra = (listed, prompt) if self.chat else (listed + prompt, "")
        if self.continuous_usage:
            extra += f',"usage":{msgspec.json.encode(self.usage_so_far()).decode()}'
        self._first = False
        choice = f'{{"index":0,{content},"logprobs":null,"finish_reason":{finish}{listed}}}'
        return f'{self._head()},"choices":[{choice}]{extra}}}\n\n'.encode()

    def ending(self) -> bytes:
        """Return what comes after the last token of a whole stream."""
        return (self._event({"choices": [], "usage": self.usage_so_far()}) if self.usage else b"") + DONE

    def failure(self) -> bytes:
        """Return an error event, as vLLM sends one, and the end."""
        event = {"error": {"message": "the mock engine failed", "type": "InternalServerError", "code": 500}}
        return b"data: " + msgspec.json.encode(event) + b"\n\n" + DONE

    def rename(self) -> None:
        """Go on under another id."""
        self.response_id += "-renamed"

    def whole(self, ids: list[int], finish_reason: str) -> dict[str, Any]:
        """Return the answer to a request that asked for no stream."""
        text = "".join(f" {token}" for token in ids)
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice |= {"token_ids": ids} if self.token_ids else {}
        return {
            "id": self.response_id,
            "object": "chat.completion" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": self.usage_so_far(),
        }

    def usage_so_far(self) -> dict[str, int]:
        """Return the counts of tokens up to here."""
        prompt = len(self.prompt_ids)
        return {"prompt_tokens": prompt, "completion_tokens": self.sent, "total_tokens": prompt + self.sent}

    def _head(self) -> str:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        model = msgspec.json.encode(self.model).decode()
        return f'data: {{"id":"{self.response_id}","object":"{kind}","created":{self.created},"model":{model}'

    def _event(self, content: dict[str, Any]) -> bytes:
        return self._head().encode() + b"," + msgspec.json.encode(content)[1:] + b"\n\n"
