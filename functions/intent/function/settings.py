"""What the environment tells the function."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intents.store import default_folder
from runtime.head.event_function import SettingsError, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_WATCH_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentSettings:
    """Settings of the function.

    Attributes:
        pipeline: Events for another one are refused.
        inventory: File with nodes, workloads, switches and links.
        state: Folder of the active intents.
        endpoint: Head whose stages are added to the inventory; None: it has what there is.
        here: Name in the inventory of the machine that the head runs on.
        onos: ONOS to enforce with; user and password are in ONOS_USER and ONOS_PASSWORD.
        openflow: Socket of the OpenFlow controller to enforce with.
        kubernetes: Enforce in the cluster of the current context.
        out: Folder to write manifests and flow rules to.
        watch_s: Seconds between two looks at whether intents hold; 0: never.
        move: Whether the pipeline's layers are moved off nodes that they must leave, or that is only told.
    """

    pipeline: str
    inventory: Path
    state: Path
    endpoint: str | None = None
    here: str | None = None
    onos: str | None = None
    openflow: Path | None = None
    kubernetes: bool = False
    out: Path | None = None
    watch_s: float = DEFAULT_WATCH_S
    move: bool = True


def read_intent_settings(environment: Mapping[str, str]) -> IntentSettings:
    """Return what the environment says.

    Raises:
        SettingsError: something is missing or makes no sense.
    """
    pipeline = read_settings(environment).pipeline
    inventory = environment.get("MIDSTREAM_INVENTORY")
    if not inventory:
        raise SettingsError("MIDSTREAM_INVENTORY is not set; it is the file with nodes, workloads, switches and links")
    return IntentSettings(
        pipeline=pipeline,
        inventory=Path(inventory),
        state=_path(environment, "MIDSTREAM_INTENT_STATE") or default_folder(),
        endpoint=environment.get("MIDSTREAM_ENDPOINT") or None,
        here=environment.get("MIDSTREAM_HERE") or None,
        onos=environment.get("MIDSTREAM_ONOS") or None,
        openflow=_path(environment, "MIDSTREAM_OPENFLOW"),
        kubernetes=_truth(environment, "MIDSTREAM_KUBERNETES", "false"),
        out=_path(environment, "MIDSTREAM_INTENT_OUT"),
        watch_s=_seconds(environment, "MIDSTREAM_WATCH_SECONDS", DEFAULT_WATCH_S),
        move=_truth(environment, "MIDSTREAM_MOVE", "true"),
    )


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    return Path(os.path.expanduser(environment[name])) if environment.get(name) else None


def _truth(environment: Mapping[str, str], name: str, default: str) -> bool:
    text = environment.get(name) or default
    if text not in {"true", "false"}:
        raise SettingsError(f"{name} is {text!r}, but must be true or false")
    return text == "true"


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise SettingsError(f"{name} is {text!r}, but must be a number of seconds from 0 to 3600")
    return seconds
