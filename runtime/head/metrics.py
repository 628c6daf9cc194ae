"""The pipeline's metrics on the server's ``/metrics``, beside vLLM's.

They are kept in the engine's process (`runtime.engine.metrics`) and fetched when somebody looks. A collector must not
wait, so a request for ``/metrics`` fetches first and is answered then, with what was fetched last if the engine does
not answer in time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from prometheus_client import Metric
    from starlette.types import ASGIApp, Receive, Scope, Send

_FETCH_S = 1.0

logger = logging.getLogger(__name__)


class PipelineCollector(Collector):
    """Shows what `text` holds."""

    def __init__(self) -> None:
        self.text = ""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics that were fetched last."""
        return text_string_to_metric_families(self.text)


class FreshMetrics:
    """ASGI middleware: fetches before ``/metrics`` is answered.

    Args:
        app: what is served.
        collector: shows what was fetched.
        fetch: returns the metrics as text.

    """

    def __init__(self, app: ASGIApp, collector: PipelineCollector, fetch: Callable[[], Awaitable[str]]) -> None:
        self._app, self._collector, self._fetch = app, collector, fetch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"].rstrip("/") == "/metrics":
            try:
                self._collector.text = await asyncio.wait_for(self._fetch(), _FETCH_S)
            except Exception as error:  # noqa: BLE001 - whatever the engine's trouble is, vLLM's metrics are shown
                logger.warning("the pipeline's metrics are those from before: %s", str(error) or type(error).__name__)
        await self._app(scope, receive, send)
