"""Damages files at random and gives them to the program's own entry points:

    python -m tests.fuzz.fuzz                       # a few cases of every kind, and all that once failed
    python -m tests.fuzz.fuzz videos --cases 500 --seed 3
    python -m tests.fuzz.fuzz videos --seed 3 --only 217      # that case again; its file is kept

Each file is accepted, or refused by a `UserError` of one line: without a traceback, other output, files left behind,
much memory or much time. It runs in a process of its own, without the tests' type checks, as for a user.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
import warnings
import zlib

import jax

from animate_jax.errors import InputWarning
from tests.fuzz.damage import damage
from tests.fuzz.harness import Failed, run_case
from tests.fuzz.kinds import DEFAULT_CASES, KINDS
from tests.fuzz.regressions import REGRESSIONS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--cases", type=int, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--folder", type=pathlib.Path, help="where cases lie; default: a new temporary one")
    args = parser.parse_args()
    base = args.folder or pathlib.Path(tempfile.mkdtemp(prefix="fuzz_"))
    base.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"], failures = str(base), 0
    os.chdir(base)
    jax.config.update("jax_disable_most_optimizations", True)

    def report(kind: str, case: str, name: str, error: Failed) -> None:
        nonlocal failures
        failures += 1
        shutil.copytree(base / "cases" / "x", base / "failed" / f"{kind}-{case}", dirs_exist_ok=True)
        print(f"{kind}, {case}, {name}: {error}\n  {base / 'failed' / f'{kind}-{case}'}", flush=True)

    warnings.simplefilter("ignore", InputWarning)  # advice about an accepted file
    for label in args.kinds:
        (base / "sources" / label).mkdir(parents=True, exist_ok=True)
        kind, started, accepted = KINDS[label](base / "sources" / label), time.monotonic(), 0
        # Loads what is loaded once, and checks that undamaged files are accepted.
        for name, contents in list(kind.files.items())[: 1 if kind.tree else None]:
            with contextlib.suppress(Failed):
                if not run_case(kind, name, contents, base / "cases" / "x", base / "noise"):
                    report(label, "undamaged", name, Failed("refused"))
        for title, (of, name, build) in REGRESSIONS.items() if args.only is None else ():
            if of == label:
                try:
                    run_case(kind, name, build(kind.files), base / "cases" / "x", base / "noise")
                except Failed as error:
                    report(label, title, name, error)
        cases = [args.only] if args.only is not None else range(args.cases or DEFAULT_CASES[label])
        for case in cases:
            rng = random.Random(zlib.crc32(f"{label} {args.seed} {case}".encode()))
            name = rng.choice([name for name in kind.files if label != "presets" or name == "preset"])
            contents = damage(name, kind.files[name], rng)
            try:
                accepted += run_case(kind, name, contents, base / "cases" / "x", base / "noise")
            except Failed as error:
                report(label, f"seed {args.seed} case {case}", name, error)
                if args.only is not None:
                    raise
        print(f"{label}: {len(cases)} cases in {time.monotonic() - started:.0f} s, {accepted} accepted", flush=True)
    if not failures and not args.folder and args.only is None:
        shutil.rmtree(base)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
