"""Progress bars."""

import sys
from collections.abc import Iterable


def progress_bar(items: Iterable, label: str, total: int | None = None) -> Iterable:
    """The items, with a progress bar if stderr is a terminal and they take more than a second."""
    if not sys.stderr.isatty():
        return items
    import tqdm

    return tqdm.tqdm(items, label, total, unit=' documents', delay=1.0, leave=False)
