"""Tasks, Spirograph or images: the examples of a run and the probe of its features."""

from invariance_jax import data
from invariance_jax.settings import Settings
from invariance_jax.tasks.images import ImageTask
from invariance_jax.tasks.spirograph import SpirographTask
from invariance_jax.tasks.task import Examples, Scored, Task, in_float64

__all__ = ["Examples", "Scored", "Task", "in_float64", "make_task", "open_set"]


def make_task(settings: Settings) -> Task:
    """Returns the task of a run; reads no file."""
    is_spirograph = settings.data.name == "spirograph"
    return SpirographTask(settings) if is_spirograph else ImageTask(settings)


def open_set(settings: Settings) -> Settings:
    """Downloads and prepares the set if it is one of `data.NAMES`; returns settings."""
    if settings.data.name in data.NAMES:
        data.prepare(settings.data.name, data_dir=settings.data.data_dir)
    return settings
