"""Other shapes of a clause, turned into the plain one: subject, verb, complements.

Imperatives ("keep billing in Germany"), carriers as subjects ("no US switch may carry patient data"), agents of a
passive ("be processed by trusted nodes"), and end points that stand behind the verb.
"""

from __future__ import annotations

from dataclasses import replace

from intents.model.refusal import RefusalKind
from intents.translation.embedded.grounding import refused
from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.tree import Clause, Complement, Ends, Group

CARRIERS = frozenset({"node", "switch", "link", "network", "place"})


def plain(clause: Clause) -> Clause:
    """Return the clause with the subject that its rules are about."""
    return _measured(_agent(_converse(_imperative(clause))))


def _imperative(clause: Clause) -> Clause:
    """Find the subject of an imperative among its objects: "keep billing here", "avoid US switches for billing"."""
    if not clause.imperative or clause.subject:
        return clause
    subjects: tuple[Group, ...] = ()
    rest: list[Complement] = []
    for each in clause.complements:
        about = bool(each.groups) and all(_about(group) for group in each.groups)
        if not subjects and about and each.role == "object" and not each.negated:
            subjects = each.groups
            if each.only:
                rest.append(Complement("focus", ()))
        else:
            rest.append(each)
    if not subjects:
        for each in rest:
            if each.groups and each.role in {"for", "of"} and all(_about(group) for group in each.groups):
                subjects = each.groups
                rest.remove(each)
                break
    if not subjects:
        for each in rest:
            if each.role == "between":
                source, target = each.groups[:1], each.groups[1:] or each.groups[:1]
                flow = Group(0, 0, "traffic", ends=Ends(source=source, target=target, mutual=True))
                rest.remove(each)
                return replace(clause, subject=(flow,), complements=tuple(rest))
    by_role = {each.role: each for each in rest if each.role in {"from", "to"} and all(_about(g) for g in each.groups)}
    if not subjects and len(by_role) == 2:
        flow = Group(0, 0, "traffic", ends=Ends(source=by_role["from"].groups, target=by_role["to"].groups))
        rest = [each for each in rest if each not in by_role.values()]
        return replace(clause, subject=(flow,), complements=tuple(rest))
    if any(each.role == "focus" for each in rest):
        raise refused(
            RefusalKind.AMBIGUOUS, "it is not clear what `only` belongs to", "put `only` before the place or the nodes"
        )
    return replace(clause, subject=subjects, complements=tuple(rest))


def _about(group: Group) -> bool:
    kind = group.kind or ""
    return (
        kind in WORKLOADS | {"traffic", "migration", "pronoun", "pronoun:traffic"}
        or kind.startswith("state")
        or (kind in {"network", "link"} and group.ends is not None)
    )


def _converse(clause: Clause) -> Clause:
    """Turn "no US switch may carry patient data" round: the data is the subject, the switch what is limited."""
    carriers = clause.subject and all(
        (group.kind or "place") in CARRIERS and group.ends is None for group in clause.subject
    )
    if not carriers or any(verb.passive for verb in clause.verbs):
        return clause
    objects = [
        each
        for each in clause.complements
        if each.role in {"object", "for"} and each.groups and all(_about(g) for g in each.groups)
    ]
    if len(objects) != 1:
        return clause
    verbs = tuple(
        replace(verb, kind="cross" if verb.kind in {"cross", "send", "receive"} else "run") for verb in clause.verbs
    )
    carries = any((group.kind or "") in {"switch", "link", "network"} for group in clause.subject)
    verbs = tuple(replace(verb, kind="cross") if carries else verb for verb in verbs)
    if not carries and any(verb.kind == "cross" for verb in verbs) and all(g.kind == "node" for g in clause.subject):
        verbs = tuple(replace(verb, kind="run") for verb in verbs)
    none = all(group.quantifier == "none" for group in clause.subject)
    negated = clause.negated or none or clause.modal == "ban"
    if not negated and not clause.subject_only and not clause.only:
        raise refused(
            RefusalKind.AMBIGUOUS,
            "it is not said that only these may, so it limits nothing for certain",
            "put `only` in front of them",
        )
    if negated and clause.subject_only:
        raise refused(RefusalKind.AMBIGUOUS, "`not` and `only` in one clause can be read in two ways")
    rest = tuple(each for each in clause.complements if each is not objects[0])
    role = "via" if any(verb.kind == "cross" for verb in verbs) else "in"
    carriers_groups = tuple(replace(group, quantifier="") for group in clause.subject)
    subject = tuple(
        replace(group, quantifier="" if group.quantifier in {"any", "none"} else group.quantifier)
        for group in objects[0].groups
    )
    return replace(
        clause,
        subject=subject,
        subject_only=False,
        negated=negated,
        modal="must",
        verbs=verbs,
        complements=(Complement(role, carriers_groups, only=not negated), *rest),
    )


def _agent(clause: Clause) -> Clause:
    """Read "be processed by trusted nodes" as "on", "be carried by encrypted links" as "via"."""
    complements = tuple(
        replace(each, role="via" if any((g.kind or "") in {"switch", "link", "network"} for g in each.groups) else "in")
        if each.role == "by" and not any(_about(group) for group in each.groups)
        else each
        for each in clause.complements
    )
    return replace(clause, complements=complements)


def _measured(clause: Clause) -> Clause:
    """Take the endpoints that stand behind the verb ("must use s1 between A and B") to the subject's."""
    ends = [each for each in clause.complements if each.role == "between"]
    if len(ends) != 1 or len(clause.subject) != 1:
        return clause
    group = clause.subject[0]
    rest = tuple(each for each in clause.complements if each.role != "between")
    source, target = ends[0].groups[:1], ends[0].groups[1:] or ends[0].groups[:1]
    if group.kind in {"traffic", "network", "link"} and group.ends is None:
        return replace(
            clause, subject=(replace(group, ends=Ends(source=source, target=target, mutual=True)),), complements=rest
        )
    return clause
