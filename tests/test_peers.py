"""The training steps in PyTorch that ours are timed against."""

import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.benchmarks import peers
from invariance_jax.losses import nt_xent

torch = pytest.importorskip("torch")


def test_the_contrastive_loss_is_ours():
    z1, z2 = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    found = peers.nt_xent(torch, torch.from_numpy(z1), torch.from_numpy(z2), 0.3)
    expected = jnp.mean(nt_xent(jnp.asarray(z1), jnp.asarray(z2), temperature=0.3))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_penalty_is_a_squared_change_along_the_direction():
    """For n(h) in a plane a sign projection changes by +-(n1 +- n2) along alpha."""
    alpha = torch.tensor([[0.3], [1.1]], requires_grad=True)
    h = torch.cat([torch.cos(alpha), torch.sin(alpha)], dim=1)
    found = peers.penalty(torch, h, alpha, alpha.detach()[None] + 2.0)
    slopes = np.array(
        [[np.cos(a) + s * np.sin(a) for s in (1, -1)] for a in (0.3, 1.1)]
    )
    distance = np.abs(found.detach().numpy()[0][:, None] - (2 * slopes) ** 2)
    assert distance.min(axis=1) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("penalized", [False, True])
def test_a_step_trains(penalized):
    step = peers.make_torch_step("mlp", batch_size=8, image_size=8, penalized=penalized)
    losses = [step() for _ in range(2)]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


def test_views_of_another_size_are_refused():
    views = [np.zeros((8, 4, 4, 3), np.float32)] * 2
    with pytest.raises(ValueError, match="expected two of"):
        peers.make_torch_step(
            "mlp", batch_size=8, image_size=8, penalized=False, views=views
        )
