"""State dicts: what is read and written, and what is refused by name.

That imported formula weights give the reference outputs is tested in `test_models.py`.
"""

import pickle
import re
import subprocess
import sys
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from reference import reference_state_dict

from invariance_jax.models import create_encoder, weights
from invariance_jax.models.weights import (
    from_torch_state_dict,
    identify,
    load_state_dict,
    save_state_dict,
    to_torch_state_dict,
)

RESNETS = ("resnet18", "resnet34", "resnet50")


@pytest.fixture(scope="module")
def state_dict(reference_json):
    """The authors' ResNet-18, small random numbers."""
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(size=array.shape).astype(np.float32)
        if array.ndim
        else array
        for name, array in reference_state_dict(reference_json["resnet18"]).items()
    }


def numbered(encoder):
    """Variables of an encoder, no two entries of an array the same."""
    init, image = partial(encoder.init, train=False), np.zeros((1, 8, 8, 3), np.float32)
    return jax.tree.map(
        lambda leaf: np.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape),
        jax.eval_shape(init, jax.random.key(0), image),
    )


def torchvision(state_dict):
    """The same in torchvision's form: a 7x7 stem, no `stem.`, and a classifier."""
    found = {name.removeprefix("stem."): array for name, array in state_dict.items()}
    found["conv1.weight"] = np.ones((64, 3, 7, 7), np.float32)
    found["fc.weight"] = np.ones((1000, 512), np.float32)
    found["fc.bias"] = np.ones(1000, np.float32)
    return found


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("name", RESNETS)
def test_export_has_the_names_shapes_and_order_of_the_authors(name, reference_json):
    state_dict = reference_state_dict(reference_json[name])
    assert identify(state_dict) == (name, "cifar", 64)
    variables = from_torch_state_dict(state_dict)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(float)}
    exported = to_torch_state_dict(variables)
    found = [[key, list(array.shape)] for key, array in exported.items()]
    assert found == reference_json[name]["state_dict"]
    assert_equal(exported, state_dict)


def test_a_narrow_resnet_goes_there_and_back():
    variables = numbered(create_encoder("resnet18", width=8))
    found = to_torch_state_dict(variables)
    assert identify(found) == ("resnet18", "cifar", 8)
    assert_equal(from_torch_state_dict(found), variables)


def prefixed(prefix, state_dict):
    return {prefix + key: array for key, array in state_dict.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: {"net": prefixed("module.", d), "epoch": 3},
        lambda d: {"state_dict": prefixed("module.encoder_q.", d)},
        lambda d: {"model": d, "optimizer": {"state": {0: {"step": np.ones(())}}}},
        lambda d: {"teacher": {"backbone": d}, "args": object()},
        lambda d: prefixed("_orig_mod.", d) | {"n_averaged": np.zeros((), np.int64)},
        lambda d: prefixed("encoder.", d) | {"head.0.weight": np.ones((9, 512))},
        lambda d: prefixed("backbone.", d) | {"backbone.fc.0.weight": np.ones((9, 9))},
    ],
    ids=["net", "moco", "model", "teacher", "compiled", "encoder", "backbone"],
)
def test_whatever_stands_before_the_only_resnet_is_taken_off(wrap, state_dict):
    found = from_torch_state_dict(wrap(state_dict))
    assert_equal(found, from_torch_state_dict(state_dict))


def test_several_resnets_are_named_and_one_is_chosen(state_dict):
    moved = {key: array + 1 for key, array in state_dict.items()}
    both = prefixed("encoder_q.", state_dict) | prefixed("encoder_k.", moved)
    with pytest.raises(ValueError, match="several .* 'encoder_k.', 'encoder_q.'; "):
        from_torch_state_dict({"model": both}["model"])
    for prefix, one in (("encoder_q.", state_dict), ("encoder_k.", moved)):
        found = from_torch_state_dict(both, prefix=prefix)
        assert_equal(found, from_torch_state_dict(one))
        assert identify(both, prefix=prefix) == ("resnet18", "cifar", 64)
    with pytest.raises(ValueError, match="no ResNet has the prefix 'x.'; found 'enco"):
        from_torch_state_dict(both, prefix="x.")


def test_names_of_torchvision_are_known(state_dict):
    found = torchvision(state_dict)
    assert identify(found) == ("resnet18", "imagenet", 64)
    exported = to_torch_state_dict(from_torch_state_dict(found))
    without = {key: a for key, a in found.items() if not key.startswith("fc.")}
    assert list(exported) == list(without)
    assert_equal(exported, without)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_low_precision_becomes_float32_and_comes_back_from_files(
    dtype, state_dict, tmp_path
):
    low = {key: np.asarray(array).astype(dtype) for key, array in state_dict.items()}
    expected = from_torch_state_dict(low)
    leaves = jax.tree.leaves(expected)
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    for suffix in (".npz", ".safetensors"):
        save_state_dict(tmp_path / f"low{suffix}", low)
        found = from_torch_state_dict(load_state_dict(tmp_path / f"low{suffix}"))
        assert_equal(found, expected)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_give_back_what_was_written(suffix, state_dict, tmp_path):
    array = np.arange(24.0).reshape(4, 6)
    written = {"transposed": array.T, "strided": array[:, ::2], "scalar": np.int64(7)}
    path = tmp_path / f"weights{suffix}"
    save_state_dict(path, state_dict | written)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    found = load_state_dict(path)
    assert_equal(found, {k: np.asarray(a) for k, a in (state_dict | written).items()})
    assert found["scalar"].shape == () and found["strided"].shape == (4, 3)


def test_a_file_is_never_overwritten(state_dict, tmp_path):
    path = tmp_path / "weights.npz"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"weights\.npz exists"):
        save_state_dict(path, state_dict)
    assert path.read_text() == "precious"


PICKLE = "is a pickle.*not loaded; convert it"


@pytest.mark.parametrize(
    "name, message",
    [
        ("a.pth", PICKLE),
        ("a.bin", PICKLE),
        ("a.txt", r"must end in \.npz or \.safetensors"),
        ("none.npz", "is not a file"),
        ("torn.npz", r"cannot be read \(\w+\); expected tensors"),
        ("torn.safetensors", r"cannot be read \(\w+\); expected tensors"),
        ("object.npz", r"cannot be read \(ValueError\); .* no Python objects"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, message, tmp_path):
    path = tmp_path / name
    if name.startswith("torn"):
        path.write_bytes(b"PK\x03\x04 torn")
    elif name.startswith("object"):
        np.savez(path, weight=np.array([{}], dtype=object))
    elif name.startswith("a."):
        path.write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=message) as caught:
        load_state_dict(path)
    assert name in str(caught.value)


TORCH = """
import numpy, pickle
class Tensor:
    def __init__(self, array, bits): self.array, self.bits = array, bits
    def float(self): return Tensor(self.array.astype("float32"), 32)
    def numpy(self):
        if self.bits == 16: raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array
is_tensor = lambda value: isinstance(value, Tensor)
def load(path, map_location, weights_only):
    assert map_location == "cpu" and weights_only
    tensors = {n: Tensor(a, 16) for n, a in numpy.load(path).items()}
    step = Tensor(numpy.array(7), 64)
    return {"model": {"backbone": tensors, "step": step}, "epoch": 3, "args": [1]}
"""


def test_the_conversion_is_one_line_of_shell(state_dict, tmp_path):
    # A stand-in for PyTorch: nested dicts, bfloat16, integers and more in the file.
    (tmp_path / "torch.py").write_text(TORCH)
    np.savez(tmp_path / "in.npz", **state_dict)
    (tmp_path / "in.npz").rename(tmp_path / "weights.pth")
    line = re.search(r"python -c .*weights\.npz", weights.__doc__, re.DOTALL).group()
    line = line.replace("python", sys.executable, 1)
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    found = from_torch_state_dict(load_state_dict(tmp_path / "weights.npz"))
    assert_equal(found, from_torch_state_dict(state_dict))


def test_safetensors_are_those_of_the_library(state_dict, tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    mixed = {"bytes": np.arange(3, dtype=np.uint8), **state_dict}
    save_state_dict(tmp_path / "ours.safetensors", mixed)
    assert_equal(library.load_file(tmp_path / "ours.safetensors"), mixed)
    library.save_file(mixed, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert_equal(load_state_dict(tmp_path / "theirs.safetensors"), mixed)


def test_a_tensor_that_numpy_cannot_take_is_named(state_dict):
    class Half:
        shape = (64,)

        def __array__(self, *_, **__):
            raise TypeError("Got unsupported ScalarType BFloat16")

    message = r"layer1.0.bn1.bias is not a NumPy array: Got"
    with pytest.raises(ValueError, match=message):
        from_torch_state_dict({**state_dict, "layer1.0.bn1.bias": Half()})


BIAS = "layer4.0.bn1.bias"


@pytest.mark.parametrize(
    "name, array, message",
    [
        ("layer3.1.conv2.weight", None, r"missing: layer3\.1\.conv2\.weight\."),
        ("layer9.0.conv1.weight", np.ones(3), r"unexpected: layer9\.0\.conv1\.weight"),
        (BIAS, np.ones(3), rf"of another shape: {BIAS} \[3\], not \[512\]"),
        (BIAS, np.ones(512, np.int32), rf"not floating: {BIAS} \(int32\)"),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_a_tensor_that_does_not_fit_is_named(name, array, message, state_dict):
    changed = {**state_dict, name: array}
    changed = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(ValueError, match=message) as caught:
        from_torch_state_dict(changed)
    assert "closest to those of resnet18 with the cifar stem" in str(caught.value)


def test_many_tensors_that_do_not_fit_are_counted(state_dict):
    few = {key: a for key, a in state_dict.items() if not key.startswith("layer4")}
    with pytest.raises(ValueError, match="missing: .* and 21 more"):
        from_torch_state_dict(few)


@pytest.mark.parametrize("empty", [{}, {"net": {}}, {"net": {"a": np.ones(2)}}])
def test_what_is_not_a_resnet_is_refused(empty):
    for convert in (from_torch_state_dict, to_torch_state_dict):
        with pytest.raises(ValueError, match="no tensor belongs to a ResNet; found"):
            convert(empty)
