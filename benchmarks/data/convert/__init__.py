"""Turns datasets of other layouts into what the scripts read: an HDF5 file as D4RL has them.

    python -m benchmarks.data.convert minari D4RL/door/human-v2
    python -m benchmarks.data.convert ogbench antmaze-medium-navigate-singletask-v0
    python -m benchmarks.data.convert adroit pen2_sparse.npy pen_bc_sparse4.npy --task pen
    python -m benchmarks.data.convert adroit pen-v0_demos.pickle --task pen
    python -m benchmarks.data.convert robomimic low_dim_v141.hdf5 --out lift.hdf5
    python -m benchmarks.data.convert ends antmaze-umaze-v0.hdf5
    python -m benchmarks.data.convert join one.hdf5 other.hdf5 --out both.hdf5

A row is a transition. `terminals` marks those at which the task ended, after which nothing is to be
had; `timeouts` marks an episode's last row where it was cut, which the scripts leave out. Files go
to D4RL's cache, where `--dataset NAME` finds them, and name their environment. What was changed is
printed and kept in the attribute `converted`. Exit status 2: an input that cannot be used.
"""

import json
import os
import platform
import shlex
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import tyro

from benchmarks.data.convert.ends import Ends
from benchmarks.data.convert.from_adroit import Adroit
from benchmarks.data.convert.from_minari import Minari
from benchmarks.data.convert.from_ogbench import Ogbench
from benchmarks.data.convert.from_robomimic import Robomimic
from benchmarks.data.convert.join import Join
from benchmarks.data.convert.layout import Unusable, reading, require, write
from benchmarks.data.names import folder


def command(out: Path, data: dict, attributes: dict) -> list[str]:
    """The line that trains on the file, and where it needs an environment, what it has to be."""
    name = out.stem if out.parent == folder() else out
    line = f"python cal_ql.py --dataset {shlex.quote(str(name))}"
    if "env_id" in attributes:
        return [line]
    sizes = (data[key].shape[1] for key in ("observations", "actions"))
    numbers = "observations of {} and actions of {} numbers".format(*sizes)
    return [
        f"{line} --env-id MODULE:ID",
        f"  where MODULE registers an environment ID with {numbers}",
    ]


def main(argv: list[str] | None = None) -> None:
    kinds = Minari | Ogbench | Adroit | Robomimic | Ends | Join
    program = f"python -m {__name__}"
    args = tyro.cli(kinds, prog=program, args=argv, description=__doc__)
    kind = type(args).__name__.lower()
    try:
        out = args.out or args.target
        free = args.overwrite or not os.path.lexists(out)
        require(free, f"--out {out}: exists; take another name, or --overwrite")
        data, attributes, changes = args.convert()
        packages = ["gymnasium", "h5py", "numpy"] + [kind] * (kind in ("minari", "ogbench"))
        versions = {name: version(name) for name in packages}
        versions["python"] = platform.python_version()
        settings = {k: v for k, v in asdict(args).items() if k not in ("out", "overwrite")}
        record = dict(program="benchmarks/data/convert", kind=kind, source=settings)
        record = json.dumps(record | dict(versions=versions, changes=changes), default=str)
        with reading(f"--out {out}", "name a place that can be written"):
            write(out, data, attributes | {"converted": record})
    except Unusable as problem:
        print("convert:", *str(problem).split(), file=sys.stderr)
        sys.exit(2)
    counts = ", ".join(f"{data[key].sum()} {key}" for key in ("terminals", "timeouts"))
    print(f"{out}: {len(data['rewards'])} transitions, {counts}", *changes, sep="\n  ")
    print(*command(out, data, attributes), sep="\n")
