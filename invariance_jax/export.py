"""The export program: writes an encoder to a file that other frameworks read.

The arrays of ResNets and MLPs have names of PyTorch (`data/README.md`), those of other
encoders their paths in flax, such as `params.dense1.kernel`. The log line says how
images are normalized for the encoder.
"""

import logging
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from invariance_jax.evaluate import load_parts
from invariance_jax.models import weights
from invariance_jax.models.registry import RESNETS
from invariance_jax.runtime.files import AnyPath, named
from invariance_jax.settings import Config, plugins
from invariance_jax.training.build import Parts, view_shapes
from invariance_jax.training.objective import Variables

_log = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".npz")


def run(
    workdir: AnyPath,
    out: AnyPath | None,
    *,
    step: int | None = None,
    config: Config | None = None,
) -> Path:
    """Writes the encoder of the run of one seed to a new file, and returns its path.

    A given configuration must be that of the run; `evaluation.network` may differ.
    """
    if out is None or Path(out).suffix not in _SUFFIXES:
        raise ValueError(f"--out is {out}; expected a file {' or '.join(_SUFFIXES)}.")
    path = Path(out).expanduser()
    parts, config, variables = load_parts(workdir, step=step, config=config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path):
        weights.save_state_dict(path, state_dict(parts, variables))
    mean, std, views = config.data.mean, config.data.std, config.augmentation.name
    scale = f"(images - {mean}) / {std}" if mean else "images in [0, 1]"
    scale = f"images as {views} returns them" if plugins.is_own(views) else scale
    _log.info("%s: the input of the encoder is %s", path, scale)
    return path


def state_dict(parts: Parts, variables: Variables) -> dict[str, np.ndarray]:
    """Returns name -> array of an encoder, with the names of the file."""
    name = parts.settings.encoder.name
    if name in RESNETS:
        return weights.to_torch_state_dict(variables)
    arrays = jax.tree.map(np.asarray, flatten_dict(variables))
    if name != "mlp":
        return {".".join(path): array for path, array in arrays.items()}
    return _mlp(arrays, parts)


def _mlp(
    arrays: dict[tuple[str, ...], np.ndarray], parts: Parts
) -> dict[str, np.ndarray]:
    exported, shape = {}, view_shapes(parts.task, parts.transformation).shape[1:]
    for (_, layer, leaf), array in arrays.items():
        module = "layers" if layer.startswith("dense") else "norms"
        index = int(layer.removeprefix("dense").removeprefix("bn")) - 1
        if leaf == "kernel" and index == 0:
            # Rows of flax run over [S, S, 3], columns of PyTorch over [3, S, S].
            pixels = array.reshape(*shape, -1).transpose(2, 0, 1, 3)
            array = pixels.reshape(array.shape)
        name = f"{module}.{index}"
        array = array.T if leaf == "kernel" else array
        exported[f"{name}.{weights.LEAVES[leaf]}"] = array
        if leaf == "var":
            exported[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
    return exported
