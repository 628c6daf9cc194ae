"""Prompts by the server's tokenizer: found in few requests, exact, and never at the server's expense during a run."""

import json
from itertools import groupby

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.workloads import PromptError, Server, open_prompts
from loadgen.workloads.common_words import COMMON_WORDS
from loadgen.workloads.server_prompts import ServerSource

PIECES = {"government": ["govern", "ment"], "information": ["inform", "ation"], "although": ["al", "though"]}
URL = "http://127.0.0.1:8000"


class Tokenizing:
    """A server whose tokenizer knows most words, with their space, and puts a token before a text."""

    def __init__(self, pieces=PIECES):
        self.pieces = pieces
        self.ids = {}
        self.requests = []

    def tokens(self, text, special):
        words = [piece for word in text.split(" ")[1:] for piece in self.pieces.get(word, [word])]
        first = [] if text.startswith(" ") else ["unspaced"]
        return ([1] if special else []) + [2 + self.ids.setdefault(word, len(self.ids)) for word in first + words]

    def __call__(self, request):
        body = json.loads(request.content)
        self.requests.append((request.url.path, dict(request.headers), body))
        tokens = self.tokens(body["prompt"], body["add_special_tokens"])
        return httpx.Response(200, json={"count": len(tokens), "max_model_len": 8192, "tokens": tokens})


def ask(server, **changes):
    options = {"model": "m", "headers": {"Authorization": "Bearer key"}} | changes
    return ServerSource.ask(URL, transport=httpx.MockTransport(server), **options)


def test_words_of_several_tokens_are_found_out_and_left_out():
    source = ask(Tokenizing())
    assert source.vocabulary == len(COMMON_WORDS) - len(PIECES)
    assert (source.special_tokens, source.special_tokens_before) == (1, 1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=50))
def test_prompts_are_exactly_what_the_server_makes_of_them(words):
    server = Tokenizing()
    prompt = ask(server).prompt(np.array(words))
    assert list(prompt.token_ids) == server.tokens(prompt.text, special=True)
    assert prompt.tokens == len(words) + 1


def test_the_server_is_asked_seldom_and_not_for_every_prompt():
    server = Tokenizing()
    source = ask(server)
    asked = len(server.requests)
    assert asked < 70
    source.prompt(np.arange(100))
    assert len(server.requests) == asked


def test_model_and_headers_are_sent():
    server = Tokenizing()
    ask(server)
    path, headers, body = server.requests[0]
    assert (path, headers["authorization"], body["model"]) == ("/tokenize", "Bearer key", "m")


class Joining(Tokenizing):
    """A tokenizer that makes one token of a word and its repetition."""

    def tokens(self, text, special):
        return [token for token, _ in groupby(super().tokens(text, special))]


def test_words_that_do_not_keep_apart_are_noticed_beforehand():
    with pytest.raises(PromptError, match="no text of exact length can be made"):
        ask(Joining())


def refuse(request):
    return httpx.Response(404, text="no such page")


def break_off(request):
    raise httpx.ConnectError("connection refused")


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (refuse, r"http://127.0.0.1:8000/tokenize answered 404: no such page\. Give a tokenizer"),
        (break_off, r"/tokenize cannot be asked: ConnectError\('connection refused'\)\. Is the server up\?"),
        (lambda request: httpx.Response(200, json={"count": 3}), "gave no list of tokens"),
        (lambda request: httpx.Response(200, text="ok"), "gave no list of tokens"),
        (Tokenizing({word: ["a", "b"] for word in COMMON_WORDS}), "no text of exact length can be made"),
    ],
)
def test_a_server_that_cannot_help_is_one_error(server, told):
    with pytest.raises(PromptError, match=told):
        ask(server)


def test_a_server_is_needed():
    with pytest.raises(PromptError, match="give the target's URL"):
        open_prompts(Server(kind="server"))
