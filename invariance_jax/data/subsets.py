"""Reproducible subsets of a split: validation examples, and a share of the labels.

Both are drawn by `numpy.random.RandomState`: NumPy promises that its numbers stay the
same in every later version, so that no update moves a validation image into training.
"""

import numpy as np

from invariance_jax.arguments import check_integer, check_number


def hold_out(num_examples: int, *, validation_examples: int) -> tuple[np.ndarray, ...]:
    """Returns the indices of the training split for training and for validation.

    The random choice is fixed: it depends only on N and the number of examples held
    out. A larger validation split contains a smaller one.

    Args:
      num_examples: N, examples of the training split.
      validation_examples: examples that are held out, from 0 to N - 1.

    Returns:
      `(train, validation)`, int64 and increasing; together 0 to N - 1.

    Raises:
      ValueError: if validation_examples is negative or not less than N.
    """
    held_out = check_integer("validation_examples", validation_examples, least=0)
    if held_out >= num_examples:
        raise ValueError(
            f"validation_examples must be less than the {num_examples} training "
            f"examples; found {held_out}."
        )
    order = np.random.RandomState(0).permutation(num_examples)
    validation, train = np.split(order, [held_out])
    return np.sort(train), np.sort(validation)


def label_fraction(labels: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """Returns the indices of a share of the examples, the same share of each class.

    The share of a class with n examples is `fraction * n`, rounded to the nearest
    integer. With the same seed, a larger share contains a smaller one.

    Args:
      labels: integer `[N]`.
      fraction: share of the examples of each class, above 0 and at most 1.
      seed: seed of the choice.

    Returns:
      int64 `[n]`, increasing.

    Raises:
      ValueError: if labels are not integers `[N]`, the fraction is out of range, or a
        class would be left without an example.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers [N]; found {labels.dtype} {list(labels.shape)}."
        )
    check_number("fraction", fraction, low=0, high=1, above=True)
    fraction = float(fraction)
    seed = check_integer("seed", seed, least=0, most=2**32 - 1)
    random = np.random.RandomState(seed)
    selected = []
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    for label, members in zip(classes, np.split(order, starts[1:]), strict=True):
        members = random.permutation(members)
        count = int(np.floor(fraction * len(members) + 0.5))
        if count == 0:
            raise ValueError(
                f"label fraction {fraction} leaves class {label} empty: it has "
                f"{len(members)} examples."
            )
        selected.append(members[:count])
    return np.sort(np.concatenate(selected))
