import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.layout import LOCAL_NODE, LayerRange, Layout, LayoutError, even_split

NODES = st.sampled_from([LOCAL_NODE, "edge-1", "cloud.b", "x"])


@st.composite
def layouts(draw: st.DrawFn, total: int | None = None) -> Layout:
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    if total is not None:
        counts = [int(part) for part in even_split(total, len(counts)).split(",")]
    return Layout.parse(",".join(f"{count}@{draw(NODES)}" for count in counts), sum(counts))


def test_a_layout_is_the_number_of_layers_of_each_stage():
    layout = Layout.parse("8,12,10", 30)
    assert [stage.layers for stage in layout.stages] == [LayerRange(0, 8), LayerRange(8, 20), LayerRange(20, 30)]
    assert layout.counts == (8, 12, 10)
    assert layout.total_layers == 30
    assert len(layout) == 3
    assert layout.nodes == {LOCAL_NODE}


def test_a_stage_may_name_its_node():
    layout = Layout.parse(" 8@edge-1 , 22 @ cloud.b", 30)
    assert layout.nodes == {"edge-1", "cloud.b"}
    assert (layout.node_of(7), layout.node_of(8)) == ("edge-1", "cloud.b")
    assert str(layout) == "8@edge-1,22@cloud.b"


def test_the_local_node_need_not_be_named():
    assert Layout.parse("2@local,2", 4) == Layout.parse("2,2", 4)
    assert str(Layout.parse("2@local,2", 4)) == "2,2"


@given(layouts())
def test_a_layout_reads_back_as_it_was_written(layout: Layout):
    assert Layout.parse(str(layout), layout.total_layers) == layout


@given(layouts())
def test_every_layer_belongs_to_exactly_one_stage(layout: Layout):
    for layer in range(layout.total_layers):
        assert sum(layer in stage.layers for stage in layout.stages) == 1
    assert sum(layout.counts) == layout.total_layers


@given(st.data(), st.integers(6, 30))
def test_layers_move_when_and_only_when_their_node_changes(data: st.DataObject, total: int):
    before, after = data.draw(layouts(total)), data.draw(layouts(total))
    moved = before.moved_layers(after)
    assert moved == tuple(sorted(set(moved)))
    for layer in range(total):
        assert (layer in moved) == (before.node_of(layer) != after.node_of(layer))
    assert moved == after.moved_layers(before)


def test_a_new_split_on_one_node_moves_no_layer():
    assert Layout.parse("15,15", 30).moved_layers(Layout.parse("8,12,10", 30)) == ()


@pytest.mark.parametrize("text", ["", ",", "15,", "15;15", "-1,31", "15@,15", "15@-a,15", "15@a b,15", "a", "1.5,28.5"])
def test_a_text_that_is_no_layout_is_refused_with_an_example(text: str):
    with pytest.raises(LayoutError, match=r"a stage is a number of layers.*for example 15,15"):
        Layout.parse(text, 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("15,14", "add up to 29, but the model has 30 layers; '15,15' would work"),
        ("0,30", "stage 0 is empty"),
        ("30,0", "stage 1 is empty"),
        (",".join(["1"] * 31), "asks for 31 stages, but the model has only 30 layers"),
        ("9" * 9, "add up to 999999999"),
    ],
)
def test_a_layout_that_does_not_fit_the_model_is_refused_with_what_would(text: str, message: str):
    with pytest.raises(LayoutError, match=message):
        Layout.parse(text, 30)


def test_a_number_too_long_for_python_is_refused_like_any_other():
    with pytest.raises(LayoutError):
        Layout.parse("9" * 5000, 30)


@given(st.text(max_size=20), st.integers(1, 40))
def test_whatever_is_asked_for_is_a_layout_or_a_layout_error(text: str, total: int):
    try:
        layout = Layout.parse(text, total)
    except LayoutError:
        return
    assert layout.total_layers == total


@given(st.integers(1, 100), st.integers(-3, 120))
def test_an_even_split_is_a_layout_with_stages_that_differ_by_one_layer_at_most(total: int, stages: int):
    counts = Layout.parse(even_split(total, stages), total).counts
    assert len(counts) == max(1, min(stages, total))
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("text", "lost", "left"),
    [
        ("2@a,2@b", {"b"}, "4@a"),
        ("2@a,2@b", {"a"}, "4@b"),
        ("2@a,2@b", {"c"}, "2@a,2@b"),
        ("2@a,2@b,2@c", {"b"}, "3@a,3@c"),
        ("2@a,3@b,2@c", {"b"}, "3@a,4@c"),
        ("2@a,1@b,1@c,2@a", {"b", "c"}, "3@a,3@a"),
        ("1@b,2@a,1@b", {"b"}, "4@a"),
        ("2,2@b", {"b"}, "4"),
    ],
)
def test_without_a_node_its_layers_go_to_the_stages_beside_it(text: str, lost: set[str], left: str):
    total = sum(int(part.split("@")[0]) for part in text.split(","))
    assert str(Layout.parse(text, total).without(lost)) == left


@given(layouts(), st.sets(NODES))
def test_without_some_nodes_every_stage_that_is_left_keeps_its_layers_and_all_layers_are_served(
    layout: Layout, lost: set[str]
):
    kept = [stage for stage in layout.stages if stage.node not in lost]
    if not kept:
        with pytest.raises(LayoutError, match="no stage is left"):
            layout.without(lost)
        return
    left = layout.without(lost)
    assert left.total_layers == layout.total_layers
    assert Layout.parse(str(left), layout.total_layers) == left
    for before, after in zip(kept, left.stages, strict=True):
        assert after.node == before.node
        assert after.layers.first <= before.layers.first < before.layers.stop <= after.layers.stop
    if not layout.nodes & lost:
        assert left == layout


@given(layouts(), NODES)
def test_whatever_moves_the_precision_stays(layout: Layout, node: str):
    layout = layout.in_precision("bfloat16")
    assert layout.moved_to(0, node).precision == "bfloat16"
    assert layout.without(()).precision == "bfloat16"
    assert layout.without_stages(()) == layout


@given(layouts())
def test_another_precision_is_another_layout_of_the_same_text(layout: Layout):
    other = layout.in_precision("bfloat16")
    assert other != layout
    assert (str(other), other.moved_layers(layout)) == (str(layout), ())
