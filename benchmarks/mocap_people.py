"""Speed of the renderer, and a look at what it draws:  python benchmarks/mocap_people.py --sheet docs/mocap_people.jpg

Prints frames per second of wall and of CPU time in one process, for whole clips and for the five frames of a clip that
a training sample takes.
"""

import dataclasses
import pathlib
import time

import numpy as np
import tyro
from PIL import Image

from animate_jax.data.mocap_people import MocapPeople


@dataclasses.dataclass(frozen=True)
class Arguments:
    clips: int = 40  # timed
    height: int = 128
    width: int = 96
    sheet: pathlib.Path | None = None  # write one frame of each of 100 clips there


def main(args: Arguments) -> None:
    people = MocapPeople("train", height=args.height, width=args.width)
    people.clip(0, 2)  # compiles
    print("| frames of a clip | frames/s | frames per CPU second |\n| --- | --- | --- |")
    for name, pick in (("all 24", list(range(24))), ("5 of 24", [0, 5, 10, 15, 20])):
        wall, cpu = time.perf_counter(), time.process_time()
        for index in range(args.clips):
            people.clip(index, 24, pick)
        count = args.clips * len(pick)
        print(f"| {name} | {count / (time.perf_counter() - wall):.0f} | {count / (time.process_time() - cpu):.0f} |")
    if args.sheet:
        frames = np.stack([people.clip(1000 + i, 24, [12]).frames[0] for i in range(100)])
        rows = frames.reshape(5, 20, args.height, args.width, 3).transpose(0, 2, 1, 3, 4)
        Image.fromarray(rows.reshape(5 * args.height, 20 * args.width, 3)).save(args.sheet, quality=90)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
