"""Renders the example that ships with the package: a person and a motion that no training clip shows.

python -m animate_jax.data.mocap_people.example
"""

from pathlib import Path

from animate_jax.data.mocap_people.scene import MocapPeople
from animate_jax.video.images import write_image
from animate_jax.video.write import write_video

EXAMPLE = Path(__file__).parents[2] / "assets" / "example"
FPS = 10.0


def main() -> None:
    character = MocapPeople("test_both", height=512, width=384, fps=FPS).clip(35, 32, [16])
    write_image(EXAMPLE / "reference.png", character.frames[0])
    driver = MocapPeople("test_both", height=320, width=240, fps=FPS).clip(9, 32)
    write_video(EXAMPLE / "driving.mp4", driver.frames, FPS)


if __name__ == "__main__":
    main()
