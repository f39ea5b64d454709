"""Latency of a query: seconds of one answer at a time on compiled programs."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

REPEATS = 3  # of every query


def query_seconds(
    answer: Callable[[Any], Any], queries: Iterable[Any], clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median seconds of `answer(query)` over all queries and repeats.

    Every query is answered once before it is timed, so that no compilation is counted. `answer` must return the result
    on the host, or wait for the device: jax returns before a computation has ended.

    >>> ticks = iter([0.0, 0.2, 1.0, 1.3, 2.0, 2.4])
    >>> round(query_seconds(len, ['a query'], clock=lambda: next(ticks)), 3)
    0.3
    """
    seconds = []
    for query in queries:
        answer(query)
        for _ in range(REPEATS):
            begun = clock()
            answer(query)
            seconds.append(clock() - begun)
    return statistics.median(seconds)
