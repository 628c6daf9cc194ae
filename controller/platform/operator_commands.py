"""`midstream operator`: what the operator's Deployment runs."""

from __future__ import annotations

from typing import Annotated

import typer

from controller.console import fail


def operator(
    namespace: Annotated[str, typer.Option(help="The namespace whose pipelines it keeps.")],
    peering: Annotated[
        str, typer.Option(help="The KopfPeering by which replicas agree on the one that works.")
    ] = "midstream",
    liveness: Annotated[
        str | None, typer.Option(help="Where to answer probes, such as http://0.0.0.0:8080/healthz.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Image of heads, stages and functions; default: the one this pod runs.")
    ] = None,
) -> None:
    """Keep what runs on a cluster in step with the LLMPipeline objects of a namespace."""
    try:
        from controller.platform.operator.main import OperatorError, OperatorOptions, run
    except ModuleNotFoundError as error:
        fail(f"the operator needs {error.name}, which is not installed: pip install '.[operator]' in a checkout")
    try:
        run(OperatorOptions(namespace, peering, liveness, image))
    except OperatorError as error:
        fail(str(error))
