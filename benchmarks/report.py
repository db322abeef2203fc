"""Makes every table and figure of recorded experiments that the pages show.

    python -m benchmarks.report             writes them
    python -m benchmarks.report --check     says which are not what the records make

From benchmarks/results/<experiment>/: results.md with all conditions, and a figure of the curves of
those that conditions.py names; and in the pages what stands between `<!-- table: NAME -->` and
`<!-- end of table -->`. A number with an interval is the interquartile mean over runs (the mean of
the middle half) with its 95 % interval by a stratified bootstrap: runs are drawn again and again,
those of each task among themselves. The draws have a fixed seed, so tables repeat themselves.
"""

import hashlib
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from benchmarks.conditions import EXPERIMENTS, SCRIPTS, Experiment
from benchmarks.plot import COLOURS, PANELS
from benchmarks.records import Curves, file_of, key_of, read_curves, read_rows, slug

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks", "results")
DRAWS = 10_000  # of the bootstrap, for an interval
Row = dict[str, str]

# --- Statistics -----------------------------------------------------------------------------------


def iqm(*tasks: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of the middle half of all runs of all tasks."""
    return scipy.stats.trim_mean(np.concatenate(tasks, axis), 0.25, axis)


def interval(tasks: list[np.ndarray], draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray] | None:
    """The ends of the 95 % interval of the interquartile mean; None if a task has a single run.

    tasks: for each its runs, (n, ...); numbers of one run stay together.
    """
    if min(len(runs) for runs in tasks) < 2:
        return None
    how = dict(method="percentile", n_resamples=draws, rng=np.random.default_rng(0))
    found = scipy.stats.bootstrap(tasks, iqm, vectorized=True, axis=0, **how).confidence_interval
    return found.low, found.high


def groups(rows: Iterable, key: Callable) -> dict:
    """Rows with the same key together, in order of appearance."""
    found = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def task_of(row: Row) -> str:
    return row["task"]


def numbers(rows: list[Row], columns: Iterable[str]) -> list[np.ndarray]:
    """For each task an array (runs, columns)."""
    return [
        np.array([[float(row[name]) for name in columns] for row in runs])
        for runs in groups(rows, task_of).values()
    ]


# --- Tables ---------------------------------------------------------------------------------------


def spell(value: float) -> str:
    """Two decimals, no minus before zero."""
    return f"{round(float(value), 2) + 0.0:.2f}"


def cells(rows: list[Row], columns: Iterable[str]) -> list[str]:
    """Interquartile mean and interval of each column over some runs; a dash if one is unknown."""
    known = [name for name in columns if all(row[name] for row in rows)]
    tasks = numbers(rows, known)
    found = [spell(value) for value in iqm(*tasks)]
    if ends := interval(tasks):
        found = [f"{x} [{spell(low)}, {spell(high)}]" for x, low, high in zip(found, *ends)]
    cell_of = dict(zip(known, found))
    return [cell_of.get(name, "–") for name in columns]


def markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    lines.insert(1, "|---" * len(header) + "|")
    return "\n".join(lines) + "\n"


COLUMNS = {
    "score_before": "score before",
    "score_after": "score at the end",
    "dip": "dip",
    "regret": "regret",
    "q_s0_before": "Q(s0) before",
    "discounted_return_before": "return obtained before",
    "discounted_return_after": "return obtained at the end",
}


def worst_dip(rows: list[Row]) -> str:
    """Of the run that fell deepest: an interquartile mean does not see a single one."""
    dips = [float(row["dip"]) for row in rows if row["dip"]]
    return spell(min(dips)) if dips else "–"


def merit(rows: list[Row]) -> tuple[float, float]:
    """Of one setting's runs: by which settings are compared, and by which equals are."""
    columns = ("score_before", "regret", "discounted_return_before", "discounted_return_after")
    before, regret, *obtained = iqm(*numbers(rows, columns))
    return round(float(before + 1 - regret) / 2, 6), float(sum(obtained))


def ordered(experiment: Experiment, rows: list[Row]) -> list[list[Row]]:
    """The runs that make a row of the table each."""
    tasks = task_of if experiment.by_task else lambda row: ""
    found = groups(rows, lambda row: (row["condition"], row["script"], tasks(row)))
    if not experiment.ranked:
        return list(found.values())
    best_first = sorted(found.values(), key=merit, reverse=True)
    return sorted(best_first, key=lambda group: SCRIPTS.index(group[0]["script"]))


def table_of(experiment: Experiment, rows: list[Row]) -> str:
    """All conditions of an experiment."""
    header = ["condition", "script", *(["task"] if experiment.by_task else []), "runs"]
    lines = []
    for group in ordered(experiment, rows):
        first = group[0]
        name = [first["condition"], f"`{first['script']}`"]
        name += [first["task"]] if experiment.by_task else []
        lines.append([*name, str(len(group)), *cells(group, COLUMNS), worst_dip(group)])
    return markdown([*header, *COLUMNS.values(), "largest dip"], lines)


def one_run(results: Path) -> str:
    """The README's: the four scripts on the embedded task."""
    columns = {
        "score_before": "success before fine-tuning",
        "score_after": "at its end",
        "dip": "largest loss in between",
        "q_s0_before": "forecast Q(s0) before",
        "discounted_return_before": "return obtained before",
    }
    rows = [row for row in read_rows(results / "pointmaze") if row["condition"] == "default"]
    by_script = groups(rows, lambda row: row["script"])
    lines = ([f"`{script}.py`", *cells(group, columns)] for script, group in by_script.items())
    return markdown(["script", *columns.values()], lines)


# What pages show between marks, made from the folder of results.
TABLES = {"one run": one_run}
MARKED = re.compile(r"(<!-- table: (.*?) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def fill(page: str, results: Path) -> str:
    """A page with its tables as they should be."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]](results)}\n{found[4]}", page)


# --- Figures --------------------------------------------------------------------------------------


def grid_of(runs: list[Curves]) -> tuple[np.ndarray, int]:
    """Steps at which curves are compared, and that of them at which fine-tuning begins. Runs
    evaluate online at the next episode's end, so a little later than these."""
    steps = runs[0]["eval/score"][0]
    switch = int(steps[steps < runs[0]["eval/dip"][0][0]][-1])
    end = min(run["eval/score"][0][-1] for run in runs)
    n_online = len(runs[0]["eval/dip"][0])
    online = np.linspace(switch, end, n_online + 1)
    return np.concatenate([steps[steps < switch], online]), switch


def draw_group(axes: Axes, runs: dict[str, list[Curves]], key: str, look: dict) -> None:
    """Thin lines are runs, the thick one is their interquartile mean, in its interval.

    runs: of each task.
    """
    everything = [run for of_task in runs.values() for run in of_task]
    grid, _ = grid_of(everything)
    for run in everything:
        axes.plot(*run[key], **look | dict(alpha=0.25, linewidth=0.8, label=None))
    tasks = [np.array([np.interp(grid, *run[key]) for run in of]) for of in runs.values()]
    axes.plot(grid, iqm(*tasks), **look, linewidth=2.2)
    if ends := interval(tasks, draws=2000):
        axes.fill_between(grid, *ends, color=look["color"], alpha=0.15, linewidth=0)


def curves_of(rows: list[Row], folder: Path) -> dict[str, dict[str, list[Curves]]]:
    """By script and task, of those runs whose curves were kept."""
    kept = [row for row in rows if file_of(row, folder).exists()]
    return {
        script: {
            task: [read_curves(file_of(row, folder)) for row in runs]
            for task, runs in groups(of_script, task_of).items()
        }
        for script, of_script in groups(kept, lambda row: row["script"]).items()
    }


def draw_panel(axes: Axes, scripts: dict, curves: dict[str, tuple[str, str]]) -> None:
    for script, (key, (style, _)) in itertools.product(sorted(scripts, key=order), curves.items()):
        runs = [run for of_task in scripts[script].values() for run in of_task]
        if all(key in run for run in runs):
            label = f"{script} ({len(runs)} runs)"
            look = dict(linestyle=style, color=COLOURS[script], label=label)
            draw_group(axes, scripts[script], key, look)
    if len(curves) > 1:  # the colours stand in the first panel
        marks = [Line2D([], [], color="grey", linestyle=x, label=y) for x, y in curves.values()]
        axes.legend(handles=marks, fontsize=8)
    axes.grid(alpha=0.3)


def order(script: str) -> int:
    """In which scripts are drawn, one over the other."""
    return list(COLOURS).index(script)


def draw(scripts: dict, title: str) -> Figure:
    """The panels of plot.py, as far as the curves have what they show."""
    runs = [run for of_script in scripts.values() for of in of_script.values() for run in of]
    keys = set().union(*runs)
    panels = {label: curves for label, curves in PANELS.items() if keys & curves.keys()}
    figure = Figure(figsize=(8, 3 * len(panels)))  # not pyplot: no display, no state
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, curves) in zip(rows, panels.items()):
        draw_panel(axes, scripts, curves)
        axes.axvline(grid_of(runs)[1], color="grey", linestyle="--", linewidth=1)
        axes.set_ylabel(label)
    rows[0].legend(fontsize=8)
    rows[0].set_title(title)
    rows[-1].set_xlabel("gradient steps of pre-training | environment steps of fine-tuning")
    figure.tight_layout()
    return figure


def hash_of(rows: list[Row], folder: Path) -> str:
    """Of the curves that a figure shows; it stands in the figure's file."""
    files = [file_of(row, folder) for row in sorted(rows, key=key_of)]
    text = b"".join(path.read_bytes() for path in files if path.exists())
    return hashlib.sha256(text).hexdigest()


def picture(rows: list[Row], folder: Path, title: str) -> bytes:
    file = io.BytesIO()
    figure = draw(curves_of(rows, folder), title)
    figure.savefig(file, format="png", dpi=120, metadata={"Source": hash_of(rows, folder)})
    return file.getvalue()


def is_current(figure: Path, rows: list[Row], folder: Path) -> bool:
    if not figure.exists():
        return False
    with Image.open(figure) as image:
        return image.text.get("Source") == hash_of(rows, folder)


# --- The program ----------------------------------------------------------------------------------


@dataclass
class Args:
    check: bool = False  # change nothing; status 1 if something is not what the records make


def texts(root: Path) -> dict[Path, str]:
    """What the pages of the records and the marked ones are to be."""
    found = {}
    for name, experiment in EXPERIMENTS.items():
        if rows := read_rows(root / RESULTS / name):
            found[root / RESULTS / name / "results.md"] = table_of(experiment, rows)
    for page in (root / "README.md", *root.glob("docs/*.md"), *root.glob("benchmarks/*.md")):
        found[page] = fill(page.read_text(), root / RESULTS)
    return found


def figures(root: Path) -> dict[Path, tuple[list[Row], Path, str]]:
    """Each with the runs in it, their folder and its title."""
    found = {}
    for name, experiment in EXPERIMENTS.items():
        folder = root / RESULTS / name
        by_condition = groups(read_rows(folder), lambda row: row["condition"])
        for condition in experiment.figures:
            rows = by_condition.get(condition, [])
            if any(file_of(row, folder).exists() for row in rows):
                found[folder / f"{slug(condition)}.png"] = rows, folder, f"{name}, {condition}"
    return found


def outdated(root: Path) -> dict[Path, bytes]:
    """Files that are not what the records make, with what they should be."""
    found = {}
    for path, text in texts(root).items():
        if not path.exists() or path.read_text() != text:
            found[path] = text.encode()
    for path, shown in figures(root).items():
        if not is_current(path, *shown[:2]):
            found[path] = picture(*shown)
    return found


def main(argv: list[str] | None = None, root: Path = ROOT) -> None:
    args = tyro.cli(Args, args=argv, description=__doc__)
    found = outdated(root)
    for path, content in found.items():
        print(f"{path.relative_to(root)}{' is not what the records make' if args.check else ''}")
        if not args.check:
            path.write_bytes(content)
    sys.exit(1 if args.check and found else 0)


if __name__ == "__main__":
    main()
