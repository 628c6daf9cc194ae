"""The dashboard asks for metrics that there are, and finds the pods that have them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.manifests.conftest import MANIFESTS, Objects

if TYPE_CHECKING:
    from collections.abc import Callable

OWN = {
    "midstream_change_seconds",
    "midstream_changes_total",
    "midstream_pause_seconds",
    "midstream_moved_bytes_total",
    "midstream_copy_rounds_total",
    "midstream_warm_bytes",
    "midstream_epoch",
    "midstream_recoveries_total",
}
_METRIC = re.compile(r"\b(?:midstream_|vllm:)[a-z_]+")


def _dashboard() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((MANIFESTS / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
    return dashboard


def _metrics() -> set[str]:
    targets = [target["expr"] for panel in _dashboard()["panels"] for target in panel.get("targets", [])]
    return {re.sub("_(bucket|sum|count)$", "", name) for expr in targets for name in _METRIC.findall(expr)}


def test_it_shows_all_metrics_of_midstream() -> None:
    assert {name for name in _metrics() if name.startswith("midstream_")} == OWN


def test_it_uses_names_that_vllm_has() -> None:
    specification = importlib.util.find_spec("vllm")
    if specification is None or specification.origin is None:
        pytest.skip("vLLM is not installed here, so its metrics cannot be looked up")
    sources = (Path(specification.origin).parent / "v1" / "metrics").glob("*.py")
    known = {name for source in sources for name in re.findall(r'"(vllm:[a-z_]+)"', source.read_text("utf-8"))}
    used = {name.removesuffix("_total") for name in _metrics() if name.startswith("vllm:")}
    assert used
    assert used <= known


def test_panels_do_not_overlap_and_have_their_own_numbers() -> None:
    panels = _dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for panel in panels
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) == 23


def test_the_monitor_finds_each_head_once(build: Callable[[str], Objects]) -> None:
    (monitor,) = (obj for obj in build("monitoring") if obj["kind"] == "ServiceMonitor")
    services = [o for o in build("samples/by-hand") if (o["apiVersion"], o["kind"]) == ("v1", "Service")]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    found = [service for service in services if wanted.items() <= service["metadata"]["labels"].items()]
    assert [service["metadata"]["name"] for service in found] == ["smollm"]
    assert [e["port"] for e in monitor["spec"]["endpoints"]] == [port["name"] for port in found[0]["spec"]["ports"]]


def test_grafana_finds_the_dashboard(build: Callable[[str], Objects]) -> None:
    (config,) = (obj for obj in build("monitoring") if obj["kind"] == "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["dashboard.json"]) == _dashboard()
