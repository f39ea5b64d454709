"""Groups of scored examples in rows of batches."""

import numpy as np
import pytest

from lmtrain.data.example_store import Examples, pack_examples


def pairs(*sizes: int) -> Examples:
    """Two scored examples for each row, of these numbers of tokens."""
    begins = np.cumsum([0, *sizes])
    source = np.arange(len(sizes)) // 2
    return Examples(np.zeros(begins[-1] + 1, np.int32), begins, source, {}, {'scored': np.arange(len(sizes)) % 2 + 1})


@pytest.mark.parametrize('pack', [False, True])
def test_pairs_that_fit_are_rows_of_their_own_or_packed(pack):
    packed = pack_examples(pairs(4, 4, 3, 5, 2, 2), unread=0, seq_len=12, pack=pack)
    assert sorted(packed.rows.sizes.tolist()) == ([8, 12] if pack else [4, 8, 8])


@pytest.mark.parametrize('pack', [False, True])
def test_a_pair_that_no_row_holds_is_an_error(pack):
    both = pairs(4, 4, 7, 7)  # each side alone would fit
    with pytest.raises(
        ValueError, match='the 2 examples of row 1 have 14 tokens together, and a row of a batch has 12'
    ):
        pack_examples(both, unread=0, seq_len=12, pack=pack)
    pack_examples(both, unread=1, seq_len=12, pack=pack)  # the last token of each side is only a target
