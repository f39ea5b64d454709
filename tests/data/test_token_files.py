import tracemalloc

import numpy as np

from lmtrain.data.pack import Rows
from lmtrain.data.token_files import ByteColumn, Part, Split, _SplitWriter, join_splits
from lmtrain.data.tokenizers.base import Bytes

ROWS = Rows(np.array([0, 1]), np.array([0]), np.array([3], np.int32))
TOKENS = np.array([2, 0, 1, 2], np.uint16)  # END a b END


def test_byte_column_adds_the_irregular_bytes():
    part = Part(TOKENS, ROWS, 1.0, np.array([1, 3]), np.array([4, -1], np.int32))
    token_bytes = np.array([1, 2, 0], np.int32)
    assert ByteColumn(part, token_bytes, 0)[np.arange(4)].tolist() == [0, 5, 2, -1]
    assert ByteColumn(part, token_bytes, 1)[np.arange(4)].tolist() == [5, 2, -1, -1]  # the last token has no target


def test_byte_column_without_irregular_tokens():
    part = Part(TOKENS, ROWS, 1.0, np.zeros(0, np.int64), np.zeros(0, np.int32))
    assert ByteColumn(part, np.array([1, 2, 0], np.int32), 0)[np.arange(4)].tolist() == [0, 1, 2, 0]


def test_only_irregular_documents_take_memory(tmp_path):
    writer, ids = _SplitWriter(tmp_path, 'train', Bytes(), np.uint16), np.array([97, 98], np.int32)
    regular, irregular = np.array([1, 1, 0], np.int32), np.array([1, 3, 2], np.int32)
    tracemalloc.start()
    for number in range(2000):
        writer.add(b'ab', ids, irregular if number == 5 else regular)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    writer.close()
    assert size < 100 * 2000
    columns = {name: np.load(tmp_path / f'train.{name}.npy') for name in ('begins', 'irregular', 'extra_bytes')}
    assert columns['begins'].tolist() == list(range(0, 6001, 3)) and columns['irregular'].tolist() == [17, 18]
    assert columns['extra_bytes'].tolist() == [2, 2]


def test_join_splits_sums_sizes_and_keeps_parts():
    part = Part(TOKENS, ROWS, 0.5, np.zeros(0, np.int64), np.zeros(0, np.int32))
    joined = join_splits([Split((part,), 1, 2, 3, 4), Split((part, part), 10, 20, 30, 40)])
    assert len(joined.parts) == 3
    assert (joined.num_documents, joined.num_tokens, joined.num_bytes, joined.num_rows) == (11, 22, 33, 44)
