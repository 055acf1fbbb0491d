"""The distribution of the boxes of random crops, against a loop over tries."""

import math

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from invariance_jax.transforms.crops import crop_family


def draw_boxes(family, number):
    shape = (number, family.num_uniform)
    unit = np.random.default_rng(number).uniform(size=shape)
    return np.asarray(jax.jit(family.draw)(unit.astype(np.float32)), np.float64)


def oracle_boxes(number, source, area, aspect, whole):
    """Random resized crop, one try after the other."""
    generator, boxes = np.random.default_rng(0), []
    rows, columns = source
    for _ in range(number):
        for _ in range(10):
            target = rows * columns * generator.uniform(*area)
            ratio = math.exp(generator.uniform(*np.log(aspect)))
            width, height = math.sqrt(target * ratio), math.sqrt(target / ratio)
            if whole:
                width, height = round(width), round(height)
            if 0 < width <= columns and 0 < height <= rows:
                top, left = generator.uniform(size=2) * [rows - height, columns - width]
                if whole:
                    top = generator.integers(0, rows - height + 1)
                    left = generator.integers(0, columns - width + 1)
                break
        else:  # the largest central box
            width, height = float(columns), float(rows)
            if columns / rows < aspect[0]:
                height = width / aspect[0]
            elif columns / rows > aspect[1]:
                width = height * aspect[1]
            if whole:
                width, height = round(width), round(height)
            top, left = (rows - height) / 2, (columns - width) / 2
            top, left = (top // 1, left // 1) if whole else (top, left)
        boxes.append((top, left, height, width))
    return np.array(boxes)


LAWS = {
    "paper": ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
    "tall image": ((40, 18), (0.3, 1.0), (3 / 4, 4 / 3)),
    "wide aspect, small image": ((5, 7), (0.05, 0.9), (0.4, 3.0)),
    "often the central box": ((9, 40), (0.3, 1.0), (1.0, 2.0)),
}


@pytest.mark.parametrize("whole", [True, False], ids=["whole pixels", "real"])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_boxes_follow_the_law_of_the_rejection_procedure(law, whole):
    source, area, aspect = law
    family = crop_family(
        source_size=source, area=area, aspect=aspect, whole_pixels=whole
    )
    number = 6000
    found = draw_boxes(family, number)
    expected = oracle_boxes(number, source, area, aspect, whole)

    def statistics(boxes):
        top, left, height, width = boxes.T
        share = height * width / (source[0] * source[1])
        ratio = np.log(width / height)
        columns = [share, share**2, ratio, ratio**2, top, left, height, width]
        return np.stack([*columns, top * height, left * width], axis=1)

    found_statistics, expected_statistics = statistics(found), statistics(expected)
    spread = expected_statistics.std(axis=0) * math.sqrt(2 / number)
    difference = found_statistics.mean(axis=0) - expected_statistics.mean(axis=0)
    assert np.all(np.abs(difference) <= 4.5 * spread + 1e-5)
    # inside the image and the bounds
    top, left, height, width = found.T
    assert np.all((top >= 0) & (left >= 0) & (height > 0) & (width > 0))
    assert np.all(top + height <= source[0] + 1e-4)
    assert np.all(left + width <= source[1] + 1e-4)
    low, high = family.bounds.T
    assert np.all((found >= low - 1e-4) & (found <= high + 1e-4))
    if whole:
        assert_array_equal(found, np.round(found))
        # every place is used, the last one too
        assert np.any(top + height == source[0]) and np.any(top == 0)
    else:
        inside = (found != found.round()).any(axis=1)
        ratio = (width / height)[inside]
        assert np.all((ratio >= aspect[0] - 1e-4) & (ratio <= aspect[1] + 1e-4))
