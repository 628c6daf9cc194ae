"""Names of labels, and when a label's value counts as one that was asked for.

Values are compared without regard to case. A jurisdiction is an ISO 3166 code: a subdivision lies in its country
(`US-CA` is in `US`), and the alpha-3 code and the common `UK` mean the same as the alpha-2 code.
"""

from __future__ import annotations

from functools import cache

import pycountry

REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"
TIER = "midstream.dev/tier"
JURISDICTION = "midstream.dev/jurisdiction"
TRUST = "midstream.dev/trust"
PROVIDER = "midstream.dev/provider"
CONFIDENTIAL = "midstream.dev/confidential"
GPU = "midstream.dev/gpu"
DATA = "midstream.dev/data"
ENCRYPTED = "midstream.dev/encrypted"

WORKLOAD = "midstream.dev/workload"
"""On pods: the workload that they are replicas of."""

PIPELINE = "midstream.dev/pipeline"
"""The pipeline that a workload is a stage of, or that it stands for: the pipeline's head says where that runs."""

NAME = "name"
"""Not a label: in a predicate it stands for the element's own name, which is compared exactly."""

WELL_KNOWN = (REGION, ZONE, TIER, JURISDICTION, TRUST, PROVIDER, CONFIDENTIAL, GPU, DATA, ENCRYPTED)


@cache
def jurisdiction(code: str) -> str:
    """Return the code in upper case with an alpha-2 country: `deu` and `DE` give `DE`, `UK` gives `GB`."""
    country, _, subdivision = code.strip().upper().partition("-")
    if country == "UK":
        country = "GB"
    elif len(country) == 3:
        found = pycountry.countries.get(alpha_3=country)
        country = found.alpha_2 if found is not None else country
    return f"{country}-{subdivision}" if subdivision else country


def value_matches(key: str, value: str, wanted: str) -> bool:
    """Whether an element whose label `key` is `value` has what was asked for as `wanted`."""
    if key == NAME:
        return value == wanted
    if key == JURISDICTION:
        has, want = jurisdiction(value), jurisdiction(wanted)
        return has == want or has.startswith(want + "-")
    return value.casefold() == wanted.casefold()
