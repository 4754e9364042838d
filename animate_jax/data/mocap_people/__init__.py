"""mocap_people: rendered clothed adults doing motion-captured motion, with exact keypoints.

Needs numba (`pip install 'animate-jax[data]'`); raises UserError without it.
"""

from animate_jax.errors import UserError

try:
    from animate_jax.data.mocap_people.scene import MocapPeople, RenderedClip
except ModuleNotFoundError as error:
    if error.name != "numba":
        raise
    raise UserError("rendering people needs numba: pip install 'animate-jax[data]'") from error

__all__ = ["MocapPeople", "RenderedClip"]
