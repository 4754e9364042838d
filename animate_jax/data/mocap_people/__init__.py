"""mocap_people: rendered clothed adults doing motion-captured motion, with exact keypoints.

Needs numba (`pip install animate_jax[data]`).
"""

from animate_jax.data.mocap_people.scene import MocapPeople, RenderedClip

__all__ = ["MocapPeople", "RenderedClip"]
