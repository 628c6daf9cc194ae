"""Clauses whose subject is what carries: `no US switch may carry X`, `unencrypted links must not be used by X`.

They are turned round, so that the workloads or their packets are the subject and the nodes, switches and links are what
is limited. "A trusted node must host X" says where X must run; that *every* trusted node, or fra-1 *and* par-1, must
host it is no rule here.
"""

from __future__ import annotations

from dataclasses import replace

from intents.model.refusal import RefusalKind
from intents.translation.embedded.limits import is_single
from intents.translation.embedded.lists import WORKLOADS
from intents.translation.embedded.refusals import refused
from intents.translation.embedded.tree import Clause, Complement, Ends, Everything, Group, Join, Verb

CARRIERS = frozenset({"node", "switch", "link", "network", "place"})
_NETWORK = frozenset({"switch", "link", "network"})
_USED = frozenset({"use", "avoid", "cross", "enter", "prefer"})
_STATES = frozenset({"be", "nominal"})


def about(group: Group) -> bool:
    """Whether a rule can be about this: workloads, packets, state."""
    kind = group.kind or ""
    return (
        kind in WORKLOADS | {"traffic", "migration", "pronoun", "pronoun:traffic"}
        or kind.startswith("state")
        or (kind in {"network", "link", "measure"} and group.ends is not None)
    )


def turned(clause: Clause) -> Clause:
    """Return the clause with workloads or packets as its subject."""
    return _converse(used(_on_the_path(_home(clause))))


def _carriers(clause: Clause) -> bool:
    return bool(clause.subject) and all(
        (group.kind or "place") in CARRIERS and group.ends is None for group in clause.subject
    )


def _home(clause: Clause) -> Clause:
    """Turn "the node that runs ledger must be trusted", "ledger's node must ..." into where ledger must run."""
    if len(clause.subject) != 1 or clause.subject[0].kind != "node" or clause.subject[0].ends is None:
        return clause
    group = clause.subject[0]
    if group.ends is None or clause.subject_only or not isinstance(group.selector, Everything):
        raise refused(RefusalKind.NOT_UNDERSTOOD, "it is not clear which nodes are meant by what they run")
    owners = group.ends.owner
    if group.quantifier not in {"", "all", "any", "none"} or group.ends.source or group.ends.target:
        raise refused(RefusalKind.NOT_UNDERSTOOD, "such a quantifier of nodes, switches or links is no rule")
    if group.quantifier == "none":
        owners = tuple(replace(each, quantifier="none") for each in owners)
    verbs = tuple(Verb("run", "run") if verb.kind in _STATES | {"run"} else verb for verb in clause.verbs)
    return replace(clause, subject=owners, verbs=verbs)


def _on_the_path(clause: Clause) -> Clause:
    """Turn "s3 must be on the path from A to B" into what packets from A to B must pass."""
    if not _carriers(clause) or len(clause.complements) != 1 or any(verb.passive for verb in clause.verbs):
        return clause
    path = clause.complements[0]
    if (
        path.role not in {"in", "of"}
        or len(path.groups) != 1
        or path.groups[0].kind not in {"network", "traffic"}
        or path.groups[0].ends is None
        or not isinstance(path.groups[0].selector, Everything)
    ):
        return clause
    none = all(group.quantifier == "none" for group in clause.subject)
    groups = tuple(replace(group, quantifier="" if none else group.quantifier) for group in clause.subject)
    only = clause.subject_only or clause.only or path.only
    if not (none or clause.negated or clause.modal == "ban" or only or all(is_single(group) for group in groups)):
        raise refused(RefusalKind.AMBIGUOUS, "it is not said whether all of the path or one hop of it is meant")
    if none and (clause.negated or only):
        raise refused(RefusalKind.NOT_UNDERSTOOD, "two negations in one clause")
    flow = Group(0, 0, "traffic", ends=path.groups[0].ends)
    return replace(
        clause,
        subject=(flow,),
        subject_only=False,
        only=False,
        negated=clause.negated or none,
        verbs=(Verb("pass", "cross"),),
        complements=(Complement("via", groups, only=only, negated=path.negated),),
    )


def used(clause: Clause) -> Clause:
    """Turn "only encrypted links may be used between A and B", "US nodes must be avoided by X" round."""
    ended = len(clause.subject) == 1 and clause.subject[0].kind in _NETWORK and clause.subject[0].ends is not None
    bare = ended and isinstance(clause.subject[0].selector, Everything)
    if (not _carriers(clause) and not ended) or bare or len(clause.verbs) != 1:
        return clause
    verb = clause.verbs[0]
    excluded = verb.kind == "excluded" and not clause.negated
    is_used = excluded or (verb.passive and verb.kind in _USED)
    none = all(group.quantifier == "none" for group in clause.subject)
    only = clause.subject_only or clause.only or any(each.only for each in clause.complements)
    stated = verb.kind in _STATES or verb.lemma == "be"
    limited = clause.modal == "ban" or (clause.modal == "may" and (only or clause.negated or none))
    if not is_used and not (stated and (limited or only or none)):
        return clause
    agents, rest = _agents(clause, ended=ended)
    if agents is None:
        return clause
    quantifiers = {group.quantifier for group in clause.subject}
    if not quantifiers <= {"", "all", "any", "none"} or ("none" in quantifiers and not none):
        raise refused(RefusalKind.NOT_UNDERSTOOD, "such a quantifier of nodes, switches or links is no rule")
    if none and (clause.negated or only):
        raise refused(RefusalKind.NOT_UNDERSTOOD, "two negations in one clause")
    groups = tuple(replace(group, quantifier="", ends=None) for group in clause.subject)
    return replace(
        clause,
        subject=agents,
        subject_only=False,
        only=False,
        negated=clause.negated or none,
        modal="must" if only else clause.modal,
        verbs=(
            Verb("avoid", "avoid") if excluded else replace(verb, passive=False) if is_used else Verb("use", "use"),
        ),
        complements=(Complement("object", groups, only=only), *rest),
    )


def _agents(clause: Clause, *, ended: bool) -> tuple[tuple[Group, ...] | None, tuple[Complement, ...]]:
    """Return who uses them, and the complements that are left."""
    rest = list(clause.complements)
    if ended:
        ends = clause.subject[0].ends
        return (None, ()) if rest else ((Group(0, 0, "traffic", ends=ends),), ())
    by_role = {each.role: each for each in rest}
    whom = {"by", "for"} | ({"to"} if clause.modal == "ban" and "from" not in by_role else set())
    for each in rest:
        others = tuple(other for other in rest if other is not each)
        if each.negated:
            continue
        if each.role == "between":
            source, target = each.groups[:1], each.groups[1:] or each.groups[:1]
            return (Group(0, 0, "traffic", ends=Ends(source=source, target=target, mutual=True)),), others
        if each.role == "on":  # "Between A and B, only encrypted links may be used"
            return each.groups, others
        if each.role in whom and each.groups and all(about(group) for group in each.groups):
            return each.groups, others
        if each.role == "in" and all(g.kind in {"network", "traffic"} and g.ends is not None for g in each.groups):
            return each.groups, others
    if len(rest) == 2 and {"from", "to"} <= set(by_role):
        ends = Ends(source=by_role["from"].groups, target=by_role["to"].groups)
        return (Group(0, 0, "traffic", ends=ends),), ()
    if not rest and clause.verbs[0].passive:
        return (Group(0, 0, "pronoun"),), ()
    return None, ()


def _converse(clause: Clause) -> Clause:
    """Turn "no US switch may carry patient data" round: the data is the subject, the switch what is limited."""
    if not _carriers(clause) or any(verb.passive for verb in clause.verbs):
        return clause
    objects = [
        each
        for each in clause.complements
        if each.role in {"object", "for"} and each.groups and all(about(g) for g in each.groups)
    ]
    if len(objects) != 1:
        return clause
    verbs = tuple(
        replace(verb, kind="cross" if verb.kind in {"cross", "send", "receive"} else "run") for verb in clause.verbs
    )
    carries = any((group.kind or "") in _NETWORK for group in clause.subject)
    verbs = tuple(replace(verb, kind="cross") if carries else verb for verb in verbs)
    if not carries and any(verb.kind == "cross" for verb in verbs) and all(g.kind == "node" for g in clause.subject):
        verbs = tuple(replace(verb, kind="run") for verb in verbs)
    none = all(group.quantifier == "none" for group in clause.subject)
    negated = clause.negated or none or clause.modal == "ban"
    demanded = not negated and not clause.subject_only and not clause.only
    if demanded:
        _one_of_them(clause, objects[0], carries=carries)
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
        complements=(Complement(role, carriers_groups, only=not negated and not demanded), *rest),
    )


def _one_of_them(clause: Clause, what: Complement, *, carries: bool) -> None:
    """Check that "A trusted node must host X" asks for one of them, and is no permission."""
    hosts = all(verb.kind == ("cross" if carries else "run") for verb in clause.verbs)
    several = any(
        group.quantifier not in {"", "any", "one of"}
        or (isinstance(group.selector, Join) and group.selector.how == "and")
        or isinstance(group.selector, Everything)
        for group in clause.subject
    )
    single = not carries or all(is_single(group) and group.kind == "switch" for group in clause.subject)
    asks = clause.modal in {"must", "should"} and len(clause.subject) == 1
    unclear = what.only or what.role != "object" or any(group.quantifier == "none" for group in what.groups)
    if not (hosts and asks and single) or several or unclear:
        raise refused(
            RefusalKind.AMBIGUOUS,
            "it is not said that only these may, so it limits nothing for certain",
            "put `only` in front of them",
        )
