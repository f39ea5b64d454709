"""Latency: the median over warm queries, one at a time."""

from lmtrain.inference import latency


def test_median_of_warm_queries():
    """The first answer of each query compiles and takes 100 seconds; later ones take as long as the query says."""
    now, seen = [0.0], []

    def answer(seconds):
        now[0] += seconds if seconds in seen else 100.0
        seen.append(seconds)

    assert latency.query_seconds(answer, [1.0, 2.0, 5.0], clock=lambda: now[0]) == 2.0
    assert len(seen) == 3 * (1 + latency.REPEATS)
