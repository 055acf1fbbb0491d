"""Methods: target network, memory, outputs of any form, on one replica or several."""

import jax
import numpy as np
import pytest
from test_parallel import KEY as TRAINING_KEY
from test_parallel import Case, assert_close
from tiny import tiny_config

from invariance_jax.settings import resolve
from invariance_jax.training.build import build, check_own_parts

pytestmark = pytest.mark.usefixtures("compiled_fast")

REMEMBERING = {
    "method.name": "own_parts:remembering",
    "method.kwargs": {"momentum": 0.75},
    "optimizer.name": "lars",
    "penalty.weight": 0.5,
}


def test_devices_give_the_numbers_of_one(x64):
    wanted = Case(REMEMBERING).on_the_joined_batch()
    for (state, metrics), (joined, terms) in zip(
        Case(REMEMBERING).on_devices(4), wanted, strict=True
    ):
        assert_close(metrics, terms, 1e-9)
        assert_close(state, joined, 1e-8)


def test_microbatches_give_the_step_of_the_whole_batch(x64):
    groups = {**REMEMBERING, "batchnorm.group_size": 4, "data.train_examples": 16}
    (whole, _), *_ = Case(groups).on_the_joined_batch()
    (parts, _), *_ = Case({**groups, "microbatches": 4}).on_the_joined_batch()
    assert_close(parts.params, whole.params, 1e-9)
    assert_close(parts.target.params, whole.target.params, 1e-9)
    assert_close(parts.memory, whole.memory, 1e-9)


def test_the_target_follows_and_the_memory_counts(x64):
    case = Case(REMEMBERING)
    states = [case.start()]
    states += [state for state, _ in case.on_the_joined_batch()]
    jax.tree.map(
        np.testing.assert_array_equal, states[0].target.params, states[0].params
    )
    for before, after in zip(states, states[1:], strict=False):
        expected = jax.tree.map(
            lambda old, new: 0.75 * old + 0.25 * new, before.target.params, after.params
        )
        assert_close(after.target.params, expected, 1e-12)
        assert int(after.memory["rows"]) == int(before.memory["rows"]) + 32
    assert np.abs(states[-1].memory["mean"]).max() > 0
    still = jax.tree.map(np.array_equal, states[0].target, states[-1].target)
    assert not any(jax.tree.leaves(still))


def test_no_gradient_flows_into_the_target(x64):
    """With momentum 1 and the memory at rest the target is a constant."""
    case = Case({**REMEMBERING, "method.kwargs": {"momentum": 1.0}})
    states = [state for state, _ in case.on_the_joined_batch()]
    assert_close(states[-1].target.params, case.start().params, 1e-12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method.name": "own_parts:nothing"}, "returned None; expected a Method"),
        ({"method.name": "own_parts:summed"}, r"expected \[B\] finite numbers"),
        ({"method.name": "own_parts:gone"}, "own_parts has no gone"),
        ({"method.name": "no_such:f"}, "no_such cannot be imported"),
        (
            {"method.name": "own_parts:remembering", "penalty.at": "z"},
            "penalty.at is 'z'; expected 'h'",
        ),
        (
            {"method.name": "own_parts:remembering", "method.kwargs": {"tau": 1}},
            "cannot be called with",
        ),
        ({"encoder.name": "own_parts:nothing"}, "returned None; expected a flax"),
        ({"encoder.name": "own_parts:flat"}, r"expected h \[B, D\]"),
        ({"encoder.name": "own_parts:stubborn"}, "reverse over forward mode"),
        ({"encoder.name": "own_parts:endless"}, "is not finite"),
        ({"encoder.name": "own_parts:broken"}, "RuntimeError: out of ideas"),
    ],
)
def test_a_part_that_is_not_what_it_should_be_is_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        check_own_parts(build(resolve(tiny_config(changes))))


def test_a_memory_that_changes_its_shape_is_refused():
    parts = build(resolve(tiny_config(REMEMBERING)))
    method = parts.method._replace(update=lambda memory, outputs: {"mean": 1.0})
    with pytest.raises(ValueError, match="changes the shapes of the memory"):
        check_own_parts(parts._replace(method=method))


def test_the_parts_of_a_run_that_are_built_in_need_no_check():
    parts = build(resolve(tiny_config()))
    check_own_parts(parts)
    state = jax.eval_shape(parts.make_draw(), TRAINING_KEY, 0)
    assert state.first.alpha_other is not None
