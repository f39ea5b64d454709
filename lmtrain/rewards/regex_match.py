"""Matches of a regular expression, as a reward file for the worker: each match has a limit of time."""

import re
import signal


def reward(prompts, completions, rows):
    """1.0 for a match somewhere in the completion, 0.0 without one, or the text 'time limit'.

    Args:
      rows: {'pattern', 'seconds'} of each completion.
    """
    signal.signal(signal.SIGALRM, _stop)  # the matcher of `re` checks for signals while it backtracks
    return [_match(completion, row['pattern'], row['seconds']) for completion, row in zip(completions, rows)]


def _match(completion, pattern, seconds):
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return float(re.search(pattern, completion) is not None)
    except TimeoutError:
        return 'time limit'
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(number, frame):
    raise TimeoutError
