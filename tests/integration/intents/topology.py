"""Six switches, five nodes, five workloads: what the tests with real packets run on.

         s2 (NL)
       /    |    \\
  s1 (DE)   |    s4 (FR)      s1-s3-s4 is the shortest way, and leads through the US.
   | \\ \\    |    /  |         s1-s2-s4 is not encrypted between s2 and s4.
   |  \\ s3 (US) /   |         s1-s5-s6-s4 is encrypted, and s5 is a firewall.
   |            /    |
  s5 (DE) ---- s6 (AT)
"""

from __future__ import annotations

from intents.model.inventory import Inventory, Link, Node, Switch, Workload
from intents.model.labels import DATA, ENCRYPTED, JURISDICTION

_SECRET = {ENCRYPTED: "true"}

INVENTORY = Inventory(
    nodes=(
        Node(name="n1", switch="s1", labels={JURISDICTION: "DE"}),
        Node(name="n2", switch="s4", labels={JURISDICTION: "FR"}),
        Node(name="n3", switch="s3", labels={JURISDICTION: "US"}),
        Node(name="n4", switch="s6", labels={JURISDICTION: "AT"}),
        Node(name="n5", switch="s2", labels={JURISDICTION: "NL"}),
    ),
    workloads=(
        Workload(name="chat", node="n1", labels={DATA: "health"}),
        Workload(name="store", node="n2", labels={DATA: "public"}),
        Workload(name="logs", node="n3", labels={DATA: "public"}),
        Workload(name="gateway", node="n4", labels={DATA: "public"}),
        Workload(name="records", node="n5", labels={DATA: "health"}),
    ),
    switches=(
        Switch(name="s1", labels={JURISDICTION: "DE"}),
        Switch(name="s2", labels={JURISDICTION: "NL"}),
        Switch(name="s3", labels={JURISDICTION: "US"}),
        Switch(name="s4", labels={JURISDICTION: "FR"}),
        Switch(name="s5", labels={JURISDICTION: "DE", "role": "firewall"}),
        Switch(name="s6", labels={JURISDICTION: "AT"}),
    ),
    links=(
        Link(a="s1", b="s2", latency_ms=4, labels=_SECRET),
        Link(a="s2", b="s4", latency_ms=4, labels={ENCRYPTED: "false"}),
        Link(a="s1", b="s3", latency_ms=1, labels=_SECRET),
        Link(a="s3", b="s4", latency_ms=1, labels=_SECRET),
        Link(a="s1", b="s5", latency_ms=3, labels=_SECRET),
        Link(a="s5", b="s6", latency_ms=3, labels=_SECRET),
        Link(a="s6", b="s4", latency_ms=3, labels=_SECRET),
        Link(a="s2", b="s3", latency_ms=1),
    ),
)
