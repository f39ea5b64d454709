"""From config.task to batches of a task: rows read, labelled, encoded and laid out once, before anything compiles."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lmtrain.data.corpus import Split
from lmtrain.data.text import Tokenizer

TASKS = ('chat', 'classify', 'regress', 'tag', 'span')


@dataclass(frozen=True)
class Task:
    """What `prepare_task` gives; where a run needs a corpus it has the same names (`tokenizer`, `splits`, ...)."""

    name: str  # one of TASKS
    tokenizer: Tokenizer
    splits: dict[str, Split]  # 'train', 'validation', 'test'; num_tokens and num_bytes are of targets where it is chat
    fingerprint: str  # hex sha256 of rows, tokenizer, settings
    seq_len: int
    lengths: tuple[int, ...]  # T of the batches: one compiled program each, ascending
    labels: tuple[str, ...]  # names of the classes or tags; () elsewhere
    notes: tuple[str, ...]  # what was recognised, counted, cut or left out: to be said at the start

    def baselines(self) -> dict[str, float]:
        """{}: a task's loss is not in bits per byte."""
        return {}


def prepare_task(
    data: Mapping,
    *,
    name: str,
    train: Iterable[str] | str,
    validation: Iterable[str] | str,
    test: Iterable[str] | str,
    text: Iterable[str],
    label: str,
    labels: Iterable[str],
    shots: int,
    buckets: int,
    pack: bool,
    too_long: str,
    template: str,
    vocab_limit: int | None = None,
) -> Task:
    """The rows of config.task as batches: `prepare_task(config.data, **config.task, vocab_limit=...)`.

    Args:
      data: config.data, of which `root`, `tokenizer`, `vocab_size`, `seq_len`, `batch_size`, and the shares
        `validation` and `test` (taken from the training rows, by hash, where no file of their own is named) are read.
      name: 'chat' | 'classify' | 'regress' | 'tag' | 'span'.
      train, validation, test: files of rows (jsonl(.gz), json, csv, tsv, parquet, conll; SQuAD's json), each a path
        from data.root or (path, label): then the file's lines are texts of that label.
      text: fields that are read, in their order: one text or a pair; ('question', 'context') for 'span'; the words
        for 'tag'; the prompt for 'chat' (() there recognises messages, prompt + completion, alpaca, sharegpt).
      label: field of the label: class, number, tags, answers; the completion for 'chat'.
      labels: the classes in the order of their numbers; () is those of the training rows, sorted.
      shots: training rows kept of each class, chosen by hash; 0 is all.
      buckets: how many lengths T batches come in, powers of two up to data.seq_len; 1 is data.seq_len alone.
      pack: several conversations a row, isolated ('chat' alone).
      too_long: of rows longer than data.seq_len: 'error' | 'cut' (at the end; contexts of 'span' in windows that
        overlap) | 'drop'.
      template: 'auto' (the tokenizer's own, else 'plain') | 'plain' | file of a Jinja chat template ('chat' alone).
      vocab_limit: rows of the model's embedding.

    Raises FileNotFoundError, ValueError or ImportError naming the file and line, the field, and the way out.
    """
    raise NotImplementedError
