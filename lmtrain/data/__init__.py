"""From text to batches: sources, tokenizers, splits, packing, masking, and streams that are functions of the step.

A batch is a dict of columns. Letters: B rows; T positions of a row; M = max(1, round(data.mask_rate * T)) masked
positions of a row; S segments of a row that are scored; P pairs of a row, S = 2 P.

A row of a batch is one segment, or several that do not attend to each other and whose positions begin at 0 each:
  text                pieces of documents, packed by best fit; one piece if data.isolate=False
  reward, preference  the two sides of a pair; several pairs with task.pack
  unpaired            2 task.group texts
  policy, ppo         a prompt with one completion
  other tasks         one row of the data (span: one window of it); 'chat' with task.pack: several
T is data.seq_len for text, policy, ppo and with task.pack, else one of at most task.buckets lengths up to it.

COLUMNS
  tokens       [B, T] int32    input of the model
  segment_ids  [B, T] int32    0 is padding; 1, 2, ... number the segments of a row, so a row of one segment has 1;
                               absent if a causal model reads one text (data.isolate=False)
  positions    [B, T] int32    from 0 in every segment
  targets      [B, T] int32    the next token; with `select`, [B, M]: the masked token
  loss_mask    [B, T] float32  1 if the target counts, else 0; with `select`, [B, M]
  row          [B]    int32    the row's number in the global batch of the step; folded into the dropout PRNG key
  select       [B, M] int32    only masked language modelling: the positions that are predicted
  labels       [B] int32 classes, [B] float32 regression targets, or [B, T] int32 tags; with `scored`, [B, S]
  label_weights  float32 of the shape of labels: 1 if the label counts; with `spans`, [B, T]: 1 at the tokens that
                               an answer may contain
  spans        [B, 2] int32    first and last token of the answer; 0 without one, -1 in rows of padding
  token_types  [B, T] int32    0 in the first of two texts, 1 in the second, if the tokenizer distinguishes them
  scored       [B, S] int32    the segments of a row that have a score each, such as 1 chosen, 2 rejected, 3 chosen, ...
                               of packed pairs; 0 fills up
  margin       [B, S] float32  by how much a chosen text should be better, at its segment
  ref_logprob  [B, T] float32  log-probability of each target under the reference model, in nats
  old_logprob  [B, T] float32  log-probability of each target when it was sampled; 0 outside of completions
  first        [B]    float32  1 in the first step after the completions were sampled, by the same parameters; else 0
  temperature  [B]    float32  at which completions were sampled, if it is not 1: divides the logits
  advantages   [B, T] float32  of each target; 0 outside of completions
  returns      [B, T] float32  what the value head learns
  old_values   [B, T] float32  what the value head estimated when the target was sampled
  adapter      [B]    int32    index of the adapter of the row; only read by `lmtrain.adapt.mix`, no stream has it
  branches     [B, T] int32    a segment that is a tree: 0 is its trunk, 1, 2, ... continue it side by side; only in
                               `lmtrain.inference.likelihood`, no stream has it
  bytes        [B, T] int32    bytes of text of each target, only in evaluation; with `select`, [B, M]

TASK                 COLUMNS besides tokens, positions, row, segment_ids
  text               targets, loss_mask [B, T]; without segment_ids if data.isolate=False
  text, mask_rate>0  targets, loss_mask, select [B, M]
  chat               targets, loss_mask [B, T]
  classify           labels int32 [B], label_weights [B], token_types if a row has two texts
  regress            labels float32 [B], label_weights [B], token_types if a row has two texts
  tag                labels int32 [B, T], label_weights [B, T]
  span               spans [B, 2], label_weights [B, T], token_types
  reward             scored, margin [B, 2 P]: chosen and rejected alternate
  preference         targets, loss_mask [B, T], scored [B, 2 P]; ref_logprob if the objective has a reference model
                     and objective.reference is 'cached'
  unpaired           targets, loss_mask [B, T], scored, labels float32, label_weights [B, S], S = 2 task.group: texts
                     and, after each, its prompt with the completion of another row; ref_logprob as in preference
  policy             targets, loss_mask, old_logprob, advantages [B, T]; first [B]; ref_logprob if the objective has a
                     KL weight or only added leaves are trained; temperature [B] if policy.temperature is not 1
  ppo                those of policy, and returns, old_values [B, T]

In evaluation, text and chat also have bytes. token_types is absent if the tokenizer does not distinguish the two texts.

A document d1..dn is the sequence END d1..dn END (BOS d1..dn EOS if the tokenizer of a pretrained model has both), cut
into pieces of T targets: tokens x[kT : kT + T], targets x[kT + 1 : kT + T + 1], every target once. With
data.isolate=False all documents are one text, which is shifted by another offset in every epoch of training (its last
targets, fewer than T, may be left out) and not shifted in evaluation.

Bits per byte is the sum of -log2 p(target), divided by the bytes of UTF-8 of the targets, to which
`Tokenizer.encode_with_bytes` assigns every byte of the text: by `Split.num_bytes` if every target counts.
"""

from lmtrain.data.corpus import Corpus, prepare
from lmtrain.data.padded_stream import PaddedStream
from lmtrain.data.stream import Prefetch, Stream, batch_hash, check_ids
from lmtrain.data.token_files import Split
from lmtrain.data.tokenizers.base import Tokenizer
from lmtrain.data.tokenizers.load import load_tokenizer

COLUMNS = (
    'tokens', 'segment_ids', 'positions', 'targets', 'loss_mask', 'row', 'select', 'labels', 'label_weights', 'spans',
    'token_types', 'scored', 'margin', 'ref_logprob', 'old_logprob', 'advantages', 'returns', 'old_values',
    'first', 'temperature', 'adapter', 'branches', 'bytes',
)  # fmt: skip

__all__ = [
    'COLUMNS', 'Corpus', 'PaddedStream', 'Prefetch', 'Split', 'Stream', 'Tokenizer', 'batch_hash', 'check_ids',
    'load_tokenizer', 'prepare',
]  # fmt: skip
