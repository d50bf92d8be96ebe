"""The numbers by which workers work, wait and look."""

from __future__ import annotations

import itertools

import pytest

from inturn.applier import pacing


def test_an_idle_worker_looks_ever_more_rarely_up_to_a_second() -> None:
    sleeps = list(itertools.islice(_polls(), 10))
    assert sleeps == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0, 1.0]


def _polls() -> itertools.accumulate[float]:
    return itertools.accumulate(
        itertools.repeat(pacing.FIRST_POLL_SECONDS), lambda seconds, _: pacing.next_poll(seconds)
    )


@pytest.mark.parametrize(
    ("seconds_per_key", "keys"),
    [(0.0, 50), (0.0001, 50), (0.001, 10), (0.004, 2), (0.02, 1), (5.0, 1), (pacing.NEVER, 1)],
)
def test_as_many_keys_share_a_transaction_as_fit_and_one_at_least(seconds_per_key: float, keys: int) -> None:
    assert pacing.fitting_keys(seconds_per_key, 50) == keys


@pytest.mark.parametrize(
    ("before", "now", "batch_seconds", "known"),
    [
        (pacing.NEVER, 0.004, 0.01, 0.004),
        (0.002, 0.001, 0.01, 0.001),
        (0.002, 0.030, 0.09, 0.0022),
        (0.002, 0.030, 0.10, 0.003),
        (0.002, 0.0021, 0.10, 0.0021),
        (0.002, 0.000001, 0.01, 0.0001),
    ],
)
def test_what_a_key_takes_is_that_of_the_quickest_batch_which_is_forgotten_slowly(
    before: float, now: float, batch_seconds: float, known: float
) -> None:
    """On a busy machine few batches wait for nobody: those that do would make the next ones smaller."""
    assert pacing.seconds_per_key(before, now, batch_seconds, 50) == pytest.approx(known)


def test_handlers_that_become_slow_share_no_long_transaction_soon() -> None:
    """From 50 that take nothing to 10 ms each: for how long batches take twice as long as they should."""
    per_key, long_seconds = pacing.seconds_per_key(pacing.NEVER, 0.0, 0.0, 50), 0.0
    while (seconds := pacing.fitting_keys(per_key, 50) * 0.010) > 2 * pacing.BATCH_SECONDS:
        long_seconds += seconds
        per_key = pacing.seconds_per_key(per_key, 0.010, seconds, 50)
    assert long_seconds < 4.0


@pytest.mark.parametrize(
    ("trips", "slowness"),
    [
        ([], 1.0),
        ([0.0], 1.0),
        ([0.001] * 9, 1.0),
        ([0.001, *[0.003] * 5], 1.0),
        ([0.001, 0.5, 0.001, 0.001, 0.001], 1.0),  # one that happened to wait
        ([0.001, *[0.006] * 5], 2.0),
        ([0.001, *[1.0] * 5], 10.0),
        ([0.001, *[1.0] * 5, *[0.001] * 3], 1.0),
    ],
)
def test_a_machine_is_busy_where_most_of_the_latest_trips_take_much_longer_than_the_quickest(
    trips: list[float], slowness: float
) -> None:
    made = pacing.Trips()
    for seconds in trips:
        made.add(seconds)
    assert made.slowness == pytest.approx(slowness)


def test_a_way_that_has_become_longer_for_good_is_no_busy_machine() -> None:
    """Its transactions would be ten times as long as they should be, as long as the connection lives."""
    made = pacing.Trips()
    for seconds in [0.001] * 5 + [0.1] * 2 * pacing.TRIPS:
        made.add(seconds)
    assert made.slowness == 1.0
    for seconds in [1.0] * (pacing.TRIPS + 5):
        made.add(seconds)
    assert made.slowness > 1.0, "what was usual is remembered over a whole span"


@pytest.mark.parametrize(("batch", "visit"), [(0.0, 0.1), (0.01, 0.1), (0.05, 0.5), (0.1, 1.0), (60.0, 1.0)])
def test_a_visit_lasts_ten_batches_within_bounds(batch: float, visit: float) -> None:
    assert pacing.visit_seconds(batch) == pytest.approx(visit)


@pytest.mark.parametrize(
    ("batch", "back"), [(0.01, 0.0), (0.099, 0.0), (0.1, 0.002), (0.5, 0.01), (60, 0.02)]
)
def test_a_worker_steps_back_after_a_long_batch_alone(batch: float, back: float) -> None:
    assert pacing.step_back_seconds(batch) == pytest.approx(back)


@pytest.mark.parametrize(("failed", "most"), [(0, 0.1), (1, 0.2), (4, 1.6), (5, 2.0), (100_000, 2.0)])
def test_connecting_again_waits_ever_longer_and_half_of_that_at_least(failed: int, most: float) -> None:
    waits = [pacing.reconnect_seconds(failed) for _ in range(200)]
    assert most / 2 <= min(waits) < max(waits) <= most
