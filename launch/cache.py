"""lists the caches of prepared texts and compiled programs; --prune removes entries not used for a month.

lmtrain cache
lmtrain cache --prune --days=7
lmtrain cache --cache=/fast/disk

Missing entries are created again when they are needed. --prune keeps entries
that a process is writing and removes incomplete ones of ended processes.
"""

import collections
import pathlib
import time

from absl import flags

from lmtrain import files
from lmtrain.data import cache_contents
from lmtrain.errors import InputError
from lmtrain.report import terminal

FLAGS = flags.FlagValues()
flags.DEFINE_bool('prune', False, 'remove entries', flag_values=FLAGS)
flags.DEFINE_float('days', 30, 'that were not used for so many days; 0 is all', lower_bound=0, flag_values=FLAGS)
text = 'the directory, if recipes set data.cache; by default lmtrain in the cache directory of the user'
flags.DEFINE_string('cache', None, text, flag_values=FLAGS)


def run(values: flags.FlagValues) -> None:
    directory = pathlib.Path(values.cache) if values.cache else default()
    if not directory.is_dir():
        raise InputError(f'{directory} does not exist: nothing is cached')
    if values.prune:
        removed = cache_contents.prune(directory, values.days)
        size = terminal.unit(sum(entry.size for entry in removed), 'B')
        count = '1 entry' if len(removed) == 1 else f'{len(removed):,} entries'
        print(f'removed: {count}, {size}\n')
    print('\n'.join([f'{directory}', *table(cache_contents.entries(directory), time.time())]))


def default() -> pathlib.Path:
    """The cache directory of recipes without data.cache. Raises InputError if the user has none."""
    caches = files.user_cache()
    if caches is None:
        raise InputError('there is no home directory, so nothing is cached: name a directory with --cache')
    return caches / 'lmtrain'


def table(entries: list[cache_contents.CacheEntry], now: float) -> list[str]:
    """Lines with the number, size and last use of the entries of each kind."""
    kinds = collections.defaultdict(list)
    for entry in entries:
        kinds[entry.kind].append(entry)
    rows = [('', 'entries', 'size', 'last used')]
    for kind, own in sorted(kinds.items(), key=lambda item: -sum(entry.size for entry in item[1])):
        age = max(0.0, now - max(entry.used for entry in own))
        size = terminal.unit(sum(entry.size for entry in own), 'B')
        rows.append((f'  {kind}', f'{len(own):,}', size, f'{terminal.duration(age)} ago'))
    rows.append(('total', f'{len(entries):,}', terminal.unit(sum(entry.size for entry in entries), 'B'), ''))
    return terminal.table(rows, right=(1, 2))
