"""What a server says about itself before the load begins: the name of its model, and whether it is vLLM."""

from dataclasses import dataclass

import httpx
import msgspec

from loadgen.errors import ServerError
from loadgen.streaming.chunks import error_message
from loadgen.streaming.target import Target, authorization

_TIMEOUT_S = 10.0


class _Model(msgspec.Struct):
    id: str
    owned_by: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


@dataclass(frozen=True, slots=True)
class Discovered:
    """The model's name as the server knows it, and whether to ask for token ids."""

    model: str
    token_ids: bool


async def discover(target: Target) -> Discovered:
    """Ask `GET /v1/models` for what the target leaves open; a target that leaves nothing open is not asked.

    Raises:
        OptionsError: the key's environment variable is not set.
        ServerError: the server cannot be asked, or lists no model.
    """
    wanted = target.token_ids
    if target.model is not None and wanted != "auto":
        return Discovered(target.model, wanted == "on")
    url = f"{target.base_url.rstrip('/').removesuffix('/v1')}/v1/models"
    line = authorization(target).strip()
    headers = {} if not line else {"authorization": line.partition(": ")[2]}
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as http:
            response = await http.get(url, headers=headers)
        if response.status_code != httpx.codes.OK:
            said = error_message(response.content) or response.reason_phrase
            raise ServerError(f"{url} answers HTTP {response.status_code}: {said}")
        models = msgspec.json.decode(response.content, type=_Models).data
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        raise ServerError(f"{url} does not name a model: {error or type(error).__name__}") from error
    if not models:
        raise ServerError(f"{url} lists no model")
    chosen = next((model for model in models if model.id == target.model), models[0])
    return Discovered(target.model or chosen.id, wanted == "on" or (wanted == "auto" and chosen.owned_by == "vllm"))
