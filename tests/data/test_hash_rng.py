import numpy as np

from lmtrain.data import hash_rng


def test_purposes_are_different_and_change_the_bits():
    purposes = [value for name, value in vars(hash_rng).items() if name.isupper()]
    assert len(set(purposes)) == len(purposes) > 1
    bits = [hash_rng.random_bits(0, purpose, np.arange(100)) for purpose in purposes]
    assert len(np.unique(bits)) == 100 * len(purposes)


def test_bits_do_not_depend_on_the_other_entries():
    grid = hash_rng.random_bits(3, np.arange(4)[:, None], np.arange(5))
    assert grid.shape == (4, 5) and grid[2, 3] == hash_rng.random_bits(3, 2, 3)


def test_bits_are_uniform():
    bits = hash_rng.random_bits(0, np.arange(100_000))
    shares = np.bincount((bits % np.uint64(10)).astype(int), minlength=10) / len(bits)
    np.testing.assert_allclose(shares, 0.1, atol=0.005)


def test_permutation_is_a_function_of_its_parts():
    order = hash_rng.permutation(1000, 1, hash_rng.SHUFFLE)
    assert sorted(order.tolist()) == list(range(1000)) and order.tolist() != list(range(1000))
    np.testing.assert_array_equal(order, hash_rng.permutation(1000, 1, hash_rng.SHUFFLE))
    assert (order != hash_rng.permutation(1000, 2, hash_rng.SHUFFLE)).any()
