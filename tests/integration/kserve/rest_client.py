"""Calls of KServe's own client, made in its environment: an address and calls as JSON in, their results as JSON out."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def main() -> None:
    """Make the calls one after the other."""
    job = json.load(sys.stdin)
    results = []
    for call in job["calls"]:
        config = RESTConfig(protocol=call.pop("protocol", "v2"), timeout=120)
        async with InferenceRESTClient(config) as client:
            try:
                results.append(await ask(client, job["address"], **call))
            except httpx.HTTPStatusError as error:
                results.append({"status": error.response.status_code, "error": str(error)})
    json.dump(results, sys.stdout)


async def ask(client: InferenceRESTClient, address: str, what: str, **about: Any) -> Any:
    """Make one call."""
    if what == "server_live":
        return await client.is_server_live(address)
    if what == "server_ready":
        return await client.is_server_ready(address)
    if what == "model_ready":
        return await client.is_model_ready(address, about["model"])
    if what == "predict":
        return await client.infer(address, about["body"], model_name=about["model"])
    request = InferRequest(
        about["model"],
        [tensor(given) for given in about["inputs"]],
        request_id=about.get("id"),
        parameters=about.get("parameters"),
        request_outputs=[RequestedOutput(name) for name in about["outputs"]] if "outputs" in about else None,
    )
    answer = await client.infer(address, request, model_name=about["model"])
    assert isinstance(answer, InferResponse)
    outputs = {output.name: list(output.data) for output in answer.outputs}
    return {"id": answer.id, "model_name": answer.model_name, "outputs": outputs}


def tensor(given: dict[str, Any]) -> InferInput:
    """Make an input; binary if it says so."""
    binary = given.pop("binary", False)
    if not binary:
        return InferInput(**given)
    values = np.array(given.pop("data"), dtype={"BYTES": np.object_, "INT64": np.int64}[given["datatype"]])
    made = InferInput(**given)
    made.set_data_from_numpy(values, binary_data=True)
    return made


if __name__ == "__main__":
    asyncio.run(main())
