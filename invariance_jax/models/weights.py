"""PyTorch state dicts of ResNets to flax variables and back.

A state dict is a mapping from names to NumPy arrays: torchvision's names, or those of
the authors of Foster et al. (2021), which differ in `stem.` before the first layers. A
`module.` before every name and a dict around it (`{"net": ...}`) are taken off. No
pickle is ever loaded: a `.pth` file is converted once, where PyTorch is installed, by

    python -c "import sys, torch, numpy; a, b = sys.argv[1:]; \
    d = torch.load(a, map_location='cpu', weights_only=True); \
    d = d.get('net', d.get('state_dict', d)); \
    numpy.savez(b, **{k: v.numpy() for k, v in d.items()})" weights.pth weights.npz

PyTorch keeps the unbiased running variance where flax and this project keep the biased
one; it is taken over as it is.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.models.registry import ENCODERS, create_encoder
from invariance_jax.models.resnet import STEMS

_WRAPPERS = ("net", "state_dict", "model")
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
_SUFFIXES = (".npz", ".safetensors")

# Ours -> theirs; the running statistics are leaves of another collection.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class Architecture(NamedTuple):
    """Which encoder it is, as `create_encoder` calls it.

    Attributes:
      name: "resnet18", "resnet34" or "resnet50".
      stem: "cifar" or "imagenet".
    """

    name: str
    stem: str


def from_torch_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flax variables of a ResNet with the weights of a state dict.

    torchvision's classifier (`fc`) and the counters `num_batches_tracked` are left out.

    Args:
      state_dict: names to arrays; convolutions `[out, in, rows, columns]`.

    Returns:
      {"params", "batch_stats"} of the encoder that `identify` names: NumPy arrays,
      float32, or float64 where that was found.

    Raises:
      ValueError: if it is not that of a ResNet-18, -34 or -50: tensors that are
        missing, unexpected, of another shape, or not floating are named.
    """
    tensors = _unwrap(state_dict)
    architecture = _closest(tensors)
    _check(tensors, architecture)
    variables: dict[str, Any] = {}
    for name, (path, _) in _expected(*architecture).items():
        array = np.asarray(tensors[name])
        array = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
        node = variables
        for step in path[:-1]:
            node = node.setdefault(step, {})
        is_kernel = path[-1] == "kernel"
        node[path[-1]] = array.transpose(2, 3, 1, 0) if is_kernel else array
    return variables


def to_torch_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dict of a ResNet's variables, without a classifier.

    Args:
      variables: {"params", "batch_stats"} of a ResNet-18, -34 or -50.

    Returns:
      Names to arrays, in the order and with the counters (0) that PyTorch expects: the
      authors' names for the cifar stem, torchvision's for the other.

    Raises:
      ValueError: if they are not the variables of such a ResNet; tensors that are
        missing, unexpected or of another shape are named.
    """
    tensors = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(dict(variables))[0]:
        array = np.asarray(leaf)
        names = tuple(str(key.key) for key in path)
        if names[-1] == "kernel" and array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        tensors[_torch_name(names)] = array
    architecture = _closest(tensors)
    _check(tensors, architecture)
    state_dict = {}
    for name in sorted(_expected(*architecture), key=_torch_order):
        is_stem = name.startswith(("conv1.", "bn1."))
        prefix = "stem." if is_stem and architecture.stem == "cifar" else ""
        state_dict[prefix + name] = np.ascontiguousarray(tensors[name])
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state_dict[prefix + counter] = np.zeros((), np.int64)
    return state_dict


def identify(state_dict: Mapping[str, Any]) -> Architecture:
    """Returns which encoder a state dict is of.

    Args:
      state_dict: names to arrays.

    Returns:
      The arguments of `create_encoder`; the closest where tensors do not fit.

    Raises:
      ValueError: if no tensor is that of a ResNet.
    """
    return _closest(_unwrap(state_dict))


def load_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file; nothing in it is ever executed.

    Args:
      path: a file that ends in .npz or .safetensors.

    Returns:
      Names to arrays.

    Raises:
      ValueError: if there is no such file, it has another ending, or it is damaged.
    """
    path = Path(path)
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which may run any code and is not loaded; convert it "
            "where PyTorch is installed: the line is in the documentation of "
            "invariance_jax.models.weights."
        )
    _check_suffix(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(path))
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, NumPy and safetensors each raise their own
        raise ValueError(f"{path} cannot be read: {error}") from error


def save_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes tensors to a new file, in one move.

    Args:
      path: a file that ends in .npz or .safetensors and does not exist.
      state_dict: names to arrays.

    Raises:
      ValueError: if the file exists, or has another ending.
    """
    path = Path(path)
    _check_suffix(path)
    if path.exists():
        raise ValueError(f"{path} exists; move it, nothing is overwritten.")
    temporary = path.with_name(f"tmp.{path.name}")
    # safetensors writes the memory of an array as it lies, a transposed one's too.
    arrays: dict[str, Any] = {
        name: np.asarray(array, order="C") for name, array in state_dict.items()
    }
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, temporary)
    else:
        np.savez(temporary, **arrays)
    temporary.rename(path)


def _check_suffix(path: Path) -> None:
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path} must end in {' or '.join(_SUFFIXES)}.")


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors by torchvision's names, without what is not needed."""
    for name in _WRAPPERS:
        if isinstance(state_dict.get(name), Mapping):
            return _unwrap(state_dict[name])
    tensors = dict(state_dict)
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): a for name, a in tensors.items()}
    return {
        name.removeprefix("stem."): array
        for name, array in tensors.items()
        if not name.endswith("num_batches_tracked")
        and name not in ("fc.weight", "fc.bias")
    }


@functools.cache
def _expected(name: str, stem: str) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Returns torchvision's name -> (path in the variables, shape) of each tensor."""
    encoder = create_encoder(name, stem=stem)
    image = jnp.zeros((1, 8, 8, 3))
    init = functools.partial(encoder.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), image)
    found = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        path, shape = tuple(str(key.key) for key in keys), leaf.shape
        if path[-1] == "kernel":
            shape = (shape[3], shape[2], *shape[:2])
        found[_torch_name(path)] = (path, shape)
    return found


def _torch_name(path: tuple[str, ...]) -> str:
    name = ".".join([*path[1:-1], _LEAVES.get(path[-1], path[-1])])
    name = re.sub(r"^(layer\d+)_(\d+)\.", r"\1.\2.", name)
    name = name.replace("downsample_conv", "downsample.0")
    return name.replace("downsample_bn", "downsample.1")


def _torch_order(name: str) -> tuple[Any, ...]:
    """Returns the place of a tensor in the state dict of a PyTorch module."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    *modules, leaf = name.split(".")
    # conv1, bn1, conv2, bn2, ..., then the downsampling, within each block.
    key: list[Any] = []
    for module in modules:
        kind = module.rstrip("0123456789")
        number = int(module.removeprefix(kind) or 0)
        key.append((kind in ("layer", "downsample"), number, kind == "bn"))
    return tuple(key), leaves.index(leaf)


def _closest(tensors: Mapping[str, Any]) -> Architecture:
    """Returns the architecture that shares most tensors, by name and shape."""
    found = {(name, np.shape(array)) for name, array in tensors.items()}
    shared = {}
    for name in ENCODERS:
        for stem in STEMS if name != "mlp" else ():
            of_it = _expected(name, stem)
            wanted = {(tensor, shape) for tensor, (_, shape) in of_it.items()}
            shared[Architecture(name, stem)] = len(found & wanted), -len(wanted)
    best = max(shared, key=lambda architecture: shared[architecture])
    if shared[best][0] == 0:
        names = ", ".join(sorted(tensors)[:4]) or "nothing"
        raise ValueError(f"no tensor is that of a ResNet; found {names}.")
    return best


def _check(tensors: Mapping[str, Any], architecture: Architecture) -> None:
    expected = _expected(*architecture)
    common = sorted({*tensors} & {*expected})
    problems = {
        "missing": sorted({*expected} - {*tensors}),
        "unexpected": sorted({*tensors} - {*expected}),
        "of another shape": [
            f"{name} {list(np.shape(tensors[name]))}, not {list(expected[name][1])}"
            for name in common
            if np.shape(tensors[name]) != expected[name][1]
        ],
        "not floating": [
            f"{name} ({np.asarray(tensors[name]).dtype})"
            for name in common
            if not jnp.issubdtype(np.asarray(tensors[name]).dtype, jnp.floating)
        ],
    }
    told = []
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            told.append(f"{problem}: {', '.join(names[:4])}{more}")
    if told:
        raise ValueError(
            f"the tensors are closest to those of {architecture.name} with the "
            f"{architecture.stem} stem, but some are {'; '.join(told)}."
        )
