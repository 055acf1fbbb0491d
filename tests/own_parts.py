"""Parts as a user would bring them, good ones and bad ones."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.experiments import ExperimentResult, Row
from invariance_jax.models import BatchNorm
from invariance_jax.models.resnet import ResNet
from invariance_jax.numerics import l2_normalize
from invariance_jax.training.methods import Method
from invariance_jax.transforms import Transformation, View


class Predictor(nn.Module):
    """Two outputs: a projection, and its prediction."""

    @nn.compact
    def __call__(self, h, *, train):
        del train
        z = nn.Dense(4)(h)
        return {"z": z, "p": nn.Dense(4)(jnp.tanh(z))}


def remembering(*, features, axis_name=None, momentum=0.9) -> Method:
    """A target network, and a memory of the mean of its outputs."""
    del features, axis_name

    def loss(own, other, target_own, target_other, memory, *, axis_name):
        del axis_name

        def distance(prediction, target):
            away = target["z"] - memory["mean"][None]
            return -jnp.sum(l2_normalize(prediction["p"]) * l2_normalize(away), axis=1)

        return distance(own, target_other) + distance(other, target_own)

    def update(memory, outputs):
        rows = jnp.concatenate([one["z"] for one in outputs])
        mean = 0.5 * memory["mean"] + 0.5 * jnp.mean(rows, axis=0)
        return {"mean": mean, "rows": memory["rows"] + len(rows)}

    memory = {"mean": np.zeros(4, np.float32), "rows": np.int32(0)}
    return Method(Predictor(), loss, lambda step: momentum, memory, update)


class Twice(nn.Module):
    """Two outputs without names."""

    @nn.compact
    def __call__(self, h, *, train):
        return h, h


def nameless(*, features, axis_name=None) -> Method:
    """A method without a z, on which no penalty acts."""
    return remembering(features=features)._replace(heads=Twice())


def summed(*, features, axis_name=None) -> Method:
    """A loss that is one number, which is refused."""
    method = remembering(features=features)
    return method._replace(loss=lambda *args, axis_name: jnp.zeros(()))


def nothing(*args, **kwargs):
    """Returns no part at all."""
    return None


class Flat(nn.Module):
    """An encoder that keeps the image, which is refused."""

    @nn.compact
    def __call__(self, images, *, train):
        return images


@jax.custom_vjp
def _double(x):
    return 2 * x


_double.defvjp(lambda x: (_double(x), None), lambda _, g: (2 * g,))


class Stubborn(nn.Module):
    """An encoder without forward mode, which is refused."""

    @nn.compact
    def __call__(self, images, *, train):
        return _double(nn.Dense(3)(images.reshape(len(images), -1)))


class Endless(nn.Module):
    """An encoder that is not finite, which is refused."""

    @nn.compact
    def __call__(self, images, *, train):
        return jnp.log(nn.Dense(3)(images.reshape(len(images), -1)) * 0 - 1)


class Counting(nn.Module):
    """An encoder without parameters, whose statistics are the number of its calls."""

    @nn.compact
    def __call__(self, images, *, train):
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if train:
            count.value += 1
        return images.reshape(len(images), -1)


class Changing(nn.Module):
    """What differs in training: the features, or a variable of another kind."""

    collection: str = ""

    @nn.compact
    def __call__(self, images, *, train):
        if self.collection:
            new = self.variable(self.collection, "new", lambda: 0.0)
            if train:
                new.value = 0
        return images.reshape(len(images), -1)[:, : -1 if train else None]


def changing(*, axis_name=None, collection=""):
    return Changing(collection)


class Grouped(nn.Module):
    """An encoder that normalizes groups of 8 images, and needs so many in training."""

    axis_name: str | None

    @nn.compact
    def __call__(self, images, *, train):
        norm = BatchNorm(group_size=8, axis_name=self.axis_name)
        return norm(images.reshape(len(images), -1), train=train)


def alone(module):
    """Returns the function that makes an encoder, which needs no axis."""
    return lambda *, axis_name=None: module()


flat, stubborn, endless = alone(Flat), alone(Stubborn), alone(Endless)
counting = alone(Counting)


def grouped(*, axis_name=None, spans=False):
    """Groups of one device, or of several."""
    return Grouped(axis_name if spans else None)


def resnet(*, axis_name=None, rematerialize=False):
    """A ResNet of one block."""
    return ResNet((1,), False, axis_name=axis_name, rematerialize=rematerialize)


def broken(*, axis_name=None):
    raise RuntimeError("out of ideas")


class Layer(nn.Module):
    """An encoder of one layer."""

    width: int

    @nn.compact
    def __call__(self, images, *, train):
        return nn.tanh(nn.Dense(self.width)(images.reshape(len(images), -1)))


def layer(*, axis_name, width):
    return Layer(width)


def brighten(data, *, most, normalizes=True, has_plain=True):
    """Views with a factor from 1 to most."""
    assert data.image_shape == (10, 10, 3) and data.num_classes == 3
    mean, std = (np.float32(v)[None, None, None] for v in (data.mean, data.std))

    def show(x, factor):
        images = x.astype(jnp.float32) / 255 * factor
        return (images - mean) / std if normalizes else images

    return Transformation(
        ("factor",),
        np.array([[1.0, most]]),
        lambda key, n: View(jax.random.uniform(key, (n, 1), minval=1, maxval=most)),
        lambda x, view: show(x, view.alpha[:, :, None, None]),
        (lambda x: show(x, 1)) if has_plain else None,
    )


def of_sizes(data):
    """Views drawn by the sizes of the images, of which none are known."""
    own = brighten(data, most=2.0)

    def sample(key, count, *, second, sizes):
        return sizes["height"]

    return dataclasses.replace(own, sample_for=sample)


def dataless(*, most):
    """No augmentation, as it does not take the data."""


def coupled(data):
    """Views of other examples, which are refused."""
    good = brighten(data, most=2.0)
    return dataclasses.replace(good, apply=lambda x, view: good.apply(x[::-1], view))


def brightness(context):
    """An experiment."""
    x, own = context.test.x[:5], context.parts.transformation
    images = own.apply(x, own.sample(jax.random.key(0), 5))
    return ExperimentResult([Row("brightness", images.mean() / (x.mean() / 255))])
