"""One wish in many wordings means one thing, or is refused; and a sentence without its `not` never means the same."""

import itertools
import re
from functools import cache

import pytest

from tests.unit.intents.translation.notation import line
from tests.unit.intents.translation.test_embedded_translator import UNDERSTOOD, translate

WHERE = {
    "in Germany": "jurisdiction=DE",
    "on trusted nodes": "trust=trusted",
    "on nodes with a GPU": "gpu=h100",
    "in France or Switzerland": "jurisdiction=FR | jurisdiction=CH",
    "on a node that is trusted and has a GPU": "trust=trusted & gpu=h100",
    "on a German node that does not belong to acme": "jurisdiction=DE & provider!=acme",
    "on nodes that are neither untrusted nor in the US": "trust!=untrusted & jurisdiction!=US",
    "on nodes labelled disk=nvme": "disk=nvme",
    "outside the US": "jurisdiction!=US",
    "in the EU except France": "jurisdiction=EU & jurisdiction!=FR",
}
RUNS = (
    "{who} must run {where}.",
    "{who} has to be hosted {where}.",
    "{who} needs to be placed {where}.",
    "{who} is to be kept {where}.",
    "{who} shall live {where} at all times.",
    "{who} runs {where}.",
    "{who} must always be deployed {where}.",
    "{who} is required to run {where}.",
    "Run {who} {where}.",
    "Please host {who} {where}.",
    "Please make sure that {who} runs {where}.",
    "Make sure {who} is only ever hosted {where}.",
    "See to it that {who} stays {where}.",
    "We want {who} to run {where}.",
    "We need {who} to be hosted {where}.",
    "I want {who} {where}.",
    "We must run {who} {where}.",
    "It is mandatory that {who} runs {where}.",
    "It is essential for {who} to run {where}.",
    "{who} may only run {where}.",
    "{who} may run {where} only.",
    "{who} must run nowhere but {where}.",
    "{who} is only allowed {where}.",
    "Only {where} may {who} run.",
    "Running {who} is only allowed {where}.",
)
NEVER = {
    "in the US": "jurisdiction!=US",
    "on untrusted nodes": "trust!=untrusted",
    "on nodes of provider acme": "provider!=acme",
    "on a node that is untrusted or in the US": "trust!=untrusted & jurisdiction!=US",
    "outside the EU": "jurisdiction=EU",
}
BANS = (
    "{who} must not run {where}.",
    "{who} may never be hosted {where}.",
    "{who} can't be placed {where}.",
    "{who} is not permitted to run {where}.",
    "{who} is not allowed {where}.",
    "{who} is strictly forbidden from running {where}.",
    "{who} is not to run {where}.",
    "{who} must, under no circumstances, run {where}.",
    "Never run {who} {where}.",
    "Please do not host {who} {where}.",
    "Do not let {who} run {where}.",
    "We must not run {who} {where}.",
    "We do not want {who} to run {where}.",
    "I want {who} not to run {where}.",
    "It is forbidden to run {who} {where}.",
    "It is not allowed that {who} runs {where}.",
    "It is prohibited for {who} to run {where}.",
    "Running {who} {where} is forbidden.",
    "Hosting {who} {where} is not allowed.",
    "Placing {who} {where} must be avoided.",
    "The hosting of {who} {where} is prohibited.",
    "Avoid running {who} {where}.",
    "Under no circumstances may {who} run {where}.",
    "Never may {who} be placed {where}.",
)
CARRIERS = {
    "US switches": "switches jurisdiction!=US",
    "untrusted switches": "switches trust!=untrusted",
    "unencrypted links": "links encrypted=true",
    "switches that are neither trusted nor certified": "switches trust=trusted | trust=certified",
    "switches of provider acme": "switches provider!=acme",
}
DETOURS = (
    "Traffic between {a} and {b} must not cross {what}.",
    "Traffic between {a} and {b} must avoid {what}.",
    "Packets between {a} and {b} may never pass {what}.",
    "Communication between {a} and {b} must bypass {what}.",
    "{What} must not carry traffic between {a} and {b}.",
    "{What} must not be used between {a} and {b}.",
    "{What} must be avoided by packets between {a} and {b}.",
    "{What} are forbidden between {a} and {b}.",
    "Between {a} and {b}, traffic must not use {what}.",
    "Between {a} and {b}, never use {what}.",
    "No packet between {a} and {b} may cross {what}.",
    "Do not route traffic between {a} and {b} over {what}.",
    "Keep packets between {a} and {b} off {what}.",
    "Routing traffic between {a} and {b} over {what} is forbidden.",
    "Whatever {a} and {b} send each other must avoid {what}.",
    "The path between {a} and {b} must not contain {what}.",
)
APART = (
    "{a} must not talk to {b}.",
    "{a} and {b} must not communicate.",
    "{a} must be cut off from {b}.",
    "{a} has to be isolated from {b}.",
    "{a} must be kept isolated from {b}.",
    "{a} must not be able to communicate with {b}.",
    "{a} must have no contact with {b}.",
    "Isolate {a} from {b}.",
    "Cut {a} off from {b}.",
    "There must be no traffic between {a} and {b}.",
    "There must not be any packets between {a} and {b}.",
    "No traffic may pass between {a} and {b}.",
    "Communication between {a} and {b} is forbidden.",
    "Block all traffic between {a} and {b}.",
    "We do not want {a} to talk to {b}.",
)
BOUNDS = (
    "The latency between {a} and {b} must be at most 10 ms.",
    "The latency between {a} and {b} must not exceed 10 ms.",
    "The delay between {a} and {b} may not be higher than 10 ms.",
    "Keep the latency between {a} and {b} at or below 10 ms.",
    "Between {a} and {b} the delay must be no more than 10 ms.",
    "Packets between {a} and {b} must arrive within 10 ms.",
    "Packets between {a} and {b} must not take longer than 10 ms.",
    "Traffic between {a} and {b} must take 10 ms or less.",
    "The latency between {a} and {b} must be <= 10 ms.",
    "There must be at most 10 ms of latency between {a} and {b}.",
)


@cache
def said(sentence: str) -> str | None:
    intent = translate(sentence).intent
    return None if intent is None else line(intent)


def same_or_refused(sentences: list[str], means: str, least: float) -> None:
    answers = {sentence: said(sentence) for sentence in sentences}

    assert {sentence: answer for sentence, answer in answers.items() if answer not in {means, None}} == {}
    assert sum(answer is not None for answer in answers.values()) >= least * len(sentences), [
        sentence for sentence, answer in answers.items() if answer is None
    ]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("who", "means"), [("ledger", "name=ledger"), ("the claims service", "name=claims")])
def test_wordings_of_where_to_run_agree(who: str, means: str, where: str) -> None:
    sentences = [each.format(who=who, where=where) for each in RUNS]
    same_or_refused([capital(each) for each in sentences], f"[{means}] nodes({WHERE[where]})", 0.8)


@pytest.mark.parametrize("where", NEVER)
@pytest.mark.parametrize(("who", "means"), [("ledger", "name=ledger"), ("radiology", "name=radiology")])
def test_wordings_of_where_never_to_run_agree(who: str, means: str, where: str) -> None:
    sentences = [capital(each.format(who=who, where=where)) for each in BANS]
    same_or_refused(sentences, f"[{means}] nodes({NEVER[where]})", 0.9)


@pytest.mark.parametrize("what", CARRIERS)
def test_wordings_of_what_packets_avoid_agree(what: str) -> None:
    sentences = [each.format(a="ledger", b="claims", what=what, What=capital(what)) for each in DETOURS]
    same_or_refused(sentences, f"[name=ledger] route(<-> name=claims, {CARRIERS[what]})", 0.9)


@pytest.mark.parametrize(("a", "b", "means"), [("ledger", "website", "[name=ledger] isolated(<-> name=website)")])
def test_wordings_of_isolation_agree(a: str, b: str, means: str) -> None:
    same_or_refused([each.format(a=a, b=b) for each in APART], means, 0.9)


def test_wordings_of_a_bound_agree() -> None:
    means = "[name=ledger] route(<-> name=claims, at most 10 ms)"
    same_or_refused([each.format(a="ledger", b="claims") for each in BOUNDS], means, 0.9)


@pytest.mark.parametrize(
    "second",
    ["must not talk to website", "must never be migrated", "must avoid US switches", "may only use trusted nodes"],
)
def test_one_sentence_or_two_with_a_pronoun_or_the_name_agree(second: str) -> None:
    forms = [
        f"ledger must run in Germany and {second}.",
        f"ledger must run in Germany, and it {second}.",
        f"ledger must run in Germany. It {second}.",
        f"ledger must run in Germany. ledger {second}.",
        f"ledger must run in Germany; it {second}.",
        f"- ledger must run in Germany\n- ledger {second}",
        f"1. ledger must run in Germany.\n2. It {second}.",
        f"Keep ledger in Germany. It {second}.",
    ]
    answers = {form: said(form) for form in forms}

    assert None not in answers.values()
    assert len(set(answers.values())) == 1


@pytest.mark.parametrize("order", [*itertools.permutations(("Germany", "France", "Switzerland"))])
def test_the_order_of_places_subjects_and_conditions_changes_no_element(order: tuple[str, str, str]) -> None:
    a, b, c = order
    listed = said(f"ledger must run in {a}, {b} or {c}.")
    repeated = said(f"ledger must run in {a}, in {b} or in {c}.")
    banned = said(f"ledger must run neither in {a}, nor in {b}, nor in {c}.")

    assert listed == repeated is not None
    assert banned in {None, said(f"ledger must not run in {a}, {b} or {c}.")}


NEGATIONS = re.compile(
    r"\b(not|never|no|neither|none|nor|nothing|nowhere|without|except|outside|unless)\b", re.IGNORECASE
)


def test_a_sentence_without_its_negation_never_means_the_same() -> None:
    same: list[tuple[str, str]] = []
    for row in UNDERSTOOD:
        sentence = row["sentence"]
        said_twice = len({each.lower() for each in NEGATIONS.findall(sentence)}) < len(NEGATIONS.findall(sentence))
        if said_twice or "(" in sentence:  # "never X, never Y" says once too often what "never X, Y" says
            continue
        for found in NEGATIONS.finditer(sentence):
            rest = (sentence[: found.start()] + sentence[found.end() :]).replace("  ", " ").strip()
            if said(rest) == row["means"]:
                same.append((sentence, rest))

    assert same == []


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:] if not sentence.startswith(("ledger", "radiology")) else sentence
