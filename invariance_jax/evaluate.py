"""The evaluation program: from a frozen encoder to `results.json`.

Foster, Pukdee, Rainforth (ICLR 2021), sections 4 and 5: features averaged over M views,
linear probes, and the variance of the representation over views; what is measured is in
`experiments`.
"""

import logging
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from etils import epath

from invariance_jax import experiments
from invariance_jax.experiments import Context, Experiment, ExperimentResult, samples
from invariance_jax.runs import results
from invariance_jax.runs.checkpoints import Checkpoints
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
from invariance_jax.runtime.preemption import Watch
from invariance_jax.runtime.terminal import progress
from invariance_jax.settings import Config, Settings, plugins, resolve
from invariance_jax.tasks import open_set
from invariance_jax.training.build import (
    Parts,
    build,
    first_state,
    read_weights,
    state_shapes,
)
from invariance_jax.training.frozen import FrozenEncoder, apply, encoder_variables
from invariance_jax.training.objective import Variables
from invariance_jax.training.step import TrainState
from invariance_jax.types import Array, Json

_log = logging.getLogger(__name__)

_OF_FEW_VIEWS = {
    "downstream",
    "invariance",
    "linearization",
    "poincare_ratio",
    "nuisance_prediction",
}
"""The experiments that need features over the first M at most."""


def run(config: Config | None, workdir: AnyPath) -> Json:
    """Evaluates the newest checkpoint of every seed; returns what `results.json` says.

    Of a configuration the evaluation keys may differ from those of the run; None: that
    of the work directory. A new work directory is evaluated too if `encoder.weights`
    are given. Writes `experiments/`, `results.json` and `samples.npz` per seed, and
    with several seeds the aggregated `results.json` into the parent. Experiments that
    were measured with the same settings before are not repeated. Every process of a run
    over several calls it; the main one writes.

    Raises:
      ValueError: if the configuration is invalid, the work directory holds no such run,
        or a checkpoint is missing or cannot be read; when all else is measured, if an
        experiment of the user's own fails.
      Preempted: if a signal asks for a stop; the same call continues.
    """
    with Watch() as watch:
        with processes.main_process_first():
            runs = prepare(config, workdir)
        with compilation_kept(runs[0][0].compilation_cache, workdir):
            # Seeds differ in their variables only: one program serves all.
            parts = build(runs[0][0])
            devices, between = all_devices(), watch.stop_if_asked
            encoder = FrozenEncoder(parts, devices, between=between)
            failed = dict[str, None]()
            each = [
                _evaluate(parts._replace(settings=one), path, encoder, failed)
                for one, path in runs
            ]
    found = results.aggregate(each)
    if processes.is_main_process():
        write_json(work_folder(workdir) / "results.json", found)
    if failed:
        raise ValueError("\n".join(failed))
    return found


def prepare(
    config: Config | None, workdir: AnyPath
) -> list[tuple[Settings, epath.Path]]:
    """Returns settings and work directory of every seed of a trained run, checked."""
    config = read_config(workdir) if config is None else config
    make_deterministic(config.deterministic)
    each = [(config, work_folder(workdir)), *one_per_seed(config, workdir)]
    runs = [(open_set(resolve(one)), path) for one, path in each]
    for one, path in runs:
        if (path / "config.json").exists() or read_weights(one) is None:
            check_same_run(one, path)
        warn_of_other_code(one, path)
    for one, path in runs:
        if not (path / "config.json").exists():
            claim(one, path)
    return runs[1:]


def load(
    workdir: AnyPath, *, step: int | None = None
) -> tuple[Callable[[Array], Array], Config]:
    """Returns the encoder of a run and its configuration: see `invariance_jax.load`."""
    parts, config, variables = load_parts(workdir, step=step)
    plain = parts.transformation.plain

    def encode(images: Array) -> Array:
        images = images if plain is None else plain(images)
        return apply(parts.encoder, variables, images)

    return encode, config


def load_parts(
    workdir: AnyPath, *, step: int | None = None, config: Config | None = None
) -> tuple[Parts, Config, Variables]:
    """Returns parts, configuration and encoder of the run of one seed."""
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
    state = restore(parts, work_folder(workdir), step)
    return parts, config, encoder_variables(state, settings.evaluation.network)


def restore(parts: Parts, workdir: epath.Path, step: int | None = None) -> TrainState:
    """Returns a checkpoint of a seed; if it has none, the given weights at step 0."""
    checkpoints = Checkpoints(workdir)
    untouched = step is None and not (workdir / "metrics.jsonl").exists()
    try:
        if untouched and parts.settings.encoder.weights and not checkpoints.steps():
            return first_state(parts)
        return checkpoints.restore(state_shapes(parts), step=step).state
    finally:
        checkpoints.close()


def _evaluate(
    parts: Parts, workdir: epath.Path, encoder: FrozenEncoder, failed: dict[str, None]
) -> Json:
    """Returns the results of one seed; each experiment is written when it is done.

    Takes a note of what failed of the user's own experiments.
    """
    functions, state = experiments.load(parts.task), restore(parts, workdir)
    settings = results.settings_of(parts.task, int(state.step))
    sources = experiments.sources(functions, parts.settings)
    found = results.read_records(workdir, settings, sources)
    there = [name in found for name in functions]
    # Those of another split or step go with its records.
    there.append(bool(found) and (workdir / "samples.npz").exists())
    # A process that comes late could see what another one has written since.
    *kept, sampled = map(bool, processes.from_main(np.array(there)))
    missing = [name for name, there in zip(functions, kept, strict=True) if not there]

    def keep(name: str, measured: ExperimentResult, seconds: float) -> None:
        rows = results.table(name, measured.rows, seed=parts.settings.seed)
        how: Json = {"seconds": seconds, "settings": settings, "source": sources[name]}
        found[name] = results.keep(workdir, name, rows, **how)

    for name in [name for name in functions if name not in missing]:
        _log.info("%s: %s is measured already", workdir, name)
    predicts = "averaging" in (missing if sampled else functions)
    if missing or not sampled:
        views = parts.settings.evaluation.num_views
        variables = encoder_variables(state, parts.settings.evaluation.network)
        few = not predicts and {*missing} <= _OF_FEW_VIEWS
        num_views = views[:1] if few else views
        context = Context(parts, workdir, encoder, variables, num_views=num_views)
        chosen = {name: functions[name] for name in missing}
        failed |= dict.fromkeys(map(str, _measure(chosen, context, keep)))
        if predicts or not sampled:
            samples.write(context, predictions=predicts)
    final = final_metrics(workdir, step=int(state.step))
    rows = [results.Row(name, value) for name, value in final.items()]
    content = results.of_seed(parts.settings.seed, settings, found, rows)
    if processes.is_main_process():
        write_json(workdir / "results.json", content)
    return content


def _measure(
    functions: Mapping[str, Experiment],
    context: Context,
    keep: Callable[[str, ExperimentResult, float], None],
) -> list[ValueError]:
    """Keeps what experiments measure; returns the errors of the user's own."""
    failed = list[ValueError]()
    with progress("evaluating", len(functions), unit="experiments") as bar:
        for name, function in functions.items():
            bar.set_description(f"evaluating {name}")
            started = time.monotonic()
            try:
                measured = experiments.measure(name, function, context)
            except ValueError as error:
                # Alone, a process among several would not meet the others again.
                if not plugins.is_own(name) or jax.process_count() > 1:
                    raise
                failed.append(error)  # said when the others are measured
            else:
                seconds = time.monotonic() - started
                keep(name, measured, seconds)
                _log.info("%s: %s took %.0f s", context.workdir, name, seconds)
            bar.update()
    return failed
