"""Sums over the segments of a row."""

import numpy as np

from lmtrain.tasks import segments

BATCH = {
    'segment_ids': np.array([[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 4, 4]]),
    'loss_mask': np.array([[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 1]], np.float32),
    'scored': np.array([[1, 2, 0, 0], [1, 2, 3, 4]]),
}
VALUES = np.arange(1, 13, dtype=np.float32).reshape(2, 6)


def test_sums_are_those_of_counted_tokens_of_each_segment():
    sums = segments.segment_sums(VALUES, BATCH)
    np.testing.assert_array_equal(sums, [[2, 3 + 5, 0, 0], [7, 8, 9 + 10, 12]])


def test_sides_alternate_and_absent_pairs_weigh_nothing():
    chosen, rejected = segments.sides(BATCH['scored'])
    np.testing.assert_array_equal(chosen, [[1, 0], [1, 3]])
    np.testing.assert_array_equal(rejected, [[2, 0], [2, 4]])
    np.testing.assert_array_equal(segments.pair_weights(BATCH), [[1, 0], [1, 1]])


def test_policy_counts_at_least_one_token():
    own = segments.policy(lambda batch: {'logprob': VALUES}, BATCH)
    np.testing.assert_array_equal(own.tokens, [[1, 2, 1, 1], [1, 1, 2, 1]])
    np.testing.assert_array_equal(own.logprob, segments.segment_sums(VALUES, BATCH))


def test_reference_is_cached_or_live():
    def forward(batch, reference_model=False):
        return {'logprob': VALUES * (10 if reference_model else 1)}

    cached = segments.reference_logprob(forward, BATCH | {'ref_logprob': 2 * VALUES}, 'cached')
    np.testing.assert_array_equal(cached, 2 * segments.segment_sums(VALUES, BATCH))
    live = segments.reference_logprob(forward, BATCH, 'live')
    np.testing.assert_array_equal(live, 10 * segments.segment_sums(VALUES, BATCH))
