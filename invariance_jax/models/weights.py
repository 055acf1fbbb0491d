"""Conversion of ResNets between PyTorch state dicts and flax variables.

A state dict is a mapping from names to NumPy arrays. Names are those of torchvision, or
those of the authors of Foster et al. (2021), who prefix the first layers by `stem.`.
What precedes the names of the ResNet is removed: enclosing dicts such as
`{"model": {...}}`, and prefixes such as `module.`, `backbone.` or `encoder_q.`. Other
contents of a checkpoint, such as a head or an optimizer, are ignored. Pickles are never
loaded: convert a `.pth` file once, where PyTorch is installed, by

    python -c "import sys, torch, numpy; a, b = sys.argv[1:]; \
    flat = lambda d, p: {k: v for n, x in d.items() for k, v in ( \
    flat(x, f'{p}{n}.') if isinstance(x, dict) else \
    {f'{p}{n}': x.float().numpy()} if torch.is_tensor(x) else {}).items()}; \
    numpy.savez(b, **flat(torch.load(a, map_location='cpu', weights_only=True), ''))" \
    weights.pth weights.npz

PyTorch's running variance is unbiased, while flax and this project use the biased one.
The values are copied unchanged.
"""

import functools
import itertools
import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from invariance_jax.models.registry import RESNETS, create_encoder
from invariance_jax.models.resnet import STEMS, WIDTH

# Every ResNet has a tensor of this name. What precedes the name is the ResNet's prefix.
_ANCHOR = re.compile(r"(?<![^.])layer[1-4]\.0\.conv1\.weight$")
_LAYER = re.compile(r"(conv1|bn1|layer\d+)\.")

_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
_SUFFIXES = (".npz", ".safetensors")

# Name of a dtype in safetensors -> NumPy dtype; bytes are little-endian.
_SAFETENSORS: dict[str, Any] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": jnp.bfloat16,
    "BOOL": "?",
    **{f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "IU" for n in (1, 2, 4, 8)},
}

# Name of a leaf in flax -> in PyTorch. "mean" and "var" are leaves of `batch_stats`.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class Architecture(NamedTuple):
    """The arguments of `create_encoder` that identify a ResNet."""

    name: str
    stem: str
    width: int


def from_torch_state_dict(
    state_dict: Mapping[str, Any], *, prefix: str | None = None
) -> dict[str, Any]:
    """Returns the flax variables of a ResNet with the weights of a state dict.

    The counters `num_batches_tracked` and tensors that are not part of the encoder,
    such as torchvision's classifier (`fc`), are left out.

    Args:
      state_dict: names to arrays, or to nested dicts of arrays; kernels of convolutions
        are `[out, in, rows, columns]`.
      prefix: what precedes the names of the ResNet, keys of enclosing dicts and last
        dot included ("teacher.backbone."). None: the prefix of the only ResNet.

    Returns:
      {"params", "batch_stats"} of the encoder that `identify` names; NumPy arrays in
      float32, or in float64 where the state dict is.

    Raises:
      ValueError: if the tensors are not those of a ResNet-18, -34 or -50: names those
        that are missing, unexpected, of another shape, or not floating; or if there are
        several ResNets and no prefix is given, or none has the prefix.
    """
    tensors = _unwrap(state_dict, prefix)
    architecture = _closest_architecture(tensors)
    _check(tensors, architecture)
    leaves = {}
    for name, (path, _) in _expected_tensors(*architecture).items():
        array = tensors[name]
        array = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
        leaves[path] = array.transpose(2, 3, 1, 0) if path[-1] == "kernel" else array
    return unflatten_dict(leaves)


def to_torch_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dict of a ResNet's variables, without a classifier.

    Args:
      variables: {"params", "batch_stats"} of a ResNet-18, -34 or -50.

    Returns:
      Names to arrays, in PyTorch's order and with the counters `num_batches_tracked`,
      which are 0. Names are the authors' for the cifar stem, torchvision's for the
      imagenet stem.

    Raises:
      ValueError: if they are not the variables of such a ResNet: names the tensors that
        are missing, unexpected, of another shape, or not floating.
    """
    tensors = {}
    for path, leaf in flatten_dict(dict(variables)).items():
        array = np.asarray(leaf)
        if path[-1] == "kernel" and array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        tensors[_torch_name(path)] = array
    architecture = _closest_architecture(tensors)
    _check(tensors, architecture)
    state_dict = {}
    for name in sorted(_expected_tensors(*architecture), key=_torch_order):
        is_stem = name.startswith(("conv1.", "bn1."))
        prefix = "stem." if is_stem and architecture.stem == "cifar" else ""
        state_dict[prefix + name] = np.ascontiguousarray(tensors[name])
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state_dict[prefix + counter] = np.zeros((), np.int64)
    return state_dict


def identify(
    state_dict: Mapping[str, Any], *, prefix: str | None = None
) -> Architecture:
    """Returns the architecture of the encoder in a state dict.

    Args:
      state_dict: as in `from_torch_state_dict`.
      prefix: as in `from_torch_state_dict`.

    Returns:
      The arguments of `create_encoder`. If the tensors fit no architecture, those for
      the closest one.

    Raises:
      ValueError: if no tensor belongs to a ResNet, if there are several ResNets and no
        prefix is given, or if none has the prefix.
    """
    return _closest_architecture(_unwrap(state_dict, prefix))


def load_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file; executes no code from it.

    Args:
      path: a file whose name ends in .npz or .safetensors.

    Returns:
      Names to arrays.

    Raises:
      ValueError: if there is no such file, it has another suffix, or it is damaged.
    """
    path = Path(path)
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which may run any code and is not loaded; convert it "
            "where PyTorch is installed, by the command in the docstring of "
            "invariance_jax.models.weights."
        )
    _check_suffix(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file.")
    try:
        if path.suffix == ".safetensors":
            return _from_safetensors(path.read_bytes())
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # zipfile, zlib, json and NumPy each raise their own
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}); expected tensors as "
            "numpy.savez or safetensors writes them, and no Python objects."
        ) from error


def save_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes tensors to a new file, atomically.

    Args:
      path: a file that does not exist, its name ending in .npz or .safetensors.
      state_dict: names to arrays.

    Raises:
      ValueError: if the file exists, or has another suffix.
    """
    path = Path(path)
    _check_suffix(path)
    if path.exists():
        raise ValueError(f"{path} exists; move it, nothing is overwritten.")
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    arrays: dict[str, Any] = {n: np.asarray(a) for n, a in state_dict.items()}
    try:
        with temporary.open("wb") as file:
            if path.suffix == ".safetensors":
                file.write(_to_safetensors(arrays))
            else:
                np.savez(file, **arrays)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _from_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Returns the tensors of a file: length of the header, header in JSON, bytes."""
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            flat = np.frombuffer(data[begin:end], _SAFETENSORS[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"]).copy()
    return tensors


def _to_safetensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    codes = {np.dtype(dtype): code for code, dtype in _SAFETENSORS.items()}
    header, position = {}, 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": array.shape,
            "data_offsets": (position, position + array.nbytes),
        }
        position += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = (array.tobytes() for array in arrays.values())
    return b"".join([len(text).to_bytes(8, "little"), text, *content])


def _check_suffix(path: Path) -> None:
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path} must end in {' or '.join(_SUFFIXES)}.")


def _unwrap(state_dict: Mapping[str, Any], prefix: str | None) -> dict[str, np.ndarray]:
    """Returns the tensors of the ResNet, under torchvision's names."""
    flat = {
        ".".join(map(str, path)): array
        for path, array in flatten_dict(dict(state_dict)).items()
        if hasattr(array, "shape")
    }
    candidates = {
        name[: match.start()]
        for name, array in flat.items()
        if (match := _ANCHOR.search(name)) and len(array.shape) == 4
    }
    listed = ", ".join(sorted(map(repr, candidates))) or "none"
    if prefix is None and len(candidates) > 1:
        raise ValueError(
            f"state_dict holds several ResNets, with the prefixes {listed}; expected "
            "one: give its prefix as the argument prefix."
        )
    if prefix is not None and prefix not in candidates:
        raise ValueError(f"no ResNet has the prefix {prefix!r}; found {listed}.")
    start = prefix if prefix is not None else next(iter(candidates), "")
    tensors = {}
    for name, array in flat.items():
        own_name = name.removeprefix(start).removeprefix("stem.")
        is_counter = own_name.endswith("num_batches_tracked")
        if name.startswith(start) and _LAYER.match(own_name) and not is_counter:
            tensors[own_name] = _as_numpy(own_name, array)
    if not tensors:
        raise _no_resnet(flat)
    return tensors


def _no_resnet(tensors: Mapping[str, np.ndarray]) -> ValueError:
    names = ", ".join(sorted(tensors)[:4]) or "nothing"
    return ValueError(f"no tensor belongs to a ResNet; found {names}.")


def _as_numpy(name: str, array: Any) -> np.ndarray:
    try:
        converted = np.asarray(array)
    except (TypeError, RuntimeError) as error:  # such as a bfloat16 tensor of PyTorch
        raise ValueError(f"{name} is not a NumPy array: {error}") from error
    # np.savez writes bfloat16 as raw bytes of the dtype V2.
    is_bfloat16 = converted.dtype == np.dtype("V2")
    return converted.view(jnp.bfloat16) if is_bfloat16 else converted


@functools.cache
def _expected_tensors(
    name: str, stem: str, width: int
) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Returns, by torchvision's name, each tensor's path in the variables and shape."""
    encoder = create_encoder(name, stem=stem, width=width)
    init = functools.partial(encoder.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    tensors = {}
    for path, leaf in flatten_dict(shapes).items():
        shape = leaf.shape
        if path[-1] == "kernel":
            shape = (shape[3], shape[2], *shape[:2])
        tensors[_torch_name(path)] = (path, shape)
    return tensors


def _torch_name(path: tuple[str, ...]) -> str:
    """Returns torchvision's name of the leaf at a path in the variables."""
    name = ".".join([*path[1:-1], LEAVES.get(path[-1], path[-1])])
    name = re.sub(r"^(layer\d+)_(\d+)\.", r"\1.\2.", name)
    name = name.replace("downsample_conv", "downsample.0")
    return name.replace("downsample_bn", "downsample.1")


def _torch_order(name: str) -> tuple[Any, ...]:
    """Returns the sort key of a tensor's name in the state dict of a PyTorch module."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    *modules, leaf = name.split(".")
    # In each block: conv1, bn1, conv2, bn2, ..., then the downsampling.
    key: list[Any] = []
    for module in modules:
        kind = module.rstrip("0123456789")
        number = int(module.removeprefix(kind) or 0)
        key.append((kind in ("layer", "downsample"), number, kind == "bn"))
    return tuple(key), leaves.index(leaf)


def _closest_architecture(tensors: Mapping[str, np.ndarray]) -> Architecture:
    """Returns the architecture that shares most tensors, by name and shape."""
    found = {(name, array.shape) for name, array in tensors.items()}
    width = [*np.shape(tensors.get("conv1.weight", 0)), WIDTH][0]
    scores = {}
    for name, stem in itertools.product(RESNETS, STEMS):
        architecture = Architecture(name, stem, width)
        entries = _expected_tensors(*architecture).items()
        expected = {(tensor, shape) for tensor, (_, shape) in entries}
        scores[architecture] = len(found & expected), -len(expected)
    best = max(scores, key=lambda architecture: scores[architecture])
    if scores[best][0] == 0:
        raise _no_resnet(tensors)
    return best


def _check(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> None:
    expected = _expected_tensors(*architecture)
    common = sorted({*tensors} & {*expected})
    problems = {
        "missing": sorted({*expected} - {*tensors}),
        "unexpected": sorted({*tensors} - {*expected}),
        "of another shape": [
            f"{name} {list(tensors[name].shape)}, not {list(expected[name][1])}"
            for name in common
            if tensors[name].shape != expected[name][1]
        ],
        "not floating": [
            f"{name} ({tensors[name].dtype})"
            for name in common
            if not jnp.issubdtype(tensors[name].dtype, jnp.floating)
        ],
    }
    descriptions = []
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            descriptions.append(f"{problem}: {', '.join(names[:4])}{more}")
    if descriptions:
        raise ValueError(
            f"the tensors are closest to those of {architecture.name} with the "
            f"{architecture.stem} stem and width {architecture.width}, but some are "
            f"{'; '.join(descriptions)}."
        )
