"""The head of the functions' tests (the real control API, made up effects), with a status and a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse

from runtime.head.access import AccessPolicy
from tests.integration.functions.head import Head

if TYPE_CHECKING:
    from fastapi import FastAPI, Request


class ClusterHead(Head):
    """One start of a head in a pod, where a token is asked for."""

    def __init__(self, port: int, token: str) -> None:
        self.token = token
        self._access = AccessPolicy(False, token)
        self.phase: str | None = None
        super().__init__(port)
        self._pipeline.status = self.status

    def status(self) -> dict[str, Any]:
        """What the real pipeline says, see `runtime.engine.pipeline_status`."""
        layout, current, last = self.effects.serving, self.coordinator.current, self.coordinator.last
        return {
            "boot": self.coordinator.boot,
            "epoch": self.effects.epochs,
            "phase": self.phase or (str(current.machine.step) if current else "serving"),
            "layers": str(layout),
            "total_layers": layout.total_layers,
            "stages": [
                {
                    "index": index,
                    "name": f"stage-{index}",
                    "first_layer": stage.layers.first,
                    "last_layer": stage.layers.stop - 1,
                    "node": stage.node,
                    "pid": 1,
                    "memory_bytes": 1,
                }
                for index, stage in enumerate(layout.stages)
            ],
            "change": current.id if current else None,
            "last_change": last.report() if last else None,
        }

    def _app(self) -> FastAPI:
        app = super()._app()

        @app.middleware("http")
        async def _check(request: Request, call_next: Any) -> Any:
            refusal = self._access.refusal(request.headers)
            if refusal is not None:
                return JSONResponse({"error": {"message": refusal[1], "type": "access_denied"}}, refusal[0])
            return await call_next(request)

        return app
