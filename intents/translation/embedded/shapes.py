"""Other shapes of a clause, turned into the plain one: subject, verb, complements.

Imperatives ("keep billing in Germany"), carriers as subjects (`carriers`), agents of a passive ("be processed by
trusted nodes"), and end points that stand behind the verb.
"""

from __future__ import annotations

from dataclasses import replace

from intents.model.refusal import RefusalKind
from intents.translation.embedded.carriers import about, turned
from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.tree import Clause, Complement, Ends, Everything, Group, Verb


def plain(clause: Clause) -> Clause:
    """Return the clause with the subject that its rules are about."""
    return _measured(_agent(turned(_kept_out(_left(_got_out(_imperative(_off_the_path(clause))))))))


def _off_the_path(clause: Clause) -> Clause:
    """Read "exclude s1 from all paths of A", "keep s1 out of the path from A to B" as that the packets avoid s1."""
    if len(clause.verbs) != 1 or clause.verbs[0].lemma not in {"exclude", "keep", "ban", "bar"}:
        return clause
    paths = [
        each
        for each in clause.complements
        if each.role in {"from", "out"}
        and len(each.groups) == 1
        and each.groups[0].kind in {"network", "traffic"}
        and each.groups[0].ends is not None
        and isinstance(each.groups[0].selector, Everything)
    ]
    objects = [each for each in clause.complements if each.role == "object"] if clause.imperative else []
    groups = tuple(group for each in objects for group in each.groups) or clause.subject
    carriers = bool(groups) and all(group.kind in {"switch", "link", None} and group.ends is None for group in groups)
    marked = (
        clause.negated
        or clause.only
        or clause.subject_only
        or any(each.only or each.negated for each in clause.complements)
    )
    if len(paths) != 1 or not carriers or marked or len(clause.complements) != len(objects) + 1:
        return clause
    if any(group.quantifier not in {"", "all", "any"} for group in (*groups, *paths[0].groups)):
        return clause
    flow = Group(0, 0, "traffic", ends=paths[0].groups[0].ends)
    via = (Complement("via", groups),)
    return replace(clause, subject=(flow,), negated=True, modal="must", verbs=(Verb("pass", "cross"),), complements=via)


def _got_out(clause: Clause) -> Clause:
    """Read "get ledger out of the US" as "keep ledger out of the US"; "send it out" says no limit for certain."""
    if not clause.imperative or len(clause.verbs) != 1 or clause.verbs[0].kind not in {"receive", "send"}:
        return clause
    if not clause.subject or not any(each.role in {"in", "out", "to"} for each in clause.complements):
        return clause
    workloads = all(group.kind in {None, "pronoun", *WORKLOADS} for group in clause.subject)
    got = clause.verbs[0].lemma == "get" and not (clause.negated or clause.only)
    if got and all(each.role == "out" and not (each.only or each.negated) for each in clause.complements):
        return replace(clause, verbs=(Verb("keep", "stay"),))
    if clause.verbs[0].lemma == "get" or (workloads and any(each.role == "out" for each in clause.complements)):
        raise refused(
            RefusalKind.NOT_UNDERSTOOD, "it is not clear whether it must run there", "say where it must or must not run"
        )
    return clause


def _left(clause: Clause) -> Clause:
    """Read the order "leave ledger on fra-1" as "keep ledger on fra-1"."""
    leaves = clause.imperative and len(clause.verbs) == 1 and clause.verbs[0].lemma == "leave"
    placed = bool(clause.complements) and all(each.role == "in" for each in clause.complements)
    if leaves and placed and clause.subject and all(about(group) for group in clause.subject):
        return replace(clause, verbs=(Verb("keep", "stay"),))
    return clause


def _kept_out(clause: Clause) -> Clause:
    """Read "exclude ledger from US nodes", "ban ledger from the US" as that it must not run there."""
    out = len(clause.verbs) == 1 and clause.verbs[0].lemma in {"exclude", "ban", "bar"}
    froms = [each for each in clause.complements if each.role == "from"]
    if not out or clause.negated or clause.only or len(froms) != len(clause.complements) or not froms:
        return clause
    if not all(about(group) for group in clause.subject) or any(about(g) for each in froms for g in each.groups):
        return clause
    places = tuple(replace(each, role="in") for each in froms)
    return replace(clause, verbs=(Verb("run", "run"),), negated=True, complements=places, modal="must")


def _imperative(clause: Clause) -> Clause:
    """Find the subject of an imperative among its objects: "keep billing here", "avoid US switches for billing"."""
    if not clause.imperative or clause.subject:
        return clause
    subjects: tuple[Group, ...] = ()
    rest: list[Complement] = []
    for each in clause.complements:
        is_about = bool(each.groups) and all(about(group) for group in each.groups)
        if not subjects and is_about and each.role == "object" and not each.negated:
            subjects = each.groups
            if each.only:
                rest.append(Complement("focus", ()))
        else:
            rest.append(each)
    if not subjects:
        for each in rest:
            if each.groups and each.role in {"for", "of"} and all(about(group) for group in each.groups):
                subjects = each.groups
                rest.remove(each)
                break
    if not subjects:
        for each in rest:
            if each.role == "between":
                rest.remove(each)
                return replace(clause, subject=(flow_between(each),), complements=tuple(rest))
    by_role = {each.role: each for each in rest if each.role in {"from", "to"} and all(about(g) for g in each.groups)}
    if not subjects and len(by_role) == 2:
        flow = Group(0, 0, "traffic", ends=Ends(source=by_role["from"].groups, target=by_role["to"].groups))
        rest = [each for each in rest if each not in by_role.values()]
        return replace(clause, subject=(flow,), complements=tuple(rest))
    if any(each.role == "focus" for each in rest):
        raise refused(
            RefusalKind.AMBIGUOUS, "it is not clear what `only` belongs to", "put `only` before the place or the nodes"
        )
    return replace(clause, subject=subjects, complements=tuple(rest))


def flow_between(complement: Complement) -> Group:
    """Return the packets that `between A and B` speaks of."""
    source, target = complement.groups[:1], complement.groups[1:] or complement.groups[:1]
    return Group(0, 0, "traffic", ends=Ends(source=source, target=target, mutual=True))


def _agent(clause: Clause) -> Clause:
    """Read "be processed by trusted nodes" as "on", "be carried by encrypted links" as "via"."""
    complements = tuple(
        replace(each, role="via" if any((g.kind or "") in {"switch", "link", "network"} for g in each.groups) else "in")
        if each.role == "by" and not any(about(group) for group in each.groups)
        else each
        for each in clause.complements
    )
    return replace(clause, complements=complements)


def _measured(clause: Clause) -> Clause:
    """Take the endpoints that stand behind the verb ("must use s1 between A and B") to the subject's."""
    if len(clause.subject) != 1:
        return clause
    group = clause.subject[0]
    flowing = group.kind == "data" and isinstance(group.selector, Everything)
    if group.ends is not None or not (group.kind in {"traffic", "network", "link", "measure"} or flowing):
        return clause
    ends = [each for each in clause.complements if each.role == "between"]
    if len(ends) == 1:
        rest = tuple(each for each in clause.complements if each.role != "between")
        kind = "traffic" if flowing else group.kind
        return replace(clause, subject=(replace(group, kind=kind, ends=flow_between(ends[0]).ends),), complements=rest)
    by_role = {each.role: each for each in clause.complements if each.role in {"from", "to"}}
    peers = all(about(g) and g.ends is None for each in by_role.values() for g in each.groups)
    plainly = not any(each.only or each.negated for each in by_role.values())
    if flowing and len(by_role) == 2 and peers and plainly:
        pair = Ends(source=by_role["from"].groups, target=by_role["to"].groups)
        rest = tuple(each for each in clause.complements if each not in by_role.values())
        return replace(clause, subject=(replace(group, kind="traffic", ends=pair),), complements=rest)
    return clause
