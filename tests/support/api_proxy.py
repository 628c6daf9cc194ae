"""A whole API server of what is there: a proxy before the real one for custom resources.

Problem: that server (`tests.support.api_server`) knows custom resources only, and has no list of its groups, which
clients such as kopf ask for first. Protocol: the kinds of Kubernetes that the operator uses are installed as custom
resources of stand-in groups (``apps/v1`` as ``apps.standin.example/v1``); the proxy answers the questions for groups,
and puts the stand-ins' paths and versions where clients expect the real ones. Server-side apply, conflicts, watches,
finalizers and owner references then are the real server's.

Caveats: stand-ins take any field, their lists are atomic, and nothing acts on them: no pods are made, nothing is
scheduled, nothing is collected. A test says what a cluster would have done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.api_server import ApiServer

_STANDINS = {
    "": (
        "core.standin.example",
        {"Pod": "pods", "Service": "services", "Secret": "secrets", "ConfigMap": "configmaps"},
    ),
    "apps": ("apps.standin.example", {"StatefulSet": "statefulsets"}),
}
_MORE_CORE = {"Event": ("events", "Namespaced"), "Node": ("nodes", "Cluster"), "Namespace": ("namespaces", "Cluster")}
_START_S = 20.0


def standin_crds() -> list[dict[str, Any]]:
    """Return the CustomResourceDefinitions of the stand-ins."""
    made = []
    for group, kinds in _STANDINS.values():
        scoped = {kind: (plural, "Namespaced") for kind, plural in kinds.items()}
        if group.startswith("core"):
            scoped.update(_MORE_CORE)
        for kind, (plural, scope) in scoped.items():
            names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
            schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            made.append(
                {
                    "apiVersion": "apiextensions.k8s.io/v1",
                    "kind": "CustomResourceDefinition",
                    "metadata": {"name": f"{plural}.{group}"},
                    "spec": {"group": group, "scope": scope, "names": names, "versions": [version]},
                }
            )
    return made


class ApiProxy:
    """The proxy, once `running`. `http` is for tests: paths and versions as on a cluster."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self._server = server
        self._certificates = server.kubeconfig.parent
        self.kubeconfig = folder / "proxy-kubeconfig"
        self.asked: list[tuple[str, str, str]] = []  # user agent, method, path
        self.broken = False  # as if the API server were away
        self.http = httpx.Client(trust_env=False, timeout=30.0)
        self._uvicorn: uvicorn.Server | None = None
        self._known: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[ApiProxy]:
        """Serve on loopback."""
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        routes = [
            Route("/api", self._versions),
            Route("/apis", self._groups),
            Route("/api/v1", self._core),
            Route("/apis/apps/v1", self._apps),
            Route("/{path:path}", self._forward, methods=methods),
        ]
        crds = self._server.http.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").json()["items"]
        self._known = [crd["spec"] for crd in crds]
        app = Starlette(routes=routes, lifespan=self._lifespan)
        # Of the loops that there may be, the one of the standard library closes what others leave open.
        config = uvicorn.Config(app, port=0, log_level="error", loop="asyncio", timeout_graceful_shutdown=1)
        self._uvicorn = uvicorn.Server(config)
        thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + _START_S
        while not self._uvicorn.started:
            assert time.monotonic() < deadline, "the proxy does not start"
            time.sleep(0.01)
        port = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        self.http.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        self._write_kubeconfig(f"http://127.0.0.1:{port}")
        try:
            yield self
        finally:
            self._uvicorn.should_exit = True
            thread.join(_START_S)
            self.http.close()

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        context = ssl.create_default_context(cafile=self._certificates / "ca.pem")
        context.load_cert_chain(self._certificates / "client.pem", self._certificates / "client.key")
        async with httpx.AsyncClient(
            base_url=self._server.url, verify=context, trust_env=False, timeout=600.0
        ) as self._client:
            yield

    # -- discovery -----------------------------------------------------------------------------------------------------

    async def _versions(self, _: Request) -> Response:
        return JSONResponse({"kind": "APIVersions", "versions": ["v1"]})

    async def _groups(self, _: Request) -> Response:
        version = {"groupVersion": "apiextensions.k8s.io/v1", "version": "v1"}
        groups: dict[str, Any] = {
            "apiextensions.k8s.io": {
                "name": "apiextensions.k8s.io",
                "versions": [version],
                "preferredVersion": version,
            }
        }
        for spec in self._known:
            group = "apps" if spec["group"].startswith("apps.standin") else spec["group"]
            if not group.endswith("standin.example"):
                versions = [{"groupVersion": f"{group}/{v['name']}", "version": v["name"]} for v in spec["versions"]]
                groups[group] = {"name": group, "versions": versions, "preferredVersion": versions[0]}
        return JSONResponse({"kind": "APIGroupList", "apiVersion": "v1", "groups": list(groups.values())})

    async def _core(self, _: Request) -> Response:
        return self._resources("core.standin.example", "v1")

    async def _apps(self, _: Request) -> Response:
        return self._resources("apps.standin.example", "apps/v1")

    def _resources(self, group: str, told: str) -> Response:
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        resources = [
            {
                "name": spec["names"]["plural"],
                "singularName": spec["names"]["singular"],
                "namespaced": spec["scope"] == "Namespaced",
                "kind": spec["names"]["kind"],
                "verbs": verbs,
            }
            for spec in self._known
            if spec["group"] == group
        ]
        return JSONResponse({"kind": "APIResourceList", "groupVersion": told, "resources": resources})

    # -- everything else -----------------------------------------------------------------------------------------------

    async def _forward(self, request: Request) -> Response:
        path, group = request.url.path, None
        self.asked.append((request.headers.get("user-agent", ""), request.method, path))
        if self.broken:
            return Response(status_code=503)
        for real, (standin, _) in _STANDINS.items():
            start = f"/apis/{real}/v1/" if real else "/api/v1/"
            if path.startswith(start):
                path, group = f"/apis/{standin}/v1/{path.removeprefix(start)}", (real, standin)
        body = await request.body()
        if group and body:
            body = self._as_standin(body, path, *group, posted=request.method == "POST")
        headers = {
            name: value for name, value in request.headers.items() if name in {"content-type", "accept", "user-agent"}
        }
        headers["accept-encoding"] = "identity"
        outgoing = self._client.build_request(
            request.method, path, params=request.query_params, content=body, headers=headers
        )
        answer = await self._client.send(outgoing, stream=True)
        media_type = answer.headers.get("content-type", "application/json")
        if "watch" in request.query_params:
            lines = self._lines(answer, group)
            return StreamingResponse(lines, answer.status_code, media_type=media_type)
        content = self._as_real(await answer.aread(), group)
        await answer.aclose()
        return Response(content, answer.status_code, media_type=media_type)

    async def _lines(self, answer: httpx.Response, group: tuple[str, str] | None) -> AsyncIterator[bytes]:
        try:
            async for line in answer.aiter_lines():
                if self._uvicorn is None or self._uvicorn.should_exit:
                    return
                yield self._as_real(line.encode(), group) + b"\n"
        except (httpx.HTTPError, ClientDisconnect, asyncio.CancelledError):
            return
        finally:
            await answer.aclose()

    def _as_standin(self, body: bytes, path: str, real: str, standin: str, *, posted: bool) -> bytes:
        plain = json.loads(body)
        told = f"{real}/v1" if real else "v1"
        if plain.get("apiVersion", told) == told:
            # Who posts to a path need not say the kind.
            kinds = {spec["names"]["plural"]: spec["names"]["kind"] for spec in self._known if spec["group"] == standin}
            kind = kinds.get(re.sub(r"^/apis/[^/]+/v1/(namespaces/[^/]+/)?", "", path).partition("/")[0])
            if plain.get("kind", kind) == kind and ("apiVersion" in plain or posted):
                plain = {"kind": kind, **plain, "apiVersion": f"{standin}/v1"}
        return json.dumps(plain).encode()

    @staticmethod
    def _as_real(body: bytes, group: tuple[str, str] | None) -> bytes:
        if group is None:
            return body
        real, standin = group
        told = f'"apiVersion":"{real}/v1"' if real else '"apiVersion":"v1"'
        return body.replace(f'"apiVersion":"{standin}/v1"'.encode(), told.encode())

    def _write_kubeconfig(self, url: str) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": url}}],
            "users": [{"name": "tests", "user": {}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests", "namespace": "default"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
