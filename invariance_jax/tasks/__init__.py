"""What a run learns from and how it is probed: Spirograph's targets, or images."""

from invariance_jax import data
from invariance_jax.settings import Settings
from invariance_jax.tasks.images import ImageTask
from invariance_jax.tasks.spirograph import SpirographTask
from invariance_jax.tasks.task import Examples, Scored, Task

__all__ = ["Examples", "Scored", "Task", "make_task", "open_set"]


def make_task(settings: Settings) -> Task:
    """Returns the task of a run; no file is read."""
    of_images = settings.data.name != "spirograph"
    return ImageTask(settings) if of_images else SpirographTask(settings)


def open_set(settings: Settings) -> Settings:
    """Returns the settings, after a known image set is downloaded and prepared."""
    if settings.data.name in data.NAMES:
        data.prepare(settings.data.name, data_dir=settings.data.data_dir)
    return settings
