"""Prompts of exact token length, by one of three sources.

    tokenizer   a Hugging Face tokenizer, from a folder or by its hub id: text and token ids
    server      the tokenizer of the server under test, over its `/tokenize` endpoint (vLLM's): text and token ids
    token_ids   no tokenizer at all, only the size of the vocabulary: token ids without text

The first two write prompts out of *words*: runs of letters that the tokenizer turns into one token each, whatever
stands around them. Spaces separate them, so a text of n words is n tokens plus the special tokens that the tokenizer
itself puts around a text (a beginning-of-sequence token, for many models); a prompt's length counts those too.
A chat template adds tokens of its own around the prompt: with the chat endpoint the server counts more than the plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, model_validator

from loadgen.workloads.configuration import Strict
from loadgen.workloads.contents import LEAST_VOCABULARY, Words
from loadgen.workloads.errors import PromptError
from loadgen.workloads.plan import Prompt


class PromptSource(Protocol):
    """Turns word numbers into prompts; the same numbers always into the same prompt."""

    @property
    def vocabulary(self) -> int:
        """How many words there are: word numbers lie below."""

    @property
    def special_tokens(self) -> int:
        """How many tokens every prompt has besides its words."""

    @property
    def special_tokens_before(self) -> int:
        """How many of these stand before the words."""

    def prompt(self, words: Words) -> Prompt:
        """Return the prompt with these words, `special_tokens` longer than they are many.

        Raises:
            PromptError: the tokenizer does not make of the text what it should.
        """


class TokenIdSource:
    """Prompts as token ids alone, from `first_id` up to the end of the vocabulary."""

    special_tokens = 0
    special_tokens_before = 0

    def __init__(self, vocabulary: int, first_id: int = 0) -> None:
        self.vocabulary = vocabulary - first_id
        self._first_id = first_id

    def prompt(self, words: Words) -> Prompt:
        """Return the prompt with these words."""
        return Prompt(len(words), None, tuple((words + self._first_id).tolist()))


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer makes of words.

    Attributes:
        words: The words, without spaces.
        token_ids: The token of each.
        lead: What stands before the first word: a space, or nothing.
        before: Special tokens that the tokenizer puts before a text.
        after: Special tokens that it puts after it.
    """

    words: tuple[str, ...]
    token_ids: tuple[int, ...]
    lead: str
    before: tuple[int, ...]
    after: tuple[int, ...]

    def prompt(self, words: Words) -> Prompt:
        """Return the prompt with these words."""
        numbers = words.tolist()
        token_ids = (*self.before, *(self.token_ids[number] for number in numbers), *self.after)
        return Prompt(len(token_ids), self.lead + " ".join(self.words[number] for number in numbers), token_ids)


class WordSource:
    """Prompts out of a vocabulary, as text and token ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @property
    def vocabulary(self) -> int:
        """How many words there are."""
        return len(self._vocabulary.words)

    @property
    def special_tokens(self) -> int:
        """How many tokens the tokenizer adds to a text."""
        return len(self._vocabulary.before) + len(self._vocabulary.after)

    @property
    def special_tokens_before(self) -> int:
        """How many of these stand before the text."""
        return len(self._vocabulary.before)

    def prompt(self, words: Words) -> Prompt:
        """Return the prompt with these words."""
        return self._vocabulary.prompt(words)


class Tokenizer(Strict):
    """A Hugging Face tokenizer."""

    kind: Literal["tokenizer"]
    tokenizer: str = Field(min_length=1, description="a folder with the tokenizer's files, or a hub id (owner/name)")


class Server(Strict):
    """The tokenizer of the server under test, over its /tokenize endpoint."""

    kind: Literal["server"]


class TokenIds(Strict):
    """Token ids alone; ids below `first_id` are left out, since many tokenizers keep their special tokens there."""

    kind: Literal["token_ids"]
    vocabulary: int = Field(gt=0, description="number of token ids")
    first_id: int = Field(default=100, ge=0)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.vocabulary - self.first_id < LEAST_VOCABULARY:
            raise ValueError(
                f"{self.vocabulary} ids less the first {self.first_id} are too few to tell prompts apart: "
                f"needs {LEAST_VOCABULARY}"
            )
        return self


Prompts = Annotated[Tokenizer | Server | TokenIds, Field(discriminator="kind")]


def open_prompts(
    prompts: Prompts,
    *,
    server_url: str | None = None,
    model: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> PromptSource:
    """Return the source that `prompts` describes; may take seconds.

    Args:
        prompts: The description.
        server_url: Base URL of the server under test, without `/v1`; needed for `server`.
        model: The model's name there, if the server needs one.
        headers: Sent to the server, for example its authorization.

    Raises:
        PromptError: the tokenizer cannot be had, or no exact prompts can be made with it.
    """
    match prompts:
        case TokenIds():
            return TokenIdSource(prompts.vocabulary, prompts.first_id)
        case Tokenizer():
            from loadgen.workloads.tokenizer_prompts import TokenizerSource

            return TokenizerSource.load(prompts.tokenizer)
        case Server():
            from loadgen.workloads.server_prompts import ServerSource

            if server_url is None:
                raise PromptError("prompts by the server's tokenizer need a server: give the target's URL")
            return ServerSource.ask(server_url, model=model, headers=headers or {})
