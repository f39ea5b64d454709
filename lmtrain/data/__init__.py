"""From text to batches: sources, tokenizers, splits, packing, masking, and streams that are functions of the step.

The columns of a batch (B rows, T = data.seq_len tokens, M = round(data.mask_rate * T) predicted positions):

COLUMNS
  tokens       [B, T] int32    input of the model
  segment_ids  [B, T] int32    0 is padding; 1, 2, ... number the documents of a row; absent if a causal model reads
                               one text (data.isolate=False)
  positions    [B, T] int32    from 0 in every piece of a document
  targets      [B, T] int32    the next token; with `select`, [B, M]: the masked token
  loss_mask    [B, T] float32  1 if the target counts, else 0; with `select`, [B, M]
  row          [B]    int32    the row's number in the global batch of the step; key of dropout
  select       [B, M] int32    only masked language modelling: the positions that are predicted
  labels       [B] int32 classes, [B] float32 regression targets, or [B, T] int32 tags
  label_weights  float32 of the shape of labels: 1 if the label counts; with `spans`, [B, T]: 1 at the tokens that
                               an answer may contain
  spans        [B, 2] int32    first and last token of the answer; 0 without one, -1 in rows of padding
  token_types  [B, T] int32    0 in the first of two texts, 1 in the second, if the tokenizer distinguishes them
  adapter      [B]    int32    which of several adapters the row uses
  bytes        [B, T] int32    bytes of text of each target, only in evaluation; with `select`, [B, M]

A document d1..dn is the sequence END d1..dn END (BOS d1..dn EOS if the tokenizer of a pretrained model has both), cut
into pieces of T targets: tokens x[kT : kT + T], targets x[kT + 1 : kT + T + 1], every target once. With
data.isolate=False all documents are one text, which is shifted by another offset in every epoch of training (its last
targets, fewer than T, may be left out) and not shifted in evaluation.

Bits per byte is the sum of -log2 p(target), divided by the bytes of UTF-8 of the targets, to which
`Tokenizer.encode_with_bytes` assigns every byte of the text: by `Split.num_bytes` if every target counts.
"""

from lmtrain.data.corpus import Corpus, prepare
from lmtrain.data.padded_stream import PaddedStream
from lmtrain.data.stream import Stream, batch_hash, check_ids, prefetch
from lmtrain.data.token_files import Split
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.data.tokenizers.load import load_tokenizer

COLUMNS = (
    'tokens', 'segment_ids', 'positions', 'targets', 'loss_mask', 'row', 'select', 'labels', 'label_weights', 'spans',
    'token_types', 'adapter', 'bytes',
)  # fmt: skip

__all__ = [
    'COLUMNS', 'Corpus', 'PaddedStream', 'Split', 'Stream', 'Tokenizer', 'batch_hash', 'check_ids',
    'load_tokenizer', 'prefetch', 'prepare',
]  # fmt: skip
