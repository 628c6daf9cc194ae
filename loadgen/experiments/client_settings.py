"""How requests are sent, as it is written in the file; `loadgen.streaming.target` says what each setting does."""

from typing import Annotated, Any, Literal

from pydantic import Field

from loadgen.experiments.strict import Seconds, Strict
from loadgen.streaming.target import Limits, Target


class ClientSettings(Strict):
    """Settings of the client; where they are not given, those of `Limits` and `Target`.

    Attributes:
        ignore_eos: Ask for exactly as many tokens as planned. On by default, other than in `Target`: arms are compared,
            and answers that end where they like differ in length.
    """

    endpoint: Literal["completions", "chat"] = "completions"
    token_ids: Literal["auto", "on", "off"] = "auto"  # noqa: S105 - no password
    continuous_usage: bool = False
    ignore_eos: bool = True
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    extra_body: dict[str, Any] = Field(default_factory=dict)
    max_in_flight: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    connect_s: Seconds = 5.0
    silence_s: Seconds = 300.0
    total_s: Seconds | None = None
    grace_s: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    retries: Annotated[int, Field(ge=0, le=100)] = 0

    def target(self, base_url: str, model: str, api_key_env: str | None) -> Target:
        """Return what the client needs to know of a server."""
        return Target(
            base_url=base_url,
            model=model,
            endpoint=self.endpoint,
            token_ids=self.token_ids,
            continuous_usage=self.continuous_usage,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            api_key_env=api_key_env,
            extra_body=self.extra_body,
        )

    def limits(self) -> Limits:
        """Return where the client stops waiting."""
        return Limits(
            max_in_flight=self.max_in_flight,
            connect_s=self.connect_s,
            silence_s=self.silence_s,
            total_s=self.total_s,
            grace_s=self.grace_s,
            retries=self.retries,
        )
