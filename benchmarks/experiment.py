"""The experiments on the embedded task that the README reports, run after run.

    python -m benchmarks.experiment                           all of them, two runs at a time
    python -m benchmarks.experiment --only default --seeds 8

Runs lie in runs/experiment/; what is finished is kept, what was interrupted is resumed. At the end
--results holds runs.csv (one row a run), a table of the conditions in results.md, and the figure of
the default condition, each for the conditions of this call.
"""

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs", "experiment")
SCRIPTS = ("cql", "cal_ql")

AUTHORS = ["--n-actions", "10", "--max-target-backup"]

# condition -> flags, steps of warm-up, datasets, seeds of each
CONDITIONS = {
    "default": ([], 0, ("d0", "d1"), 8),
    "warm-up of 1000 steps": ([], 1000, ("d0",), 8),
    "pre-training half as long": (["--offline-steps", "3000"], 0, ("d0",), 4),
    "pre-training twice as long": (["--offline-steps", "12000"], 0, ("d0",), 4),
    "no traps": ([], 0, ("d0-safe",), 4),
    "target entropy of the authors": (["--target-entropy", "-1"], 0, ("d0",), 4),
    "10 actions and max backup of the authors": (AUTHORS, 0, ("d0",), 4),
}
DATASETS = {"d0": [], "d1": ["--seed", "1"], "d0-safe": ["--no-traps"]}  # flags of the collector


@dataclass
class Args:
    only: tuple[str, ...] = ()  # conditions to run; without any, all of them
    seeds: int | None = None  # seeds of each script and dataset; None: as the README reports
    jobs: int = 2  # runs at a time
    results: Path = Path("benchmarks", "results")  # folder for tables and figure


@dataclass
class Job:
    condition: str
    script: str
    data: str
    seed: int
    flags: list[str]
    warmup: int

    @property
    def folder(self) -> Path:
        name = f"{self.script}-{self.data}-s{self.seed}"
        return RUNS / self.condition.replace(" ", "-") / name

    def command(self) -> list[str]:
        start = [f"{self.script}.py"]
        if self.warmup:
            start = ["-m", "benchmarks.warmup", str(self.warmup), self.script]
        if (self.folder / "args.json").exists():
            return [sys.executable, *start, "--resume", str(self.folder)]
        data = ["--dataset", str(dataset(self.data))] if DATASETS[self.data] else []
        flags = ["--seed", str(self.seed), *data, *self.flags, "--run-dir", str(self.folder)]
        return [sys.executable, *start, *flags]


def dataset(name: str) -> Path:
    """The embedded dataset, or one made by the same collector with other flags."""
    return RUNS / f"pointmaze-{name}.hdf5" if DATASETS[name] else Path("benchmarks/pointmaze.hdf5")


def run(job: Job) -> None:
    if (job.folder / "summary.json").exists():
        return
    print(" ".join(job.command()[1:]), flush=True)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{job.folder}.log", "a") as log:
        status = subprocess.run(job.command(), stdout=log, stderr=log).returncode
    if status:
        print(f"{job.folder}: ended with status {status}, see {job.folder}.log", file=sys.stderr)


def row(job: Job) -> dict:
    """What a finished run's summary says."""
    summary = json.loads((job.folder / "summary.json").read_text())
    before, after = summary["before"], summary["after"]
    found = {"condition": job.condition, "script": job.script}
    found |= {"data": job.data, "seed": job.seed}
    for key in ("success", "q_s0", "discounted_return"):
        found |= {f"{key}_before": before[key], f"{key}_after": after[key]}
    return found | {"dip": after["dip"], "regret": after["regret"]}


COLUMNS = {
    "success_before": "success before",
    "success_after": "success at the end",
    "dip": "dip",
    "regret": "regret",
    "q_s0_before": "Q(s0) before",
    "discounted_return_before": "return obtained before",
}


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over the runs of each condition and script, in Markdown."""
    lines = ["| condition | script | runs | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|---|---|---|" + "---|" * len(COLUMNS))
    for condition, script in dict.fromkeys((r["condition"], r["script"]) for r in rows):
        group = [r for r in rows if (r["condition"], r["script"]) == (condition, script)]
        columns = [np.array([r[column] for r in group]) for column in COLUMNS]
        cells = [f"{values.mean():.2f} ± {values.std():.2f}" for values in columns]
        lines.append(f"| {condition} | `{script}` | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    os.chdir(ROOT)
    jobs = []
    if unknown := set(args.only) - set(CONDITIONS):
        print(f"experiment: no {', '.join(unknown)}; there are {', '.join(CONDITIONS)}")
        sys.exit(2)
    for condition in args.only or CONDITIONS:
        flags, warmup, names, seeds = CONDITIONS[condition]
        for seed in range(args.seeds or seeds):
            for name in names:
                jobs += [Job(condition, script, name, seed, flags, warmup) for script in SCRIPTS]
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in sorted({job.data for job in jobs}):
        if not dataset(name).exists():
            collect = ["-m", "benchmarks.pointmaze", *DATASETS[name], "--out", str(dataset(name))]
            subprocess.run([sys.executable, *collect], check=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, jobs))

    done = [job for job in jobs if (job.folder / "summary.json").exists()]
    if not done:
        sys.exit("experiment: no run has finished")
    rows = [row(job) for job in done]
    args.results.mkdir(parents=True, exist_ok=True)
    with open(args.results / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    (args.results / "results.md").write_text(table(rows))
    print(table(rows))
    folders = [str(job.folder) for job in done if job.condition == "default"]
    if folders:
        figure = ["benchmarks/plot.py", *folders, "--out", str(args.results / "default")]
        subprocess.run([sys.executable, *figure], check=True)


if __name__ == "__main__":
    main()
