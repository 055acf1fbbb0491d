"""The training steps of PyTorch: each part is ours, and the benchmark runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import spirograph as config_file
from invariance_jax.benchmarks import memory, peers, step
from invariance_jax.losses import invariance_penalty, nt_xent
from invariance_jax.training.optimizers import lars
from invariance_jax.training.settings import resolve
from invariance_jax.transforms import spirograph

torch = pytest.importorskip("torch")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def small_config():
    config = config_file.get_config("smoke")
    config.steps = 20
    config.data.train_examples = 16
    config.data.image_size = 8
    config.data.num_points = 5
    return config


def test_the_peer_renders_our_images_of_what_it_draws():
    one, two = peers._draw(torch, 4)
    assert torch.equal(one.x, two.x) and not torch.equal(one.alpha, two.alpha)
    parameters = np.zeros((4, 10), np.float32)
    targets = [i for i in range(10) if i not in peers.NUISANCE]
    parameters[:, targets], parameters[:, peers.NUISANCE] = one.x, one.alpha
    low, high = spirograph.BOUNDS.T
    assert np.all((low <= parameters) & (parameters <= high))
    assert np.all((low[[2]] <= one.others.numpy()[..., 0]))
    found = peers._render(torch, one.x, one.alpha, 16)
    expected = spirograph.render(jnp.asarray(parameters), image_size=16)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_contrastive_loss_of_the_peer_is_ours():
    z1, z2 = normal(5, 3), normal(5, 3, seed=1)
    found = peers.nt_xent(torch, *map(torch.from_numpy, (z1, z2)), 0.3)
    expected = jnp.mean(nt_xent(jnp.asarray(z1), jnp.asarray(z2), temperature=0.3))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_penalty_of_the_peer_is_ours_with_the_same_signs():
    kernel, start, others = normal(6, 4), normal(3, 6), normal(2, 3, 6, seed=1)
    alpha = torch.from_numpy(start).requires_grad_(True)
    h = torch.tanh(alpha @ torch.from_numpy(kernel))
    torch.manual_seed(0)
    found = peers.penalty(torch, h, alpha, torch.from_numpy(others))
    torch.manual_seed(0)
    signs = 2 * torch.randint_like(h.detach(), 2).numpy() - 1
    expected, _ = invariance_penalty(
        lambda alpha: jnp.tanh(alpha @ kernel),
        jnp.asarray(start),
        jnp.asarray(others),
        signs=jnp.asarray(signs),
    )
    np.testing.assert_allclose(found.detach().mean(0), expected, rtol=1e-4)


def test_the_lars_of_the_peer_is_ours():
    initial = normal(3, 4), np.zeros(3, np.float32)
    ours = [jnp.asarray(p) for p in initial]
    theirs = [torch.from_numpy(p.copy()).requires_grad_(True) for p in initial]
    settings = {"weight_decay": 1e-6, "momentum": 0.9, "trust_coefficient": 1e-3}
    optimizer = lars(1.5 * 64 / 256 / 10, **settings)
    state, update = optimizer.init(ours), peers._lars(torch, theirs, 64)
    for seed in range(3):
        slopes = [normal(*p.shape, seed=seed) for p in initial]
        changes, state = optimizer.update([*map(jnp.asarray, slopes)], state, ours)
        ours = optax.apply_updates(ours, changes)
        for parameter, slope in zip(theirs, slopes, strict=True):
            parameter.grad = torch.from_numpy(slope)
        update()
    for one, two in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(one.detach(), two, rtol=1e-5)


@pytest.mark.parametrize("encoder", step.BATCH_SIZES)
def test_the_encoders_of_the_peer_are_ours(encoder):
    step.check_equal(encoder, batch_size=2)


def test_another_encoder_is_refused(monkeypatch):
    make = step.make_encoder

    def shifted(name):
        encoder = make(name)
        return torch.nn.Sequential(
            encoder, torch.nn.Threshold(0.1, 0.1)
        ).requires_grad_(False)

    monkeypatch.setattr(step, "make_encoder", shifted)
    monkeypatch.setattr(
        torch.nn.Sequential,
        "load_state_dict",
        lambda self, state, strict: self[0].load_state_dict(state, strict=strict),
    )
    with pytest.raises(ValueError, match="the mlp of torch differs from ours by"):
        step.check_equal("mlp", batch_size=4)


@pytest.mark.parametrize("tuned", [False, True])
def test_the_peer_lowers_its_loss(tuned, monkeypatch):
    monkeypatch.setattr(peers, "_compile", lambda torch, function: function)
    settings = {"batch_size": 16, "image_size": 8, "penalized": True}
    advance = peers.make_torch_step("mlp", tuned=tuned, **settings)
    losses = [advance() for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_the_peer_trains_on_given_views():
    views = [normal(4, 8, 8, 3, seed=seed) for seed in (0, 1)]
    settings = {"batch_size": 4, "image_size": 8, "views": views}
    advance = peers.make_torch_step("mlp", penalized=False, **settings)
    losses = [advance() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(ValueError, match="views are given; expected none"):
        peers.make_torch_step("mlp", penalized=True, **settings)
    with pytest.raises(ValueError, match=r"expected two of \(5, 8, 8, 3\)"):
        peers.make_torch_step("mlp", penalized=False, **{**settings, "batch_size": 5})


def test_unknown_encoder_of_the_peer_is_refused():
    with pytest.raises(ValueError, match="the encoder is 'vgg'"):
        peers.make_torch_step("vgg", batch_size=2, penalized=False)


@pytest.mark.parametrize("encoder", step.BATCH_SIZES)
@pytest.mark.parametrize("penalized", [False, True])
def test_the_configuration_is_the_recipe_of_the_peer(encoder, penalized):
    config = step.make_config(
        config_file.get_config("quick"), encoder, batch_size=64, penalized=penalized
    )
    variant = "quick" if encoder == "mlp" else "paper"
    wanted, found = config_file.get_config(variant), resolve(config)
    assert found.penalty.weight == (wanted.penalty.weight if penalized else 0)
    for name in ("example_limit", "batch_limit"):
        assert found.penalty[name] == wanted.penalty[name]
    for name in ("name", "learning_rate", "schedule"):
        assert found.optimizer[name] == wanted.optimizer[name]
    for name in ("name", "width", "depth", "final"):
        assert found.encoder[name] == wanted.encoder[name]
    assert found.temperature == wanted.temperature


def test_operations_of_a_step_are_those_of_its_products():
    config = small_config()
    config.batch_size = 4
    config.encoder.width, config.encoder.depth, config.encoder.projection = 8, 2, 5
    first, second, head = 192 * 8, 8 * 8, 8 * 8 + 8 * 5
    view = 2 * 4 * (2 * first + 3 * second)
    config.penalty.weight = 0.0
    assert step.step_flops(config) == 2 * view + 2 * 4 * 2 * 3 * head
    config.penalty.weight = 0.1
    assert step.step_flops(config) == 3 * view + 2 * 4 * 2 * 3 * head


def test_operations_of_a_convolution_are_counted():
    config = step.make_config(small_config(), "resnet18", batch_size=1, penalized=False)
    config.data.image_size = 32
    settings = resolve(config)
    encoder = step.make_networks(settings).encoder
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    h, first, forward = step._forward_flops(encoder, images)
    assert h.shape == (1, 512)
    assert first == 2 * 32 * 32 * 9 * 3 * 64
    assert forward / 2 == pytest.approx(0.555e9, rel=0.01)  # as published


def test_steps_are_compared_without_and_with_the_penalty(monkeypatch):
    monkeypatch.setattr(step, "BATCH_SIZES", {"mlp": 4})
    results = step.run(small_config(), repeats=1, min_seconds=0.0)
    assert [result.ours for result in results] == ["plain", "penalized"]
    assert all(result.flops > 0 for result in results)
    assert all(np.all(result.peer_seconds > 0) for result in results)


def test_memory_of_a_step_is_told():
    config = small_config()
    config.batch_size = 8
    small = memory.temporary_bytes(config)
    config.batch_size = 16
    assert 0 < small < memory.temporary_bytes(config)
