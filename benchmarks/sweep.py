"""A small sweep on the embedded task, the same budget for each of the four scripts.

    python -m benchmarks.sweep                                8 settings each, two runs at a time

Each script's two or three settings that matter most are tried in all combinations, with the seeds
100 and 101, which no other experiment here uses. The best has the highest mean of the success
before fine-tuning and in it (1 - regret); among equals it is the one that obtains the most. Runs
lie in runs/experiment/ and may be interrupted; sweep.csv and sweep.md go to --results.
"""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.experiment import ROOT, Job, run_all, write_results

CONSERVATIVE = {
    "cql-weight": ("5", "1"),
    "target-entropy": ("0.125", "-1"),
    "n-actions": ("4", "10 --max-target-backup"),
}
GRIDS = {
    "iql": {"expectile": ("0.7", "0.9"), "beta": ("0.5", "1", "3", "10")},
    "awac": {"batch-size": ("64", "256"), "awac-lambda": ("0.3", "1", "3", "10")},
    "cql": CONSERVATIVE,
    "cal_ql": CONSERVATIVE,
}
SEEDS = (100, 101)


@dataclass
class Args:
    jobs: int = 2  # runs at a time
    results: Path = Path("benchmarks", "results")  # folder for the tables


def merit(rows: list[dict]) -> tuple[float, float]:
    """Of one setting's runs: by which settings are compared, and by which equals are."""
    success = [(row["success_before"] + 1 - row["regret"]) / 2 for row in rows]
    obtained = [row["discounted_return_before"] + row["discounted_return_after"] for row in rows]
    return round(float(np.mean(success)), 6), float(np.mean(obtained))


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    os.chdir(ROOT)
    jobs = []
    for script, grid in GRIDS.items():
        for values in itertools.product(*grid.values()):
            pairs = [f"--{name} {value}" for name, value in zip(grid, values)]
            condition, flags = " ".join(pairs), " ".join(pairs).split()
            jobs += [Job(condition, script, "d0", seed, flags, 0) for seed in SEEDS]
    rows = run_all(jobs, args.jobs)
    groups = [(row["script"], row["condition"]) for row in rows]
    by_setting = {
        key: [r for r, k in zip(rows, groups) if k == key] for key in dict.fromkeys(groups)
    }
    order = {script: i for i, script in enumerate(GRIDS)}
    ranked = sorted(
        by_setting, key=lambda key: (order[key[0]], *(-x for x in merit(by_setting[key])))
    )
    rows = [row for key in ranked for row in by_setting[key]]
    write_results(rows, args.results / "sweep.csv", args.results / "sweep.md")


if __name__ == "__main__":
    main()
