"""The benchmarks: they run, peers draw our images, times are summed up right."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import spirograph as config_file
from invariance_jax.benchmarks import (
    augment,
    ceilings,
    evaluate,
    loss,
    penalty,
    render,
    restart,
    step,
    timing,
)
from invariance_jax.training import parallel
from invariance_jax.training.settings import resolve
from invariance_jax.transforms import spirograph

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def config():
    config = config_file.get_config("smoke")
    config.batch_size = 8
    config.steps = 20
    config.penalty.weight = 0.1
    config.penalty.directions = 1
    config.encoder.width = config.encoder.projection = 8
    config.encoder.depth = 1
    config.data.train_examples = 16
    config.data.image_size = 8
    config.data.num_points = 5
    return config


class Clock:
    """A clock that only the calls move on, and the calls made so far."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def called():
            self.calls.append(name)
            self.now += seconds

        return called


def comparison(*, speedup):
    ours, peer = np.array([1.0, 2.0, 2.0]), np.array([2.0, 4.0, 8.0])
    return timing.Comparison("name", "ours", "peer", ours, peer, speedup, "expected")


def test_alternate_gives_the_seconds_of_one_call():
    clock = Clock()
    calls = clock.call("a", 0.25), clock.call("b", 2.0)
    times = timing.alternate(*calls, repeats=3, min_seconds=1.0, clock=clock)
    np.testing.assert_allclose(times, [[0.25] * 3, [2.0] * 3])


def test_alternate_fills_the_least_time_and_takes_turns():
    clock = Clock()
    calls = clock.call("a", 0.5), clock.call("b", 2.0)
    timing.alternate(*calls, repeats=2, min_seconds=1.0, clock=clock)
    assert "".join(clock.calls) == "aabb" + "aab" + "baa"


def test_alternate_leaves_the_first_call_out():
    clock = Clock()
    seconds = iter([100.0, 1.0, 1.0, 1.0])

    def compiles():
        clock.now += next(seconds)

    times = timing.alternate(compiles, repeats=2, min_seconds=0.0, clock=clock)
    np.testing.assert_allclose(times, [[1.0, 1.0]])


def test_alternate_waits_for_the_result():
    waited = []

    class Result:
        def block_until_ready(self):
            waited.append(self)

    timing.alternate(Result, repeats=1, min_seconds=0.0)
    assert len(waited) == 3


def test_alternate_rejects_no_repeats():
    with pytest.raises(ValueError, match="repeats must be at least 1; found 0"):
        timing.alternate(lambda: None, repeats=0, min_seconds=0.0)


def test_quartiles_interpolate():
    assert timing.quartiles(np.array([4.0, 1.0, 3.0, 2.0])) == (1.75, 2.5, 3.25)


def test_speedup_is_the_median_of_the_ratios_of_pairs():
    assert comparison(speedup=True).ratio == (2.0, 2.0, 3.0)
    assert comparison(speedup=True).ratio_of == "peer / ours"


def test_slowdown_is_the_reciprocal():
    assert comparison(speedup=False).ratio == (0.375, 0.5, 0.5)
    assert comparison(speedup=False).ratio_of == "ours / peer"


def test_a_comparison_survives_json():
    found = json.loads(json.dumps(comparison(speedup=True).as_dict()))
    assert found["repeats"] == 3
    assert found["ours_seconds"] == {"lower": 1.5, "median": 2.0, "upper": 2.0}
    assert found["ratio"]["median"] == 2.0


def test_table_has_milliseconds_ratio_spread_and_machine():
    counted = replace(comparison(speedup=True), flops=4.0, bytes_moved=60.0)
    limits = ceilings.Ceilings(flops=10.0, bytes_moved=100.0)
    found = [counted, comparison(speedup=True)]
    header, row, other, _, facts = timing.table(
        found, {"cpu cores": 2}, limits
    ).splitlines()
    assert header.split()[0] == "ours"
    assert "30%" in row and "%" not in other
    assert "2e+03" in row and "2 (peer / ours)" in row and "2 to 3" in row
    assert facts == "cpu cores 2"


def test_ceilings_are_rates_of_the_device():
    limits = ceilings.measure(size=32, copied=1000)
    assert limits.flops > 0 and limits.bytes_moved > 0
    half = {"flops": limits.flops, "bytes_moved": limits.bytes_moved / 2}
    assert limits.share(**half, seconds=2.0) == pytest.approx(0.5)


def test_step_compares_with_the_same_encoder(config):
    pytest.importorskip("torch")
    step.check_encoder("resnet18", 8)
    config.encoder.depth = 3
    results = step.run(config, repeats=1, min_seconds=0.0)
    assert [r.ours for r in results] == ["mlp, plain", "mlp, penalized"]
    flops = [r.flops for r in results]
    # The penalized encoder runs forward and backward three times, not twice.
    encoder = 3 * 8 * 8 * 8 + 2 * 8 * 8
    assert flops[1] - flops[0] == 2 * 3 * 8 * encoder


def test_machine_names_versions_and_device():
    facts = timing.machine()
    assert facts["jax version"] == jax.__version__
    assert facts["devices"] == 4
    json.dumps(facts)


@pytest.mark.parametrize("name", render.peers())
@pytest.mark.parametrize(("image_size", "num_points"), [(32, 40), (9, 7)])
def test_peers_draw_our_images(name, image_size, num_points):
    parameters = render.draw_parameters(16)
    size = {"image_size": image_size, "num_points": num_points}
    found = np.asarray(render.peers()[name](parameters, **size)())
    expected = spirograph.render(jnp.asarray(parameters), **size)
    assert found.shape == (16, image_size, image_size, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_numpy_peer_draws_the_reference_images(reference):
    x, alpha = reference["spirograph_x"], reference["spirograph_alpha"]
    columns = [x[:, 0], x[:, 1], alpha[:, 0], x[:, 2], x[:, 3], *alpha[:, 1:].T]
    parameters = np.stack(columns, axis=1).astype(np.float32)
    found = render.numpy_peer(parameters, image_size=32, num_points=40)()
    np.testing.assert_allclose(found, reference["spirograph_image"], rtol=0, atol=1e-4)


def test_parameters_are_within_the_bounds():
    parameters = render.draw_parameters(100)
    low, high = spirograph.BOUNDS.T.astype(np.float32)[:, None]
    assert np.all((parameters >= low) & (parameters <= high))
    assert np.ptp(parameters, axis=0) == pytest.approx((high - low)[0], rel=0.2)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.full((2, 3), 0.5, np.float32), "peer differ from ours by 0.5; expected"),
        (np.full((2, 3), np.nan, np.float32), "peer differ from ours by nan; expected"),
        (np.zeros((3, 2), np.float32), r"shape \(3, 2\); expected \(2, 3\)"),
        (np.zeros((2, 3)), "dtype float64; expected float32"),
    ],
)
def test_other_images_of_a_peer_are_refused(found, message):
    with pytest.raises(ValueError, match=message):
        render.check_equal("peer", found, np.zeros((2, 3), np.float32))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_render_compares_every_peer_and_the_derivative():
    results = render.run(
        batch_size=2, image_size=8, num_points=5, repeats=2, min_seconds=0.0
    )
    peers = [*render.peers()]
    of_derivative = [name for name in peers if name.startswith("torch")]
    assert [r.peer for r in results] == [*peers, *of_derivative, "render"]
    names = ["render"] * len(peers) + ["derivative"] * (len(of_derivative) + 1)
    assert [r.name for r in results] == names
    assert all(len(r.ours_seconds) == len(r.peer_seconds) == 2 for r in results)


def test_penalty_compares_what_the_studies_do(config, monkeypatch):
    made = []

    def make_steps(config, num_steps):
        made.append((config, num_steps))
        metrics = {"loss": (jnp.ones(()), jnp.ones(()))}
        return lambda: parallel.replicate(metrics, parallel.all_devices())

    monkeypatch.setattr(penalty, "make_steps", make_steps)
    results = penalty.run(config, num_steps=4, repeats=2, min_seconds=0.0)
    assert [num_steps for _, num_steps in made] == 8 * [4]
    plain, penalized, *others = (config for config, _ in made)
    assert (plain.penalty.weight, penalized.penalty.weight) == (0.0, 0.1)
    assert [c.penalty.fraction for c in others[:2]] == [0.5, 0.25]
    assert [c.penalty.every_steps for c in others[2:4]] == [2, 4]
    assert (others[4].penalty.kind, others[5].average_views) == ("consistency", 2)
    assert [r.ours for r in results][::6] == [
        "every example and step",
        "2 views averaged",
    ]
    assert {(r.peer, r.ratio_of) for r in results} == {("no penalty", "ours / peer")}
    assert config.penalty.weight == 0.1


def test_penalty_is_timed_per_step(config, monkeypatch):
    monkeypatch.setattr(penalty, "make_steps", lambda *_: lambda: None)
    monkeypatch.setattr(penalty, "check_finite", lambda _: None)
    times = np.arange(4.0, 12.0)[:, None]
    monkeypatch.setattr(penalty, "alternate", lambda *_, **__: times)
    first, *_ = penalty.run(config, num_steps=4, repeats=1, min_seconds=0.0)
    assert (first.ours_seconds, first.peer_seconds) == (1.25, 1.0)


LOSS = {"projections": 12, "features": 3, "block_size": 4, "repeats": 2}


def test_loss_compares_with_the_peer_and_with_itself(monkeypatch):
    monkeypatch.setattr(loss.importlib.util, "find_spec", lambda _: None)
    (result,) = loss.run(**LOSS, min_seconds=0.0)
    assert result.name == "loss of 12"
    assert result.ours.startswith("blocks, ")
    assert (result.peer, result.ratio_of) == ("at once", "ours / peer")
    assert result.flops == 6 * 12 * 12 * 3


def test_loss_refuses_another_gradient(monkeypatch):
    monkeypatch.setattr(loss.importlib.util, "find_spec", lambda _: "found")
    monkeypatch.setattr(loss, "torch_peer", lambda z1, z2: lambda: np.ones((2, 6, 3)))
    with pytest.raises(ValueError, match="the gradients differ by"):
        loss.run(**LOSS, min_seconds=0.0)


def test_the_gradient_of_torch_is_ours():
    pytest.importorskip("torch")
    first, second = loss.run(**LOSS, min_seconds=0.0)
    assert (first.peer, first.ratio_of) == ("torch, cpu", "peer / ours")
    assert second.peer == "at once"


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_the_objective_of_our_probe_is_the_least(kind):
    h, targets, labels = evaluate.make_features(300, 8)
    y = targets if kind == "ridge" else labels
    fit = evaluate._fit_ridge if kind == "ridge" else evaluate._fit_logistic
    kernel, bias = map(np.asarray, fit(h, y)())
    least = evaluate.objective(kind, kernel, bias, h, y)
    generator = np.random.default_rng(0)
    for _ in range(5):
        other = kernel + 1e-2 * generator.normal(size=kernel.shape)
        assert evaluate.objective(kind, other, bias, h, y) > least


def test_the_peer_evaluates_as_we_do():
    pytest.importorskip("torch")
    results = evaluate.run(
        examples=300,
        features=8,
        steps=30,
        averaged_examples=2,
        repeats=1,
        min_seconds=0.0,
    )
    assert [r.name for r in results] == ["ridge", "logistic", "average 2"]
    assert "30 steps, objective" in results[0].peer


def test_a_probe_that_is_worse_than_the_peers_is_refused(monkeypatch):
    best = (np.zeros((8, 4)), np.zeros(4))
    monkeypatch.setattr(evaluate, "torch_probe", lambda *_, **__: lambda: best)
    monkeypatch.setattr(evaluate, "_fit_ridge", lambda h, y: lambda: (best[0] + 1, 9.0))
    h, targets, _ = evaluate.make_features(20, 8)
    with pytest.raises(ValueError, match="the objective of our ridge probe is"):
        evaluate._probe("ridge", h, targets, 1, {"repeats": 1, "min_seconds": 0.0})


def test_steps_train_on_with_the_penalty(config):
    steps = penalty.make_steps(config, num_steps=2)
    first, second = (parallel.one_replica(steps()) for _ in range(2))
    assert first["penalty"][0] > 0
    assert first["loss"][1] == 2
    assert first["loss"][0] != second["loss"][0]


def test_penalty_refuses_a_configuration_without_one(config):
    config.penalty.weight = 0.0
    with pytest.raises(ValueError, match="penalty.weight is 0.0; expected a positive"):
        penalty.run(config, num_steps=1, repeats=1, min_seconds=0.0)


def test_penalty_refuses_a_batch_that_the_devices_do_not_divide(config):
    config.batch_size = 6
    with pytest.raises(ValueError, match="batch_size is 6; expected a multiple of"):
        penalty.run(config, num_steps=1, repeats=1, min_seconds=0.0)


def test_a_loss_that_is_not_finite_is_refused():
    metrics = {"loss": (jnp.full((), jnp.nan), jnp.ones(()))}
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        penalty.check_finite(parallel.replicate(metrics, parallel.all_devices()))


def test_augmentation_is_timed_against_pillow():
    (result,) = augment.run(
        batch_size=256, image_size=16, workers=1, repeats=1, min_seconds=0.0
    )
    assert result.peer == "Pillow, 1 workers"
    assert result.speedup
    assert (result.ours_seconds > 0).all() and (result.peer_seconds > 0).all()


def test_every_call_makes_other_views():
    views = augment.make_ours(augment.draw_images(4, 8))
    assert not np.array_equal(views(), views())


def test_the_pipelines_make_views_of_one_kind():
    images = augment.draw_images(256, 16)
    generator = np.random.default_rng(0)
    peer = np.stack([np.asarray(augment.augment(i, generator)) for i in images])
    peer = (peer / 255 - np.array(augment.MEAN)) / np.array(augment.STD)
    augment.check_similar(
        "Pillow", peer.astype(np.float32), np.asarray(augment.make_ours(images)())
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.zeros((2, 3), np.float32), r"float32 \(2, 3\); expected float32 \(2, 2\)"),
        (np.zeros((2, 2)), "makes float64"),
        (np.full((2, 2), 0.2, np.float32), "the mean of peer differs from ours by 0.2"),
    ],
    ids=["shape", "dtype", "mean"],
)
def test_views_of_another_kind_are_refused(found, message):
    with pytest.raises(ValueError, match=message):
        augment.check_similar("peer", found, np.zeros((2, 2), np.float32))


def test_a_restart_is_timed_to_its_first_finished_step(config, tmp_path):
    restart.start(restart.two_steps(config), tmp_path / "stopped")
    restart.copy_stopped(tmp_path / "stopped", tmp_path / "run", warm=True)
    rows = tmp_path / "run" / "metrics.jsonl"
    assert not rows.exists()
    process = restart._spawn(tmp_path / "run")
    restart._wait_for_a_row(process, rows)
    assert json.loads(rows.read_text().splitlines()[0])["step"] == 2
    restart._end(process)
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


@pytest.fixture
def stopped(tmp_path):
    """What a run of two steps leaves, without running it."""
    workdir = tmp_path / "stopped"
    for folder in ("checkpoints/1", "checkpoints/2", "compilation_cache"):
        (workdir / folder).mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text("a row")
    return workdir


@pytest.mark.parametrize("warm", [True, False])
def test_a_stopped_run_has_its_programs_if_it_is_warm(stopped, tmp_path, warm):
    for _ in range(2):
        restart.copy_stopped(stopped, tmp_path / "run", warm=warm)
        found = {path.name for path in (tmp_path / "run").iterdir()}
        assert found == {"checkpoints"} | ({"compilation_cache"} if warm else set())
        assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
        assert not (tmp_path / "run" / "checkpoints" / "2").exists()


def test_the_end_of_a_restart_is_left_out(config, stopped, tmp_path, monkeypatch):
    code = "import sys, time; from pathlib import Path; run = Path(sys.argv[1])\n"
    code += "time.sleep(0.1 if (run / 'compilation_cache').exists() else 0.6)\n"
    code += "(run / 'metrics.jsonl').write_text('a row'); time.sleep(1.0)"
    monkeypatch.setattr(restart, "_TRAIN", code)
    monkeypatch.setattr(restart, "start", lambda *_: None)
    warm, cold = restart._restarts(config, tmp_path, 1)
    assert 0.1 < warm < cold < 1.5


def test_a_restart_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(restart, "_TRAIN", "raise KeyError('why')")
    with pytest.raises(RuntimeError, match="the run failed: .*KeyError: 'why'"):
        restart._end(restart._spawn(tmp_path))


def test_two_steps_are_a_run_whatever_the_length(config):
    config.steps, config.epochs, config.penalty.warmup_steps = None, 3, 2
    config.logging.profile_steps, config.seeds = "1:9", 4
    assert resolve(restart.two_steps(config)).derived.steps == 2


def test_a_save_is_timed_with_and_without_its_write(config, tmp_path):
    waits, writes = restart._saves(config, tmp_path, 2)
    assert (waits > 0).all() and (writes > 0).all()
    assert waits.shape == writes.shape == (2,)


def program(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "invariance_jax.benchmarks", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_benchmark_that_needs_torch_says_so():
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['', 'evaluate']; "
        "runpy.run_module('invariance_jax.benchmarks', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: the benchmark evaluate compares with")


def test_the_benchmark_of_a_gpu_needs_one():
    result = program("gpu")
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: the benchmark gpu needs a GPU; JAX finds 'c"
    )
    part = program("gpu_steps")
    assert part.returncode == 1
    assert part.stderr.startswith("error: the benchmark needs a GPU; there are [")


def test_program_prints_a_table_and_writes_json(tmp_path):
    out = tmp_path / "out.json"
    result = program("render", f"--json={out}", "--repeats=1", "--min_seconds=0")
    assert result.returncode == 0, result.stderr
    assert "torch, cpu" in result.stdout or "numpy" in result.stdout
    found = json.loads(out.read_text())
    assert {"render", "derivative"} <= {r["name"] for r in found["results"]}
    assert found["machine"]["device kind"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rendre"], "'rendre'; expected one of render, augment, "),
        (["penalty"], "'configs/spirograph.py' and there is no such file; start from"),
        (
            ["render", "--json=no/out.json"],
            "'no/out.json'; expected a file in a folder",
        ),
    ],
    ids=["unknown", "config", "folder"],
)
def test_a_bad_command_line_is_one_line_and_fails(tmp_path, arguments, message):
    result = program(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
