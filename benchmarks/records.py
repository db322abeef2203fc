"""The records of experiments: a row of runs.csv for each finished run, and its curves beside it.

    RESULTS/<experiment>/runs.csv
    RESULTS/<experiment>/curves/<condition>/<script>-<task>-s<seed>.csv

Numbers "before" are those of the last evaluation before fine-tuning, "after" those of the last one.
A cell is empty where something is not known.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.conditions import SCRIPTS

KEY = ("condition", "script", "task", "seed")  # of a run within its experiment
EVALUATED = ("score", "return", "discounted_return", "q_s0")
NUMBERS = [f"{name}_{when}" for name in EVALUATED for when in ("before", "after")]
NUMBERS += ["dip", "regret"]
# seconds: wall time of all lives of the run. at_once: runs beside each other, this one included.
ORIGIN = ("command", "commit", "versions", "hardware", "seconds", "pretraining_seconds", "at_once")
COLUMNS = (*KEY, *NUMBERS, *ORIGIN)
OLD_NAMES = {"data": "task", "success_before": "score_before", "success_after": "score_after"}


def slug(condition: str) -> str:
    """A condition's name as the name of a folder."""
    return re.sub(r"[^\w.,-]+", "-", condition.replace("--", "")).strip("-")


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def file_of(row: dict[str, str], folder: Path) -> Path:
    """The curves of a run, in the folder of its experiment."""
    name = f"{row['script']}-{row['task']}-s{row['seed']}.csv"
    return folder / "curves" / slug(row["condition"]) / name


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The runs of an experiment, none if there is no record; older files lack some columns."""
    path, rows = folder / "runs.csv", []
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                row = {OLD_NAMES.get(name, name): cell for name, cell in row.items()}
                rows.append({name: row.get(name, "") for name in COLUMNS})
    return rows


def merge_rows(folder: Path, new: Iterable[dict], conditions: list[str]) -> None:
    """Adds runs to the record of an experiment, or puts them in the place of earlier ones."""
    rows = {key_of(row): row for row in read_rows(folder)}
    for row in new:
        row = {name: str(row.get(name, "")) for name in COLUMNS}
        rows[key_of(row)] = row
    ordered = sorted(rows.values(), key=lambda row: place_of(row, conditions))
    write_csv(folder / "runs.csv", COLUMNS, (row.values() for row in ordered))


def place_of(row: dict[str, str], conditions: list[str]) -> tuple:
    """By which rows are sorted, whenever they came; what is not known comes last."""
    pairs = ((row["condition"], conditions), (row["script"], SCRIPTS))
    condition, script = (order.index(x) if x in order else len(order) for x, order in pairs)
    return condition, int(row["seed"]), row["task"], script


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """The file gets its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    with open(unfinished, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    unfinished.replace(path)


# A key of the log -> steps, values.
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def write_curves(path: Path, scalars: Curves) -> None:
    """A row for each evaluation: its numbers, and means of calibration/... since the one before."""
    steps = scalars["eval/score"][0].tolist()
    columns = {}
    for key in sorted(scalars):
        if key.startswith("eval/"):
            columns[key] = dict(zip(scalars[key][0].tolist(), scalars[key][1].tolist()))
        elif key.startswith("calibration/"):
            columns[key] = means_between(steps, *scalars[key])
    cells = [[spell(columns[key].get(step)) for key in columns] for step in steps]
    write_csv(path, ["step", *columns], ([step, *row] for step, row in zip(steps, cells)))


def means_between(ends: list[int], steps: np.ndarray, values: np.ndarray) -> dict[int, float]:
    """The mean of the values of the steps up to each end and after the one before, if any."""
    spans = {end: (steps > start) & (steps <= end) for start, end in zip([-1, *ends], ends)}
    return {end: float(values[span].mean()) for end, span in spans.items() if span.any()}


def spell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def read_curves(path: Path) -> Curves:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {}
    for key in rows[0].keys() - {"step"}:
        points = [(int(row["step"]), float(row[key])) for row in rows if row[key]]
        curves[key] = np.array([x for x, _ in points]), np.array([y for _, y in points])
    return curves
