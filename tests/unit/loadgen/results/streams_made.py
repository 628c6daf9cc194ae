"""Random runs for laws: few enough tokens for a naive reference, with every edge case among them."""

from hypothesis import strategies as st

from loadgen.results.columns import OUTCOMES
from tests.unit.loadgen.results.runs import Stream


@st.composite
def made_streams(draw: st.DrawFn) -> list[Stream]:
    """Streams with moments in whole ms: ties, bursts in one chunk, no tokens, no row, no due time, every outcome."""
    streams = []
    for _ in range(draw(st.integers(1, 6))):
        sent = draw(st.integers(-20, 200))
        due = draw(st.none() | st.integers(-30, 0).map(lambda late, sent=sent: sent + late))
        arrivals, at, chunks, chunk = [], sent, [], 0
        for gap in draw(st.lists(st.sampled_from([0, 0, 1, 5, 5, 5, 7, 40]) | st.integers(0, 300), max_size=14)):
            at += gap
            new = not arrivals or gap > 0 or draw(st.booleans())
            chunk += new
            arrivals.append(float(at))
            chunks.append(chunk)
        known = not arrivals or draw(st.booleans() | st.just(True))
        outcome = draw(st.just("finished") | st.sampled_from(OUTCOMES))
        ended = at + draw(st.integers(0, 100))
        streams.append(
            Stream(
                arrivals,
                sent=float(sent),
                due=None if due is None else float(due),
                ended=float(ended),
                outcome=outcome,
                chunks=chunks,
                known=known,
            )
        )
    return streams
