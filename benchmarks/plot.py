"""Draws the curves of one or several runs, read from their TensorBoard events.

    python benchmarks/plot.py RUN_DIR                   RUN_DIR/curves.png and RUN_DIR/curves.csv
    python benchmarks/plot.py RUN_DIR RUN_DIR ... --out NAME          NAME.png and NAME.csv

From above: the success (or score) of every evaluation; Q(s0), the critics' forecast, against the
discounted return really obtained; and the calibration gap of the training batches, Q of the
policy's actions minus the data's return. Pre-training left of the dashed line, fine-tuning right of
it. Thin lines are runs, a thick one is the mean over a script's runs. The CSV holds everything that
the evaluations logged: script, dataset, seed, key, step, value.
"""

import csv
import itertools
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# In the order in which they are drawn, one over the other.
COLOURS = {"iql": "tab:green", "awac": "tab:orange", "cql": "tab:red", "cal_ql": "tab:blue"}
PANELS = {  # label of the axis -> keys with style and meaning of the curve
    "score at evaluation": {"eval/score": ("-", "score")},
    "discounted, in scaled rewards": {
        "eval/q_s0": ("-", "Q(s0)"),
        "eval/discounted_return": (":", "return obtained"),
    },
    "calibration gap in training": {"calibration/gap": ("-", "gap")},
}


def fail(problem: str) -> NoReturn:
    """One clear line and status 2."""
    print(f"plot.py: {problem}", file=sys.stderr)
    sys.exit(2)


class Run(NamedTuple):
    script: str  # without .py
    settings: dict
    scalars: dict[str, tuple[np.ndarray, np.ndarray]]  # key -> steps, values


def read_run(folder: Path) -> Run:
    """The settings and all scalars of a run's folder; what a resumed run repeated counts once."""
    try:
        record = json.loads((folder / "args.json").read_text())
        script, settings = Path(record["script"]).stem, record["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{folder} is not the folder of a run ({error})")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a resumed run's repeats are no news
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {}
    for key in events.Tags()["scalars"]:
        points = events.Scalars(key)
        scalars[key] = np.array([p.step for p in points]), np.array([p.value for p in points])
    if "eval/score" not in scalars:
        fail(f"{folder} has no evaluation yet")
    return Run(script, settings, scalars)


def mean_curve(runs: list[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs at the nominal evaluation steps; runs evaluate at the next episode's end. What
    is logged in training is so at the same steps in all runs."""
    settings = runs[0].settings
    switch, end = settings["offline_steps"], settings["offline_steps"] + settings["online_steps"]
    offline = np.arange(0, switch, settings["eval_every_offline"])
    online = np.arange(switch, end + 1, settings["eval_every_online"])
    grid = np.concatenate([offline, online])
    if not key.startswith("eval/"):
        grid = runs[0].scalars[key][0]
        grid = grid[grid <= end]
    return grid, np.mean([np.interp(grid, *run.scalars[key]) for run in runs], 0)


def draw(runs: list[Run], path: Path) -> None:
    figure = Figure(figsize=(8, 9))  # not pyplot: no display, no window, no state
    rows = figure.subplots(len(PANELS), 1, sharex=True)
    scripts = sorted({run.script for run in runs}, key=[*COLOURS, *(r.script for r in runs)].index)
    for axes, (name, curves) in zip(rows, PANELS.items()):
        for script, (key, (style, _)) in itertools.product(scripts, curves.items()):
            group = [run for run in runs if run.script == script and key in run.scalars]
            look, label = dict(linestyle=style, color=COLOURS.get(script)), script
            for run in group:
                thin = dict(alpha=0.25, linewidth=0.8) if len(group) > 1 else dict(label=label)
                axes.plot(*run.scalars[key], **look, **thin)
            if len(group) > 1:
                label = f"{script} (mean of {len(group)})"
                axes.plot(*mean_curve(group, key), **look, linewidth=2.2, label=label)
        axes.axvline(runs[0].settings["offline_steps"], color="grey", linestyle="--", linewidth=1)
        axes.grid(alpha=0.3)
        axes.set_ylabel(name)
        if len(curves) > 1:  # the colours stand in the first panel
            styles = [
                Line2D([], [], color="grey", linestyle=x, label=y) for x, y in curves.values()
            ]
            axes.legend(handles=styles, fontsize=8)
    rows[0].legend(fontsize=8)
    rows[-1].set_xlabel("gradient steps of pre-training | environment steps of fine-tuning")
    rows[0].set_title(", ".join(sorted({Path(run.settings["dataset"]).stem for run in runs})))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def export(runs: list[Run], path: Path) -> None:
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["script", "dataset", "seed", "key", "step", "value"])
        for run in runs:
            name = run.script, Path(run.settings["dataset"]).stem, run.settings["seed"]
            for key in sorted(key for key in run.scalars if key.startswith("eval/")):
                points = zip(*run.scalars[key])
                table.writerows([*name, key, step, f"{value:.6g}"] for step, value in points)


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]  # folders of runs
    out: Path | None = None  # path of the results without ending; one run: <its folder>/curves


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, description=__doc__)
    if not args.runs or (args.out is None and len(args.runs) > 1):
        fail("give one run's folder, or several and --out NAME")
    out = args.out or args.runs[0] / "curves"
    runs = [read_run(folder) for folder in args.runs]
    keys = ("offline_steps", "online_steps", "eval_every_offline", "eval_every_online")
    if len({tuple(run.settings[key] for key in keys) for run in runs}) > 1:
        fail("these runs have different lengths or evaluation intervals: no mean can be drawn")
    for make, ending in (draw, ".png"), (export, ".csv"):
        part = out.with_name(f"{out.name}.part{ending}")  # takes the name when it is whole
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            make(runs, part)
            part.replace(f"{out}{ending}")
        except OSError as error:
            part.unlink(missing_ok=True)
            fail(f"{out}{ending}: {error}; make room, or give another --out NAME")
    print(f"{out}.png and {out}.csv")


if __name__ == "__main__":
    main()
