"""kNN accuracy: votes counted by loops, ties, chunks, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.evaluation.probes import knn, knn_accuracy


def make_sets(num_train=60, num_test=23, num_features=5, num_classes=4, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(num_classes, num_features))
    sets = []
    for count in (num_train, num_test):
        labels = generator.integers(0, num_classes, count)
        noise = generator.normal(size=(count, num_features))
        sets += [np.float32(centres[labels] + noise), labels.astype(np.int32)]
    return sets


def oracle(h, labels, h_test, labels_test, k, temperature):
    """The accuracy of one vote after another."""
    correct = 0
    for row, truth in zip(np.float64(h_test), labels_test, strict=True):
        similarity = [
            float(row @ other / np.linalg.norm(row) / np.linalg.norm(other))
            for other in np.float64(h)
        ]
        order = sorted(range(len(h)), key=lambda i: -similarity[i])[:k]
        votes = {}
        for i in order:
            weight = np.exp(similarity[i] / temperature) if temperature else 1.0
            votes[labels[i]] = votes.get(labels[i], 0.0) + weight
        # A dict keeps the order of the nearest, and max takes the first.
        correct += max(votes, key=votes.get) == truth
    return correct / len(h_test)


@pytest.mark.parametrize(
    "k, temperature", [(1, None), (2, 0.07), (7, None), (20, 0.07), (60, 1.0)]
)
def test_accuracy_is_that_of_votes_counted_one_by_one(k, temperature):
    sets = make_sets()
    found = knn_accuracy(*sets, k=k, temperature=temperature)
    assert found.shape == ()
    assert float(found) == pytest.approx(oracle(*sets, k, temperature), abs=1e-6)


def test_lengths_do_not_matter_and_own_neighbours_are_their_own_class():
    h, labels, h_test, labels_test = make_sets()
    scale = np.float32(np.random.default_rng(1).uniform(0.1, 9, (len(h), 1)))
    expected = knn_accuracy(h, labels, h_test, labels_test, k=5)
    assert knn_accuracy(h * scale, labels, h_test, labels_test, k=5) == expected
    assert float(knn_accuracy(h, labels, h, labels, k=1)) == 1


def test_classes_may_have_any_values_of_64_bits():
    h, labels, h_test, labels_test = make_sets()
    expected = knn_accuracy(h, labels, h_test, labels_test, k=5)
    wide, wide_test = (7 - np.int64(a) * 2**32 for a in (labels, labels_test))
    assert knn_accuracy(h, wide, h_test, wide_test, k=5) == expected < 1
    assert knn_accuracy(h, wide, h_test, labels_test + 8, k=5) == 0


def test_of_classes_that_tie_the_nearest_neighbour_decides():
    h = jnp.array([[1.0, 0.1], [1.0, 0.0], [1.0, 0.2], [0.9, 0.25]])
    test = jnp.array([[1.0, 0.0]]), jnp.array([1])
    for k in (4, 2):
        assert knn_accuracy(h, jnp.array([0, 1, 0, 1]), *test, k=k) == 1


def test_zero_and_nan_representations():
    h, labels = jnp.eye(3), jnp.arange(3)
    found = knn_accuracy(h, labels, jnp.zeros((1, 3)), jnp.array([0]), k=1)
    assert float(found) == 1  # similar to none: the first of those that tie
    h, labels, h_test, labels_test = make_sets()
    h[3, 1] = np.nan
    assert np.isnan(knn_accuracy(h, labels, h_test, labels_test, k=3))


def test_chunks_do_not_change_the_accuracy(monkeypatch):
    sets = make_sets(61, 23)
    expected = knn_accuracy(*sets, k=4, temperature=0.1)
    monkeypatch.setattr(knn, "_CHUNK_ENTRIES", 61 * 5)
    jax.clear_caches()
    assert knn_accuracy(*sets, k=4, temperature=0.1) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k must be an integer from 1 to 60"),
        ({"k": 61}, "k must be an integer from 1 to 60"),
        ({"k": 2.0}, "k must be an integer from 1 to 60"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": np.float32(-1)}, "temperature must be above 0; found -1.0"),
        ({"temperature": jnp.ones(2)}, "temperature must be a number"),
        ({"h": jnp.ones(60)}, "h must be"),
        ({"labels": np.full(60, 2**63, np.uint64)}, "must fit in int64"),
        ({"h_test": jnp.ones((23, 6))}, "number of features; found 5 and 6"),
        ({"labels": jnp.ones(59, int)}, "labels must have one entry for each"),
        ({"labels": jnp.ones(60)}, "labels must have an integer dtype"),
        ({"labels_test": jnp.ones(22, int)}, "labels_test must have one entry"),
    ],
    ids=str,
)
def test_bad_input_is_refused_by_name(changes, message):
    names = ("h", "labels", "h_test", "labels_test")
    given = dict(zip(names, make_sets(), strict=True)) | {"k": 3} | changes
    arrays = [given.pop(name) for name in names]
    with pytest.raises(ValueError, match=message):
        knn_accuracy(*arrays, **given)


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_blocks_of_training_examples_give_the_same_share(temperature):
    generator = np.random.default_rng(0)
    # Features of +-1 have exact similarities, with many ties.
    h, h_test = (generator.choice([-1, 1], (n, 4)).astype("f4") for n in (53, 40))
    labels, labels_test = np.arange(53) % 4, generator.integers(0, 4, 40)
    arrays, options = (h, labels, h_test, labels_test), {"temperature": temperature}
    whole = knn_accuracy(*map(jnp.asarray, arrays), k=7, **options)
    assert knn_accuracy(*arrays, k=7, block_size=10, **options) == whole
