import re
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loadgen.reports.arms import arms_of, load_arms
from loadgen.reports.page import render, write_report
from loadgen.reports.plots import PLOTS, export_plot, plots_of
from loadgen.reports.sections import Section
from loadgen.reports.tables import Table
from loadgen.results.errors import ResultsError
from loadgen.results.reader import Run
from loadgen.results.writer import RunWriter
from tests.unit.loadgen.results.runs import Simulation, Stream, manifest, mark, request_row, run_of

EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(1)>' & $\\frac{1}{2}$ {{ 7*7 }} ]]>"
FULL = Simulation(
    requests=300,
    tokens=30,
    broken=3,
    cancelled=2,
    stages=3,
    stall_at_s=10.0,
    stall_ms=500.0,
    marks=[mark(10_000, 10_400), mark(20_000, name="intent")],
)


class Elements(HTMLParser):
    """Every element with its attributes, and what is open."""

    VOID = frozenset({"meta", "path", "use", "rect", "circle", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]


def arms(**changes: object):
    runs = [
        replace(FULL.run(1, name="ways to change", arm="static", **changes), folder=Path("static")),
        replace(FULL.run(2, name="ways to change", arm="dynamic", **changes), folder=Path("dynamic")),
    ]
    return arms_of(runs)


@pytest.fixture(scope="module")
def page() -> str:
    return render(arms_of([FULL.run(1)]))


class TestOnePage:
    def test_it_needs_no_network_and_no_script(self, page):
        elements = Elements(page)
        assert not {"script", "link", "img", "iframe", "object", "image"} & set(elements.tags)
        assert not [a for a in elements.attributes if a[1].startswith("on")]
        links = {v for _, name, v in elements.attributes if name in ("src", "href", "xlink:href")}
        assert all(link.startswith("#") for link in links)
        assert "url(http" not in page
        assert "@import" not in page

    def test_the_headline_has_its_n(self, page):
        assert re.search(r"<dt>TTFT, median</dt><dd><strong>[\d.]+ ms</strong><small>p99 [^<]*, n = 297 requests", page)

    def test_it_says_what_makes_the_figures_less_than_they_seem(self, page):
        assert "3 of 300 streams broke (3 disconnected): they are in no latency" in page

    def test_what_matters_comes_first(self, page):
        order = [
            page.index(part) for part in ("<dl", "Read with care", "Arrivals and tokens", "Marked moments", "Latencies")
        ]
        assert order == sorted(order)

    def test_every_plot_has_words_and_a_table(self, page):
        elements = Elements(page)
        described = [v for tag, name, v in elements.attributes if tag == "svg" and name == "aria-label"]
        assert len(described) == elements.tags["svg"] == elements.tags["figure"] == 5
        assert all(len(words) > 30 for words in described)
        assert page.count("<summary>Key numbers</summary>") == 5
        assert ("html", "lang", "en") in elements.attributes

    def test_identifiers_occur_once_and_are_all_there(self, page):
        elements = Elements(page)
        found = Counter(v for _, name, v in elements.attributes if name == "id")
        assert [name for name, n in found.items() if n > 1] == []
        used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", page))
        assert {a or b for a, b in used} <= set(found)

    def test_plots_are_well_formed_and_follow_light_and_dark(self, page):
        for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
            ET.fromstring(svg)  # noqa: S314 - our own page
            assert "var(--ink)" in svg or "var(--muted)" in svg
            assert not re.search(r"#0[1-5]0[1-6]0[1-6]", svg)
        assert "prefers-color-scheme: dark" in page

    def test_it_is_the_same_for_the_same_run(self, page):
        assert render(arms_of([FULL.run(1)])) == page


class TestNamesFromOutside:
    def test_no_name_becomes_markup_or_a_formula(self):
        run = replace(FULL, marks=[mark(10_000, 10_400, name=EVIL, kind=EVIL)]).run(
            1,
            name=EVIL,
            arm=EVIL,
            error=EVIL,
            versions={EVIL: EVIL},
            machine={EVIL: EVIL},
            target={EVIL: EVIL},
            workload={EVIL: [EVIL]},
        )
        other = replace(
            run, folder=Path("other"), state="killed", manifest=run.manifest.model_copy(update={"arm": "b"})
        )
        for shown in ([run], [run, other]):
            page = render(arms_of(shown))
            elements = Elements(page)
            assert elements.tags["script"] == elements.tags["img"] == 0
            assert not [a for a in elements.attributes if a[1].startswith("on")]
            assert "&lt;script&gt;alert(1)" in page
            for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
                ET.fromstring(svg)  # noqa: S314 - our own page

    @pytest.mark.parametrize("name", ["$x^2$", "$\\nonsense{$"])
    def test_a_dollar_is_a_dollar(self, name):
        run = replace(FULL, marks=[mark(10_000, name=name)]).run(1)
        svg = re.search(r"<svg.*?</svg>", render(arms_of([run])), re.DOTALL)
        assert f">{name}<" in svg[0]


class TestSize:
    def test_a_large_run_makes_a_small_page_and_says_what_it_left_out(self):
        large = Simulation(
            requests=20_000,
            tokens=20,
            rate_per_s=100,
            stages=8,
            marks=[mark(5_000 * n, 5_000 * n + 300, name=f"change-{n}") for n in range(30)],
        )
        page = render(arms_of([large.run(1)]))
        assert len(page.encode()) < 1_500_000
        assert "of 20\u202f000 streams" in page

    def test_many_arms_still_fit_and_the_page_says_which_are_drawn(self):
        small = replace(FULL, requests=60)
        runs = [replace(small.run(n, arm=f"arm {n}"), folder=Path(str(n))) for n in range(18)]
        page = render(arms_of(runs))
        assert len(page.encode()) < 1_000_000
        assert "Of 18 arms the first 6 are drawn." in page
        assert page.count('<th scope="row">arm 17</th>') == 1  # in the table of all


class TestArms:
    def test_they_stand_side_by_side_and_are_compared_with_the_first(self):
        page = render(arms())
        assert "dynamic against static" in page
        assert '<th scope="row">static</th>' in page
        assert "Marked moments: dynamic" in page

    def test_repeats_of_an_arm_are_one_arm(self):
        runs = [replace(FULL.run(n, arm="static", repeat=n), folder=Path(str(n))) for n in (1, 0)]
        (arm,) = arms_of(runs)
        assert [run.manifest.repeat for run in arm.runs] == [0, 1]
        assert "static, repeat 2" in render([arm])

    def test_an_arm_that_cannot_be_compared_is_said(self):
        broken = run_of([Stream([1, 2], outcome="disconnected")], arm="broken")
        page = render(arms_of([FULL.run(1, arm="static"), broken]))
        assert "Not compared: B (broken) has no finished request" in page


class TestPoorRuns:
    @pytest.mark.parametrize(
        "run",
        [
            run_of([]),
            run_of([Stream([])]),
            run_of([Stream([5])]),
            run_of([Stream([5, 5], chunks=[0, 0])]),
            run_of([Stream([], outcome="refused")] * 3, [mark(1, 2), mark(1)]),
            run_of([Stream([5, 6], known=False)], lag_ms=None, state="killed"),
            run_of([Stream([5, 6])], samples=[("stage.0.busy", 0, 0.5)]),
        ],
        ids=["empty", "no token", "one token", "one chunk", "refused", "killed", "one sample"],
    )
    def test_whatever_is_missing_there_is_a_page(self, run: Run):
        page = render(arms_of([run]))
        assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


class TestFiles:
    def write_run(self, folder: Path, **changes: object) -> None:
        with RunWriter(folder, manifest(state="running", **changes)) as writer:
            for request in range(5):
                writer.tokens(request, 0, [10**6 * n for n in range(1, 11)], range(10))
                writer.request(request_row(request, Stream([float(n) for n in range(1, 11)])))

    def test_a_run_gets_its_summary_and_its_page(self, tmp_path):
        self.write_run(tmp_path)
        assert write_report(tmp_path) == tmp_path / "report.html"
        assert {"summary.json", "report.html"} <= {path.name for path in tmp_path.iterdir()}

    def test_an_experiment_gets_one_page_and_a_summary_for_each_run(self, tmp_path):
        for second, arm in enumerate(("static", "dynamic")):
            self.write_run(tmp_path / arm / "0", arm=arm, started_unix_ns=second * 10**9)
        write_report(tmp_path)
        assert (tmp_path / "report.html").is_file()
        assert (tmp_path / "static" / "0" / "summary.json").is_file()
        assert [arm.name for arm in load_arms(tmp_path)] == ["static", "dynamic"]  # as they were run

    def test_no_run_is_one_error(self, tmp_path):
        with pytest.raises(ResultsError, match="is no run and holds none"):
            write_report(tmp_path)


class TestExport:
    @pytest.mark.parametrize("key", PLOTS)
    def test_every_plot_as_a_file_of_its_own(self, key, tmp_path):
        for suffix, begin in ((".svg", b"<?xml"), (".png", b"\x89PNG")):
            path = tmp_path / f"plot{suffix}"
            export_plot(arms(), path, key)
            assert path.read_bytes().startswith(begin)
        assert "var(--" not in (tmp_path / "plot.svg").read_text()

    def test_what_cannot_be_done_is_said(self, tmp_path):
        with pytest.raises(ValueError, match="there is no plot 'pie': give one of timeline, latencies"):
            export_plot(arms(), tmp_path / "x.svg", "pie")
        with pytest.raises(ValueError, match=r"can be written as .svg or .png"):
            export_plot(arms(), tmp_path / "x.jpeg")
        with pytest.raises(ValueError, match="nothing to draw for plot 'stages'"):
            export_plot(arms_of([run_of([Stream([1, 2])])]), tmp_path / "x.svg", "stages")

    def test_without_samples_of_stages_there_is_no_plot_of_them(self):
        assert "stages" not in [plot.key for plot in plots_of(arms_of([run_of([Stream([1, 2])])]))]


class TestSections:
    SECTION = Section(
        title="What it is for",
        headline="It cost 24 ms.",
        table=Table("What it is for", "", ("", "pause"), (("live", "24 ms"),)),
        notes=("counted so",),
        further=(Table("Others", "as published", ("what", "figure"), (("downtime", "< 50 ms"),)),),
    )

    def runs(self, count: int, *, lag_ms: float) -> list[Run]:
        made = [run_of([Stream([5, 6, 7])], lag_ms=lag_ms, arm=f"arm {n}") for n in range(count)]
        return [replace(run, folder=Path(str(n))) for n, run in enumerate(made)]

    def test_they_stand_before_everything_else(self):
        page = render(arms(), (self.SECTION,))
        parts = (
            "It cost 24 ms.",
            ">24 ms<",
            "counted so",
            "as published",
            "&lt; 50 ms",
            "The runs behind it",
            "static</th>",
        )
        shown = [page.index(part) for part in parts]
        assert shown == sorted(shown)

    def test_arms_without_one_get_a_headline_of_their_own(self):
        assert "The worst gap between two tokens: " in render(arms_of(self.runs(5, lag_ms=0.1)))
        assert "Requests within the service level (TTFT ≤ 400 ms, TPOT ≤ 80.0 ms): static " in render(arms())

    def test_the_same_warning_of_many_runs_is_told_once(self):
        page = render(arms_of(self.runs(5, lag_ms=30.0)))
        assert "the generator fell behind in 5 of 5 runs: its own lateness is up to 30.0 ms (p99)" in page
        assert "the generator fell behind: its own timestamps" not in page
