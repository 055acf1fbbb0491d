"""Methods: their losses, target network, memory, on one replica or several."""

import functools
import itertools
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from etils import epath
from processes import assert_same_run
from test_parallel import KEY as TRAINING_KEY
from test_parallel import Case, assert_close
from tiny import penalty, tiny_config

from configs.sweeps.methods import get_sweep
from invariance_jax import evaluate, train
from invariance_jax.settings import KEYS, resolve
from invariance_jax.training.build import applied, build
from invariance_jax.training.draws import Draws, Side
from invariance_jax.training.methods import METHODS, make_method
from invariance_jax.training.optimizers import make_schedule

WIDTHS = {"hidden": 6, "layers": 3}
KWARGS = {
    "simclr": {},
    "dcl": {},
    "moco_v3": {**WIDTHS, "momentum": 0.5},
    "byol": {"hidden": 6, "momentum": 0.5},
    "simsiam": {**WIDTHS, "bottleneck": 3},
    "barlow_twins": {**WIDTHS, "off_diagonal_weight": 0.1},
    "vicreg": {**WIDTHS, "variance_weight": 20.0},
    "emp_ssl": {**WIDTHS, "invariance_weight": 25.0},
}
"""Every built-in method, with heads that are small."""

WITH_TARGET = ("moco_v3", "byol")
OWN = "own_parts:remembering"
methods = pytest.mark.parametrize("name", KWARGS)


def named(name):
    return with_kwargs(name, **KWARGS[name])


def with_kwargs(name, **kwargs):
    return {"method.name": name, "method.kwargs": kwargs}


HEADS = {
    "simclr": [(2, "norm", [512, 128])],
    "dcl": [(2, "norm", [512, 128])],
    "moco_v3": [(3, "norm", [4096, 4096, 256]), (2, "norm", [4096, 256])],
    "byol": [(2, "none", [4096, 256]), (2, "none", [4096, 256])],
    "simsiam": [(3, "norm", [2048, 2048, 2048]), (2, "bias", [512, 2048])],
    "barlow_twins": [(3, "none", [8192, 8192, 8192])],
    "vicreg": [(3, "none", [8192, 8192, 8192])],
    "emp_ssl": [(3, "bias", [4096, 4096, 1024])],
}
"""Projector, predictor: layers, what ends them, and the widths of the papers."""
RESNETS_MOCO = [HEADS["moco_v3"][0], (2, "none", [4096, 256])]


def loss_oracle(name, *outputs):
    """The loss of the online outputs of both views, then the target's."""
    if name in ("moco_v3", "byol", "simsiam"):
        (z1, z2, t1, t2), (p1, p2, *_) = ([o[key] for o in outputs] for key in "zp")
    else:
        z1, z2, *_ = outputs
    cosine, temperature = reference.oracle_negative_cosine, {"temperature": 0.2}
    if name == "moco_v3":
        contrast = functools.partial(reference.oracle_info_nce, **temperature)
        return 0.4 * (contrast(p1, t2) + contrast(p2, t1))
    if name == "byol":
        return 4 + 2 * cosine(p1, t2) + 2 * cosine(p2, t1)
    if name == "simsiam":
        return (cosine(p1, z2) + cosine(p2, z1)) / 2
    weights = {"invariance_weight": 25.0, "variance_weight": 20.0}
    oracle, settings = {
        "simclr": (reference.oracle_nt_xent, temperature),
        "dcl": (reference.oracle_dcl, temperature),
        "barlow_twins": (reference.oracle_barlow_twins, {"off_diagonal_weight": 0.1}),
        "vicreg": (reference.oracle_vicreg, {**weights, "covariance_weight": 1.0}),
        "emp_ssl": (
            reference.oracle_emp_ssl,
            {"invariance_weight": 25.0, "distortion": 0.2},
        ),
    }[name]
    return oracle(z1, z2, **settings)


@methods
def test_the_loss_is_that_of_the_paper(name, x64):
    settings = resolve(tiny_config(named(name) | {"encoder.projection": 4}))
    method, generator = make_method(settings, 5), np.random.default_rng(0)
    h = generator.normal(size=(2, 8, 5))

    def start(key):
        variables = method.heads.init(jax.random.key(key), h[0], train=False)
        return jax.tree.map(lambda a: a + generator.normal(size=a.shape), variables)

    online, target = start(0), start(1)

    def outputs(variables, h):
        return method.heads.apply(variables, h, train=True, mutable=["batch_stats"])[0]

    made = [outputs(network, view) for network in (online, target) for view in h]
    if method.joint is not None:
        found = method.joint(made[:2], axis_name=None)
    else:
        found = method.loss(*made, (), axis_name=None)
    assert found.shape == (8,)
    wanted = np.mean(loss_oracle(name, *jax.tree.map(np.asarray, made)))
    np.testing.assert_allclose(jnp.mean(found), wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "kwargs", "heads"),
    [
        *((name, {}, heads) for name, heads in HEADS.items()),
        ("moco_v3", {"final_norm": False}, RESNETS_MOCO),
    ],
)
def test_the_heads_are_those_of_the_paper(name, kwargs, heads):
    changes = with_kwargs(name, **kwargs) | {"encoder.projection": None}
    method, inputs = make_method(resolve(tiny_config(changes)), 512), 512
    variables = applied(method.heads, jax.ShapeDtypeStruct((2, 512), jnp.float32))[1]
    params, stats = variables["params"], variables["batch_stats"]
    if "projector" in params:
        names = "projector", "predictor"
        parts = [(params[name], stats[name]) for name in names]
    else:
        parts = [(params, stats)]
    for (layers, final, widths), (part, norms) in zip(heads, parts, strict=True):
        kernels = [part[f"dense{n}"]["kernel"].shape for n in range(1, layers + 1)]
        assert kernels == list(itertools.pairwise([inputs, *widths]))
        assert ("bias" in part[f"dense{layers}"]) == (final == "bias")
        assert len(norms) == layers - (final != "norm")
        inputs = widths[-1]
    assert (method.momentum is not None) == (name in WITH_TARGET)


def test_the_settings_offer_every_method():
    assert {*KEYS["method.name"].choices} == {*METHODS} == {*KWARGS}


def test_the_sweep_of_methods_can_be_built():
    found = get_sweep()
    assert {changes["method.name"] for changes in found.values()} == {*METHODS}
    for changes in found.values():
        build(resolve(tiny_config(changes)))


def test_a_further_view_stands_in_for_one_of_the_two(x64):
    case = Case(COMMON | {"more_views": 2, "penalty.weight": 0.0})
    state, x = case.start(), jnp.asarray(case.x[:16])
    draws = case.alone.make_draw()(TRAINING_KEY, 0)

    @jax.jit
    def loss(draws):
        inputs = state.params, state.batch_stats, 0.0, x, draws, (None, None), ()
        return case.alone.objective(*inputs)[0]

    one, two = (Side((view,)) for view in draws.more)
    pairs = [(draws.first, draws.second), (one, draws.second), (draws.first, two)]
    expected = np.mean([loss(Draws(*pair)) for pair in pairs])
    np.testing.assert_allclose(loss(draws), expected, rtol=1e-9)
    assert not np.array_equal(one.views[0].alpha, two.views[0].alpha)


def test_further_views_move_the_running_statistics_to_their_mean(x64):
    case = Case(COMMON | {"more_views": 2, "penalty.weight": 0.0})
    state, x = case.start(), jnp.asarray(case.x[:16])
    draws = case.alone.make_draw()(TRAINING_KEY, 0)

    @jax.jit
    def moved(draws):
        inputs = state.params, state.batch_stats, x, draws
        return case.alone.objective.encode(*inputs)[1]["encoder"]

    views = draws.more, draws.more[:1], draws.more[1:]
    both, one, two = (moved(draws._replace(more=more)) for more in views)
    assert_close(both, jax.tree.map(lambda a, b: (a + b) / 2, one, two), 1e-12)
    assert jax.tree.leaves(both)


def test_simsiam_holds_what_it_predicts(x64):
    method = make_method(resolve(tiny_config(named("simsiam"))), 5)
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 5)))
    own, other = ({"z": z, "p": p} for z, p in (rows[:2], rows[2:]))

    def loss(pair):
        return jnp.mean(method.loss(*pair, None, None, (), axis_name=None))

    for slope in jax.grad(loss)((own, other)):
        assert not slope["z"].any() and slope["p"].any()


def test_the_predictor_of_simsiam_keeps_its_rate():
    changes = named("simsiam") | {"optimizer.name": "lars", "optimizer.momentum": 0.0}
    parts = build(resolve(tiny_config(changes)))
    schedule = make_schedule(parts.settings)
    kernel = {"kernel": jnp.ones((2, 2))}
    params = {"encoder": kernel, "heads": {"projector": kernel, "predictor": kernel}}
    state = parts.optimizer.init(params)
    sizes = []
    for _ in range(20):
        updates, state = parts.optimizer.update(params, state, params)
        sizes.append([float(leaf[0, 0]) for leaf in jax.tree.leaves(updates)])
    encoder, predictor, projector = np.transpose(sizes)
    np.testing.assert_allclose(predictor, predictor[0], rtol=1e-6)
    rates = np.array([float(schedule(step)) for step in range(20)])
    for moving in (encoder, projector):
        np.testing.assert_allclose(moving, predictor * rates / max(rates), rtol=1e-5)


COMMON = {
    "optimizer.name": "lars",
    "penalty.weight": 0.5,
    "batchnorm.group_size": 4,
    "microbatches": 2,
    "data.train_examples": 16,
}
# SimCLR is that of test_parallel.py.
CASES = {
    name: COMMON | named(name)
    for name in ("dcl", "moco_v3", "simsiam", "barlow_twins", "vicreg")
}
CASES |= {
    "emp_ssl of patches": COMMON | named("emp_ssl") | {"more_views": 3},
    "byol with more views": COMMON | named("byol") | {"more_views": 2},
    "own": COMMON | {"method.name": OWN, "method.kwargs": {"momentum": 0.75}},
    # Two outputs, of which the penalty sees z; it needs the whole batch.
    "byol": COMMON
    | named("byol")
    | {"microbatches": 1}
    | penalty(at="z", estimator="sign"),
}


@functools.cache
def joined(name):
    """The state at the start, and state and metrics after each of five steps."""
    case = Case(CASES[name] | {"microbatches": 1}, steps=5)
    return case.start(), list(case.on_the_joined_batch())


@pytest.mark.parametrize("name", CASES)
def test_devices_and_microbatches_give_the_numbers_of_one_batch(name, x64):
    found = Case(CASES[name], steps=5).on_devices(2)
    for (state, metrics), (wanted, terms) in zip(found, joined(name)[1], strict=True):
        assert_close(metrics, terms, 1e-9)
        assert_close(state, wanted, 1e-9)


@pytest.mark.parametrize("name", [*WITH_TARGET, "own"])
def test_the_target_follows(name, x64):
    start, steps = joined(name)
    before, (last, metrics) = start, steps[-1]
    jax.tree.map(np.testing.assert_array_equal, start.target.params, start.params)
    for step, (after, _) in enumerate(steps):
        # Of the 20 steps of the run.
        kept = 0.75 if name == "own" else 1 - (1 + math.cos(math.pi * step / 20)) / 4
        expected = jax.tree.map(
            lambda old, new, m=kept: m * old + (1 - m) * new,
            before.target.params,
            after.params,
        )
        assert_close(after.target.params, expected, 1e-12)
        before = after
    still = jax.tree.map(np.array_equal, start.target, last.target)
    assert not any(jax.tree.leaves(still))
    apart = jax.tree.map(np.subtract, last.target.params, last.params)
    norms = [
        math.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))
        for tree in (apart, last.params)
    ]
    assert metrics["target_distance"][0] == pytest.approx(norms[0] / norms[1])


def test_the_memory_counts(x64):
    start, steps = joined("own")
    rows = [int(state.memory["rows"]) for state in (start, *(s for s, _ in steps))]
    assert rows == [0, 32, 64, 96, 128, 160]
    assert np.abs(steps[-1][0].memory["mean"]).max() > 0


RUN = {"method.name": OWN, "evaluation.experiments": ("invariance",)}
RUN |= {"logging.probe_every_steps": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work directory of a whole run with a target network and a memory."""
    workdir = tmp_path_factory.mktemp("own") / "run"
    train.run(tiny_config(RUN | {"evaluation.network": "target"}), workdir)
    return workdir


def test_a_run_with_a_target_and_a_memory_continues_bit_by_bit(trained, tmp_path):
    workdir = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "20")
    train.run(tiny_config(RUN | {"evaluation.network": "target"}), workdir)
    assert_same_run(workdir, trained, step=20)


def test_the_target_is_evaluated_and_loaded_if_it_is_asked_for(trained):
    parts, _, variables = evaluate.load_parts(trained)
    target = evaluate.restore(parts, epath.Path(trained)).state.target
    expected = target.params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, variables["params"], expected)
    within = []
    for network in ("online", "target"):
        config = tiny_config(RUN | {"evaluation.network": network})
        *_, chosen = evaluate.load_parts(trained, config=config)
        same = chosen["params"]["dense1"]["kernel"] == expected["dense1"]["kernel"]
        assert np.all(same) == (network == "target")
        summary = evaluate.run(config, trained)["summary"]
        within.append(summary["variance.within"]["mean"])
    assert within[0] != within[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (named("vicreg") | {"evaluation.network": "target"}, "evaluation.network is"),
        ({"method.kwargs": {"hidden": 3}}, "hidden; expected nothing, as method.name"),
        (with_kwargs("byol", output=3), "has output; expected hidden, momentum, as"),
        (with_kwargs("byol", momentum=1.5), "momentum = 1.5; expected a number, from"),
        (with_kwargs("emp_ssl", distortion=0.0), "distortion = 0.0; expected a number"),
        (with_kwargs("byol", hidden=0.5), "hidden = 0.5; expected an integer, from"),
        (with_kwargs("moco_v3", final_norm=0), r"= 0; expected True or False\."),
        (with_kwargs("vicreg", layers=10**6), "expected an integer, from 1 to 100"),
        (with_kwargs("vicreg", variance_weight=-1), "expected a number, 0 or more"),
        (named("byol") | {"similarity_block": 4}, "similarity_block is 4; expected 0"),
        ({"method.name": "mocov3"}, "method.name is 'mocov3'; expected one of"),
    ],
)
def test_what_does_not_go_with_a_method_is_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        build(resolve(tiny_config(changes)))
