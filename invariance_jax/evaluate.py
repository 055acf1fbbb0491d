"""The evaluation program: from a frozen encoder to `results.json`."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from invariance_jax import experiments
from invariance_jax.arguments import check_shape, promote_images
from invariance_jax.experiments import Context, Experiment, ExperimentResult, samples
from invariance_jax.runs import results
from invariance_jax.runs.checkpoints import Checkpoint, Checkpoints
from invariance_jax.runs.log import final_metrics
from invariance_jax.runs.workdir import (
    check_same_run,
    claim,
    one_per_seed,
    read_config,
    warn_of_other_code,
)
from invariance_jax.runtime import processes
from invariance_jax.runtime.compilation import compilation_kept
from invariance_jax.runtime.devices import all_devices, make_deterministic
from invariance_jax.runtime.files import AnyPath, work_folder, write_json
from invariance_jax.runtime.preemption import stop_if_asked, watch_signals
from invariance_jax.runtime.terminal import progress
from invariance_jax.settings import Config, Settings, plugins, resolve
from invariance_jax.tasks import open_set
from invariance_jax.training.build import (
    Parts,
    build,
    first_state,
    read_weights,
    state_shapes,
    view_shapes,
)
from invariance_jax.training.frozen import FrozenEncoder, apply, encoder_variables
from invariance_jax.training.objective import Variables
from invariance_jax.training.step import TrainState
from invariance_jax.types import Array, Json

_log = logging.getLogger(__name__)

_FIRST_M_ONLY = {
    *("downstream", "invariance", "linearization", "poincare_ratio"),
    "nuisance_prediction",
}
"""The experiments that need features averaged over the first M only, or none."""


def run(config: Config | None, workdir: AnyPath) -> Json:
    """Evaluates the newest checkpoint of each seed; returns what `results.json` holds.

    Evaluation keys may differ from those of the run. If `config` is None, that of the
    work directory is used. A new work directory can be evaluated if `encoder.weights`
    are given. Writes `experiments/`, `results.json` and `samples.npz` for each seed,
    and for several seeds the aggregated `results.json` in the parent folder. An
    experiment that was measured with the same settings is not repeated. If a user's own
    experiment fails, ValueError is raised after all others are measured; if a signal
    requests a stop, Preempted. Every process calls it; the main one writes.
    """
    with watch_signals():
        with processes.main_process_first():
            runs = prepare(config, workdir)
        with compilation_kept(runs[0][0].compilation_cache, workdir):
            # Seeds differ in their variables only: one program serves all.
            parts = build(runs[0][0])
            if names := ", ".join(results.left_out(parts.task)):
                _log.info("the data set has no labels: %s left out", names)
            encoder = FrozenEncoder(parts, all_devices(), between=stop_if_asked)
            failed = dict[str, None]()
            each = [
                _evaluate(parts._replace(settings=settings), path, encoder, failed)
                for settings, path in runs
            ]
    content = results.aggregate(each)
    if processes.is_main_process():
        write_json(work_folder(workdir) / "results.json", content)
    if failed:
        raise ValueError("\n".join(failed))
    return content


def prepare(
    config: Config | None, workdir: AnyPath
) -> list[tuple[Settings, epath.Path]]:
    """Returns settings and work directory of every seed of a run, after checking them.

    With given weights it makes the work directories that do not exist.
    """
    config = read_config(workdir) if config is None else config
    make_deterministic(config.deterministic)
    configs = [(config, work_folder(workdir)), *one_per_seed(config, workdir)]
    runs = [(open_set(resolve(one)), path) for one, path in configs]
    for settings, path in runs:
        if (path / "config.json").exists() or read_weights(settings) is None:
            check_same_run(settings, path)
        warn_of_other_code(settings, path)
    for settings, path in runs:
        if not (path / "config.json").exists():
            claim(settings, path)
    return runs[1:]


def load(
    workdir: AnyPath, *, step: int | None = None
) -> tuple[Callable[[Array], Array], Config]:
    """Returns the encoder and configuration of a run, see `invariance_jax.load`."""
    parts, config, variables = load_parts(workdir, step=step)
    plain, views = parts.transformation.plain, parts.settings.augmentation.name
    if plain is None and plugins.is_own(views):
        raise ValueError(
            f"augmentation.name is {views!r}, whose Transformation has no plain; "
            "expected one, as it normalizes the images for the encoder."
        )

    shape = view_shapes(parts.task, parts.transformation).shape[1:]
    expected = f"[B, {', '.join(map(str, shape))}]"

    def encode(images: Array) -> Array:
        _check_values(images)
        images = promote_images(images) if plain is None else plain(images)
        # An MLP takes channels in another place, [B, C, H, W], without an error.
        check_shape("images", images, (None, *shape), expected=expected)
        return apply(parts.encoder, variables, images)

    return encode, config


def _check_values(images: Array) -> None:
    """Refuses floating images that are of 8 bits or normalized, unless traced."""
    is_floating = jnp.issubdtype(images.dtype, jnp.floating)
    if isinstance(images, jax.core.Tracer) or not is_floating or not images.size:
        return
    low, high = float(images.min()), float(images.max())
    if low < -1 or high > 2:  # resampled images may leave [0, 1] a little
        raise ValueError(
            f"images must have values in [0, 1]; found {low:g} to {high:g}: divide "
            "8-bit images by 255, and do not normalize them."
        )


def load_parts(
    workdir: AnyPath, *, step: int | None = None, config: Config | None = None
) -> tuple[Parts, Config, Variables]:
    """Returns parts, configuration and encoder variables of the run of one seed."""
    if config is not None:
        check_same_run(resolve(config), work_folder(workdir))
    config = read_config(workdir) if config is None else config
    settings = resolve(config)
    if settings.seeds > 1:
        raise ValueError(
            f"{workdir} holds {settings.seeds} seeds; load one of them, such as "
            f"{epath.Path(workdir) / f'seed_{settings.seed}'}."
        )
    parts = build(settings)
    warn_of_other_code(settings, workdir)
    state = restore(parts, work_folder(workdir), step=step).state
    return parts, config, encoder_variables(state, settings.evaluation.network)


def restore(
    parts: Parts, workdir: epath.Path, *, step: int | None = None
) -> Checkpoint[TrainState]:
    """Returns a checkpoint; without training, one of step 0 with the given weights."""
    untrained = step is None and not (workdir / "metrics.jsonl").exists()
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        if untrained and parts.settings.encoder.weights and not checkpoints.steps():
            return Checkpoint(0, first_state(parts), {})
        return checkpoints.restore(state_shapes(parts), step=step)


def _evaluate(
    parts: Parts, workdir: epath.Path, encoder: FrozenEncoder, failed: dict[str, None]
) -> Json:
    """Returns the results of one seed; adds errors of own experiments to `failed`."""
    functions = experiments.load(parts.task)
    step, state, note = restore(parts, workdir)
    settings = results.settings_of(parts.task, step)
    sources = experiments.sources(functions, parts.settings)
    records = results.read_records(workdir, settings, sources)
    on_disk = [name in records for name in functions]
    # Without any valid record, `samples.npz` may be of another split or step.
    on_disk.append(bool(records) and (workdir / "samples.npz").exists())
    # The main process decides: a late process could see files written meanwhile.
    *measured, sampled = map(bool, processes.from_main(np.array(on_disk)))
    missing = [name for name, done in zip(functions, measured, strict=True) if not done]

    for name in [name for name in functions if name not in missing]:
        _log.info("%s: %s is already measured", workdir, name)
    predicts = "averaging" in (missing if sampled else functions)
    if (predicts or not sampled) and processes.is_main_process():
        # If this evaluation is interrupted, the next one must not keep it.
        (workdir / "samples.npz").unlink(missing_ok=True)
    if missing or not sampled:
        views = parts.settings.evaluation.num_views
        variables = encoder_variables(state, parts.settings.evaluation.network)
        first_only = not predicts and {*missing} <= _FIRST_M_ONLY
        num_views = views[:1] if first_only else views
        context = Context(parts, workdir, encoder, variables, num_views=num_views)
        remaining = {name: functions[name] for name in missing}
        for name, result, seconds in _measured(remaining, context, failed):
            rows = results.table(name, result.rows, seed=parts.settings.seed)
            how: Json = {"settings": settings, "source": sources[name]}
            records[name] = results.keep(workdir, name, rows, seconds=seconds, **how)
        if predicts or not sampled:
            samples.write(context, predictions=predicts)
    final = final_metrics(workdir, step=step, rows=note.get("rows", 0))
    more = [results.Row(name, value) for name, value in final.items()]
    content = results.of_seed(parts.settings.seed, settings, records, more)
    if processes.is_main_process():
        write_json(workdir / "results.json", content)
    return content


def _measured(
    functions: Mapping[str, Experiment], context: Context, failed: dict[str, None]
) -> Iterator[tuple[str, ExperimentResult, float]]:
    """Yields name, result and seconds; adds errors of users' own to `failed`."""
    with progress("evaluating", len(functions), unit="experiments") as bar:
        for name, function in functions.items():
            bar.set_description(f"evaluating {name}")
            started = time.monotonic()
            try:
                result = experiments.measure(name, function, context)
            except ValueError as error:
                # One of several processes must not go on alone: the others would wait.
                if not plugins.is_own(name) or jax.process_count() > 1:
                    raise
                failed[str(error)] = None  # raised after the other experiments
            else:
                seconds = time.monotonic() - started
                yield name, result, seconds
                _log.info("%s: %s took %.0f s", context.workdir, name, seconds)
            bar.update()
