"""Text in, batches out: sources, tokenizers, packing, corruption, and a stream whose place is the step.

The columns of a batch (B rows, T = data.seq_len tokens, M = round(data.mask_rate * T) predicted positions):

COLUMNS
  tokens       [B, T] int32    what the model reads
  segment_ids  [B, T] int32    0 is padding; 1, 2, ... number the documents of a row; absent where a causal model reads
                               one text (data.isolate=False)
  positions    [B, T] int32    from 0 in every document's piece
  targets      [B, T] int32    the next token; with `select`, [B, M]: the token that stood there
  loss_mask    [B, T] float32  1 where the target counts, else 0; with `select`, [B, M]
  row          [B]    int32    the row's number in the global batch of the step; keys dropout
  select       [B, M] int32    masked language modelling alone: the positions that are predicted
  labels       [B] int32 the class, [B] float32 the number wanted, or [B, T] int32 the tags
  label_weights  float32 of the shape of labels: 1 where the label counts; with `spans`, [B, T]: 1 at the tokens
                               among which an answer may lie
  spans        [B, 2] int32    first and last token of the answer; 0 without one, -1 in rows of padding
  token_types  [B, T] int32    0 in the first of two texts, 1 in the second, where the tokenizer tells them apart
  adapter      [B]    int32    which of several adapters the row uses
  bytes        [B, T] int32    bytes of text behind each target, in evaluation alone; with `select`, [B, M]

A document d1..dn is the sequence END d1..dn END (BOS d1..dn EOS where a model's own tokenizer tells them apart), cut
into windows of T targets: tokens x[kT : kT + T], targets x[kT + 1 : kT + T + 1], every target once. Where
data.isolate=False all documents are one text, which is cut at other places in every epoch of training (its last
targets, fewer than T, may be left out) and evaluated as it is cut here.
Bits per byte is the sum of -log2 p(target) over the bytes of UTF-8 behind the targets, which
`Tokenizer.encode_with_bytes` divides among them: over `Split.num_bytes` if every target counts.
"""

from lmtrain.data.corpus import Corpus, Split, prepare
from lmtrain.data.padded_stream import PaddedStream
from lmtrain.data.preview import legend, render_row
from lmtrain.data.stream import Stream, batch_hash, check_ids, prefetch
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.data.tokenizers.load import load_tokenizer

COLUMNS = (
    'tokens', 'segment_ids', 'positions', 'targets', 'loss_mask', 'row', 'select', 'labels', 'label_weights', 'spans',
    'token_types', 'adapter', 'bytes',
)  # fmt: skip

__all__ = [
    'COLUMNS', 'Corpus', 'PaddedStream', 'Split', 'Stream', 'Tokenizer', 'batch_hash', 'check_ids', 'legend',
    'load_tokenizer', 'prefetch', 'prepare', 'render_row',
]  # fmt: skip
