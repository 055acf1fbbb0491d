"""NumPy oracles, written with loops in float64 from the paper and not from our code.

Foster, Pukdee, Rainforth (ICLR 2021). Also the small encoder with which the reference
values of the penalty were made.
"""

import math
from functools import partial

import numpy as np


def oracle_render(
    parameters, *, image_size=32, num_points=40, extent=6.0, normalization="row"
):
    """Images `[B, S, S, 3]` of parameters `[B, 10]`: a loop over curve points."""
    steps = max(image_size - 1, 1)
    axis = [-extent + 2 * extent * s / steps for s in range(image_size)]
    x_grid, y_grid = np.meshgrid(axis, axis, indexing="ij")
    images = np.zeros((len(parameters), image_size, image_size, 3))
    for i, row in enumerate(np.asarray(parameters, np.float64)):
        m, b, h, sigma, rfore, rback, gfore, gback, bfore, bback = row
        intensity = np.zeros((image_size, image_size))
        for point in range(num_points):
            t = 2 * math.pi * point / max(num_points - 1, 1)
            x = (m - h) * math.cos(t) + h * math.cos(t * (m - h) / b)
            y = (m - h) * math.sin(t) - h * math.sin(t * (m - h) / b)
            distance = (x_grid - x) ** 2 + (y_grid - y) ** 2
            intensity += np.exp(-distance / sigma) / num_points
        if normalization == "row":
            for s in range(image_size):
                intensity[s] /= max(intensity[s]) + 1e-8
        else:
            intensity /= intensity.max() + 1e-8
        colors = (rfore, rback), (gfore, gback), (bfore, bback)
        for c, (fore, back) in enumerate(colors):
            images[i, :, :, c] = intensity * fore + (1 - intensity) * back
    return images


def assert_close(found, expected, tolerance):
    """Checks a difference within the tolerance times the largest expected entry."""
    atol = tolerance * float(np.max(np.abs(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def assert_uniform(unit):
    """Checks that columns of numbers are uniform in [0, 1] and independent."""
    count, columns = unit.shape
    assert unit.min() > -1e-5 and unit.max() < 1 + 1e-5
    # 4 standard errors of the mean and the variance, 5 of each correlation
    np.testing.assert_allclose(unit.mean(axis=0), 1 / 2, atol=4 * 0.289 / count**0.5)
    np.testing.assert_allclose(unit.var(axis=0), 1 / 12, atol=4 * 0.0745 / count**0.5)
    between = np.corrcoef(unit, rowvar=False) - np.eye(columns)
    assert np.abs(between).max() < 5 / count**0.5


def oracle_nt_xent(z1, z2, *, temperature, decoupled=False):
    """`[B]`: mean over the two anchors of an example of their cross-entropy.

    Decoupled, the positive is left out of the sum.
    """
    batch_size = len(z1)
    z = [row / math.sqrt(sum(row**2)) for row in np.float64([*z1, *z2])]
    losses = np.zeros(batch_size)
    for a in range(2 * batch_size):
        positive = (a + batch_size) % (2 * batch_size)
        left_out = (a, positive) if decoupled else (a,)
        total = 0.0
        for c in range(2 * batch_size):
            if c not in left_out:
                total += math.exp(float(z[a] @ z[c]) / temperature)
        similarity = float(z[a] @ z[positive]) / temperature
        losses[a % batch_size] += (math.log(total) - similarity) / 2
    return losses


def oracle_info_nce(q, k, *, temperature):
    """`[B]`: minus the log of the softmax of its own key among the keys."""
    q, k = ([row / math.sqrt(sum(row**2)) for row in rows] for rows in (q, k))
    losses = np.zeros(len(q))
    for i, query in enumerate(q):
        scores = [math.exp(float(query @ key) / temperature) for key in k]
        losses[i] = -math.log(scores[i] / sum(scores))
    return losses


oracle_dcl = partial(oracle_nt_xent, decoupled=True)


def oracle_barlow_twins(z1, z2, *, off_diagonal_weight):
    """The sum over pairs of features, correlations with ddof 0."""
    z1, z2 = np.asarray(z1, np.float64), np.asarray(z2, np.float64)
    loss = 0.0
    for i in range(z1.shape[1]):
        for j in range(z2.shape[1]):
            a = z1[:, i] - sum(z1[:, i]) / len(z1)
            b = z2[:, j] - sum(z2[:, j]) / len(z2)
            correlation = sum(a * b) / math.sqrt(sum(a**2) * sum(b**2))
            if i == j:
                loss += (1 - correlation) ** 2
            else:
                loss += off_diagonal_weight * correlation**2
    return loss


def oracle_vicreg(z1, z2, *, invariance_weight, variance_weight, covariance_weight):
    """Means over entries, hinges of deviations, squared covariances, ddof 1."""
    z1, z2 = np.asarray(z1, np.float64), np.asarray(z2, np.float64)
    number, features = z1.shape
    loss = invariance_weight * sum(np.ravel(z1 - z2) ** 2) / z1.size
    for z in (z1, z2):
        c = z - np.array([sum(column) / number for column in z.T])[None]
        for i in range(features):
            for j in range(features):
                covariance = sum(c[:, i] * c[:, j]) / (number - 1)
                if i == j:
                    hinge = max(0.0, 1 - math.sqrt(covariance + 1e-4)) / features
                    loss += variance_weight * hinge / 2
                else:
                    loss += covariance_weight * covariance**2 / features
    return loss


def oracle_emp_ssl(*z, invariance_weight, distortion):
    """Coding rates by eigenvalues, and cosines to the mean, patch by patch."""
    unit = [[row / math.sqrt(sum(row**2)) for row in np.asarray(one)] for one in z]
    number, features = np.shape(unit[0])
    loss = 0.0
    for patch in unit:
        gram = sum(np.outer(row, row) for row in patch)
        values = np.linalg.eigvalsh(gram) * features / (number * distortion)
        loss -= sum(math.log1p(value) for value in values) / 2 / len(unit)
        for row, *others in zip(patch, *unit, strict=True):
            mean = sum(others) / len(unit)
            cosine = sum(row * mean) / math.sqrt(sum(mean**2))
            loss -= invariance_weight * cosine / number / len(unit)
    return loss


def oracle_negative_cosine(p, z):
    """`[B]`: minus the cosine of the angle between two rows."""
    p, z = np.asarray(p, np.float64), np.asarray(z, np.float64)
    pairs = zip(p, z, strict=True)
    return np.array([-sum(a * b) / math.sqrt(sum(a**2) * sum(b**2)) for a, b in pairs])


def oracle_penalty(
    represent,
    alpha,
    alpha_other,
    *,
    signs=None,
    normalization="l2",
    example_limit=math.inf,
    limit_shape="hard",
    step=1e-5,
):
    """`[B]`: mean over `[K, B, P]` others of the squared change, by differences.

    With signs `[K, B, D]`, of the square of its projection.
    """
    batch_size = len(alpha)
    variance = oracle_variance(np.asarray(represent(alpha), np.float64))
    penalty = np.zeros(batch_size)
    for k, other in enumerate(alpha_other):
        ahead = np.array(represent(alpha + step * (other - alpha)), np.float64)
        behind = np.array(represent(alpha - step * (other - alpha)), np.float64)
        for i in range(batch_size):
            if normalization == "l2":
                ahead[i] /= math.sqrt(sum(ahead[i] ** 2))
                behind[i] /= math.sqrt(sum(behind[i] ** 2))
            change = (ahead[i] - behind[i]) / (2 * step)
            squared = sum(change**2)
            if signs is not None:
                squared = sum(signs[k, i] * change) ** 2
            if normalization == "batch":
                squared /= variance
            limited = oracle_limit(squared, example_limit, limit_shape)
            penalty[i] += limited / len(alpha_other)
    return penalty


def oracle_variance(h):
    """The sum over the features of their variances over the batch, ddof 0."""
    means = [sum(feature) / len(feature) for feature in h.T]
    return sum(sum((f - m) ** 2) / len(f) for f, m in zip(h.T, means, strict=True))


def oracle_limit(squared, limit, shape):
    """The squared change below its limit."""
    if shape == "hard":
        return min(squared, limit)
    return squared if limit == math.inf else limit * math.log1p(squared / limit)


def oracle_consistency(
    h1, h2, *, normalization="l2", example_limit=math.inf, limit_shape="hard"
):
    """`[B]`: the squared distance of two views, in the unit of the normalization."""
    h1, h2 = np.array(h1, np.float64), np.array(h2, np.float64)
    variance = (oracle_variance(h1) + oracle_variance(h2)) / 2
    distances = np.zeros(len(h1))
    for i, (one, two) in enumerate(zip(h1, h2, strict=True)):
        if normalization == "l2":
            one, two = (row / math.sqrt(sum(row**2)) for row in (one, two))
        squared = sum((one - two) ** 2)
        if normalization == "batch":
            squared /= variance
        distances[i] = oracle_limit(squared, example_limit, limit_shape)
    return distances


def encoder_weights():
    """W1 `[3072, 16]` and W2 `[16, 8]` of the encoder of the `penalty_*` values."""
    w1 = 0.03 * np.sin(1 + 0.37 * np.arange(3072 * 16, dtype=np.float64))
    w2 = np.sin(2 + 0.73 * np.arange(16 * 8, dtype=np.float64))
    return w1.reshape(3072, 16), w2.reshape(16, 8)


def reference_state_dict(entry):
    """The formula weights of an entry of reference.json, by the authors' names."""
    state_dict, convolutions = {}, 0
    for name, shape in entry["state_dict"]:
        leaf = name.split(".")[-1]
        if len(shape) == 4:
            seed = entry["weight_seed"] + convolutions
            array = np.sin(seed + 0.37 * np.arange(np.prod(shape)))
            array *= 1.4 * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
            state_dict[name] = array.reshape(shape)
            convolutions += 1
        elif leaf == "num_batches_tracked":
            state_dict[name] = np.zeros((), np.int64)
        else:
            state_dict[name] = np.full(shape, float(leaf in ("weight", "running_var")))
    return state_dict
