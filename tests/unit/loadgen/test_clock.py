import time

from loadgen.clock import now_ns, unix_offset_ns, unix_to_axis_ns


def test_a_unix_moment_lands_where_it_was_on_the_axis():
    before = now_ns()
    unix_seconds = time.time()
    after = now_ns()

    placed = unix_to_axis_ns(unix_seconds, unix_offset_ns())

    slack = 5_000_000  # a float of unix seconds resolves 240 ns; the rest is for a wall clock being slewed
    assert before - slack <= placed <= after + slack


def test_the_offset_is_unix_time_minus_axis_time():
    assert abs((now_ns() + unix_offset_ns()) / 1e9 - time.time()) < 1
