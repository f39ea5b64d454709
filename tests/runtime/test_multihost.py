"""Agreement between processes. tests/launch/test_distributed.py has the tests with several processes."""

from lmtrain.runtime import multihost


def test_maximum_is_that_of_the_call_before_unless_it_is_asked_for_now():
    maximum = multihost.AsyncMax()  # of one process: the reduction runs on its devices alone
    assert maximum(1.0, 5.0) == (1.0, 5.0)
    assert maximum(2.0, 6.0) == (1.0, 5.0)
    assert maximum(3.0, 7.0, now=True) == (3.0, 7.0)
    assert maximum(4.0, 8.0) == (3.0, 7.0)
