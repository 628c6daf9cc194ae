"""The time axis of a run."""

from dataclasses import dataclass

from loadgen.clock import now_ns, unix_offset_ns, unix_to_axis_ns


@dataclass(frozen=True, slots=True)
class Axis:
    """Moments of one run: nanoseconds since `zero_ns` of `loadgen.clock`."""

    zero_ns: int

    def now(self) -> int:
        """Return the present moment."""
        return now_ns() - self.zero_ns

    def from_unix(self, unix_seconds: float) -> int:
        """Place a moment that this machine's wall clock gave."""
        return unix_to_axis_ns(unix_seconds, unix_offset_ns()) - self.zero_ns
