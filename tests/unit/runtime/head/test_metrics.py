"""``/metrics`` shows the pipeline's metrics as they are when somebody looks."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, make_asgi_app

from runtime.head import metrics
from runtime.head.metrics import FreshMetrics, PipelineCollector

TEXT = "# HELP midstream_epoch Epoch.\n# TYPE midstream_epoch gauge\nmidstream_epoch {}\n"


class Engine:
    """What is fetched from; counts how often."""

    def __init__(self) -> None:
        self.epoch = 0
        self.error: Exception | None = None
        self.hangs = False

    async def fetch(self) -> str:
        self.epoch += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return TEXT.format(self.epoch)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def http(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    registry, collector, app = CollectorRegistry(), PipelineCollector(), FastAPI()
    registry.register(collector)
    app.mount("/metrics", make_asgi_app(registry=registry))
    app.add_middleware(FreshMetrics, collector=collector, fetch=engine.fetch)
    app.add_api_route("/other", lambda: "ok")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://head") as client:
        yield client


async def test_every_look_fetches(http: httpx.AsyncClient):
    assert "midstream_epoch 1.0" in (await http.get("/metrics/")).text
    assert "midstream_epoch 2.0" in (await http.get("/metrics/")).text


async def test_nothing_else_does(http: httpx.AsyncClient, engine: Engine):
    await http.get("/other")
    assert engine.epoch == 0


async def test_an_engine_in_trouble_leaves_the_metrics_of_before(http: httpx.AsyncClient, engine: Engine, caplog):
    await http.get("/metrics/")
    engine.error = RuntimeError("the engine is gone")
    response = await http.get("/metrics/")
    assert (response.status_code, "midstream_epoch 1.0" in response.text) == (200, True)
    assert "the engine is gone" in caplog.text


async def test_an_engine_that_hangs_does_not_hold_prometheus(http: httpx.AsyncClient, engine: Engine, monkeypatch):
    monkeypatch.setattr(metrics, "_FETCH_S", 0.01)
    engine.hangs = True
    assert (await http.get("/metrics/")).status_code == 200
