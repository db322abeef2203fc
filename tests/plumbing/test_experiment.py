"""The experiments: runs that are kept, continued, shared and tried again; their records; and that
pages show what the records make.

Most runs here are of a stand-in for a script, which writes what a script does, in no time.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy
from conftest import quick
from scripts import ROOT

from benchmarks import conditions, experiment, records, report
from benchmarks.conditions import Condition, Experiment

STAND_IN = """
import json, os, pathlib, sys, time
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(words.get("--run-dir") or words["--resume"])
folder.mkdir(parents=True, exist_ok=True)
lives = folder / "lives"
lives.write_text((lives.read_text() if lives.exists() else "") + " ".join(sys.argv[1:]) + "\\n")
if "--run-dir" in words:
    record = dict(script="iql.py", commit="abc", hardware=[2, "AVX2", "no GPU"], python="3.14.0 x",
                  packages={"torch": "2"}, settings={"flags": sys.argv[1:]})
    (folder / "args.json").write_text(json.dumps(record))
settings = json.loads((folder / "args.json").read_text())["settings"]["flags"]
n_fail = int(settings[settings.index("--fail") + 1]) if "--fail" in settings else 0
if len(lives.read_text().splitlines()) <= n_fail:
    print("no luck today")
    sys.exit(3)
evaluation = dict(score=0.5, q_s0=1.0)
evaluation["return"] = evaluation["discounted_return"] = 2.0
summary = dict(before=evaluation, after=evaluation | dict(dip=-0.25, regret=0.75))
(folder / "summary.json").write_text(json.dumps(summary))
"""
SCALARS = {
    "eval/score": (np.array([0, 100, 200]), np.array([0.0, 1.0, 0.5])),
    "eval/dip": (np.array([200]), np.array([-0.5])),
    "calibration/gap": (np.array([50, 100, 150]), np.array([1.0, 2.0, 3.0])),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs an experiment of stand-ins: the status, and the rows that are recorded."""
    for name in conditions.SCRIPTS:
        (tmp_path / f"{name}.py").write_text(STAND_IN)
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    monkeypatch.setattr(
        experiment.plot, "read_run", lambda folder: experiment.plot.Run("iql", {}, SCALARS)
    )

    def call(of: Experiment, *words: str):
        monkeypatch.setitem(conditions.EXPERIMENTS, "tried", of)
        folders = ["--runs", "runs", "--results", "results", "--jobs", "2"]
        status = 0
        try:
            experiment.main(["tried", *folders, *words])
        except SystemExit as end:
            status = end.code
        return status, records.read_rows(tmp_path / "results" / "tried")

    return call


def lives(folder: Path) -> dict[str, list[str]]:
    """The command lines with which each run was begun or continued."""
    return {
        str(path.parent.relative_to(folder)): path.read_text().splitlines()
        for path in sorted(folder.glob("runs/tried/*/*/lives"))
    }


TWO = Experiment({"a": Condition("--x 1"), "b": Condition("--x 2")}, ("iql", "awac"))


def test_all_runs_have_a_row_and_curves(run, tmp_path):
    status, rows = run(TWO)
    assert status == 0 and len(rows) == 2 * 2 * 4 == len({records.key_of(row) for row in rows})
    row = rows[0]
    assert (row["score_before"], row["dip"], row["regret"]) == ("0.5", "-0.25", "0.75")
    assert row["command"] == "python iql.py --seed 0 --x 1" and row["commit"] == "abc"
    assert row["versions"] == "python 3.14.0, torch 2" and "AVX2" in row["hardware"]
    assert 0 < float(row["seconds"]) < 60 and row["at_once"] == "2"
    curves = records.read_curves(records.file_of(row, tmp_path / "results" / "tried"))
    np.testing.assert_array_equal(curves["eval/dip"], [[200], [-0.5]])
    # The means of what was logged since the evaluation before; nothing was until the first.
    np.testing.assert_array_equal(curves["calibration/gap"], [[100, 200], [1.5, 3]])


def test_a_part_of_the_runs_leaves_the_rows_of_the_others(run, tmp_path):
    _, some = run(TWO, "--conditions", "b", "--seeds", "1")
    assert [row["script"] for row in some] == ["iql", "awac"]
    before = lives(tmp_path)
    status, rows = run(TWO, "--scripts", "iql")
    assert status == 0 and len(rows) == 8 + 1
    assert [row["condition"] for row in rows] == ["a"] * 4 + ["b"] * 5, "in the experiment's order"
    assert all(row in rows for row in some)
    assert lives(tmp_path).items() >= before.items(), "what has finished is not run again"
    shutil.rmtree(tmp_path / "runs")
    assert run(TWO, "--scripts", "iql") == (0, rows)
    assert lives(tmp_path) == {}, "nor what has a row already"


def test_a_finished_run_without_a_row_gets_it(run, tmp_path):
    _, rows = run(TWO, "--seeds", "0")
    before = lives(tmp_path)
    shutil.rmtree(tmp_path / "results")
    assert run(TWO, "--seeds", "0") == (0, rows)
    assert lives(tmp_path) == before


def test_a_failed_run_is_tried_once_more_and_the_others_go_on(run, tmp_path, capfd):
    of = Experiment(
        {
            "good": Condition(),
            "once": Condition("--fail 1"),
            "always": Condition("--fail 9"),
        },
        scripts=("iql",),
        seeds=range(2),
    )
    status, rows = run(of)
    assert status == 1
    assert [row["condition"] for row in rows] == ["good"] * 2 + ["once"] * 2
    said = capfd.readouterr().err
    assert said.count("failed with status 3, try 1 of 2") == 4
    assert said.count("failed with status 3, try 2 of 2") == 2
    assert said.count("    no luck today") == 4 + 4  # of a second try's the first's, too
    [line] = [line for line in said.splitlines() if line.startswith("not finished: ")]
    assert "always/iql-d0-s0" in line and "always/iql-d0-s1" in line and "once" not in line
    first, second = lives(tmp_path)["runs/tried/once/iql-d0-s0"]
    assert first.startswith("--seed 0 --fail 1 --run-dir ") and second.startswith("--resume ")


ONLINE = "--online-steps 60 --offline-share"
SHARING = Experiment(
    {
        "half": Condition("--x 1", online=f"{ONLINE} 0.5"),
        "none": Condition("--x 1", online=f"{ONLINE} 0"),
        "other": Condition("--x 2", online=f"{ONLINE} 0"),
        "whole": Condition("--x 1"),
    },
    scripts=("iql",),
    seeds=range(2),
)


def test_conditions_that_differ_online_share_their_pretraining(run, tmp_path):
    status, rows = run(SHARING)
    assert status == 0 and len(rows) == 8, "a pre-training has no row of its own"
    words = {folder: line.split() for folder, [line] in lives(tmp_path).items()}
    shared = "runs/tried/pretraining-x-1/iql-d0-s1"
    assert words[shared][:6] == "--seed 1 --x 1 --online-steps 0".split()
    for condition in ("half", "none"):
        line = words[f"runs/tried/{condition}/iql-d0-s1"]
        assert line[:4] == ["--seed", "1", "--pretrained", shared]
    other = words["runs/tried/other/iql-d0-s0"]
    assert other[3] == "runs/tried/pretraining-x-2/iql-d0-s0"
    assert "--pretrained" not in words["runs/tried/whole/iql-d0-s0"]
    seconds = [bool(row["pretraining_seconds"]) for row in rows]
    assert seconds == [True] * 6 + [False] * 2


def test_without_its_pretraining_a_run_is_not_tried(run, tmp_path, capfd):
    of = Experiment(
        {
            "good": Condition(online="--online-steps 60"),
            "bad": Condition("--fail 9", online="--online-steps 60"),
        },
        scripts=("iql",),
        seeds=range(1),
    )
    status, rows = run(of)
    assert status == 1 and [row["condition"] for row in rows] == ["good"]
    assert "bad/iql-d0-s0: not run, its pre-training failed" in capfd.readouterr().err
    with pytest.raises(ValueError, match="must have --online-steps"):
        run(Experiment({"bad": Condition(online="--utd 2")}))


def test_what_is_asked_for_must_be_there(run, capfd):
    assert run(TWO, "--conditions", "c")[0] == 2
    assert "no runs with --conditions c" in capfd.readouterr().err
    assert run(TWO, "--seeds", "0", "7")[0] == 2
    assert "no runs with --seeds 7" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        experiment.main([])
    assert "there are pointmaze" in capfd.readouterr().err


def test_a_condition_keeps_its_flags(run, capfd):
    run(TWO, "--seeds", "0")
    changed = TWO._replace(conditions={"a": Condition("--x 3")})
    assert run(changed, "--seeds", "0")[0] == 2
    said = capfd.readouterr().err
    assert "python iql.py --seed 0 --x 1" in said and "python iql.py --seed 0 --x 3" in said


def test_one_that_failed_before_it_began_may_have_other_flags(run):
    of = Experiment({"a": Condition("--x 1")}, scripts=("iql",), seeds=range(1))
    script = experiment.ROOT / "iql.py"
    script.write_text("syntax error")
    assert run(of) == (1, [])
    script.write_text(STAND_IN)
    changed = of._replace(conditions={"a": Condition("--x 2")})
    status, [row] = run(changed)
    assert status == 0 and row["command"].endswith("--x 2")


def test_a_damaged_run_does_not_harm_the_records_of_others(run, tmp_path, capfd):
    run(TWO, "--seeds", "0")
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "runs" / "tried" / "a" / "iql-d0-s0" / "summary.json").write_text("{")
    status, rows = run(TWO, "--seeds", "0")
    assert status == 1 and len(rows) == 3
    assert "a/iql-d0-s0: cannot be recorded (JSONDecodeError" in capfd.readouterr().err


def test_a_second_call_is_refused(run, tmp_path, capfd):
    with experiment.locked(tmp_path / "runs" / "tried"):
        assert run(TWO)[0] == 2
    assert "another call is at work" in capfd.readouterr().err
    assert run(TWO, "--seeds", "0")[0] == 0


def test_as_many_at_once_as_memory_carries():
    assert experiment.fitting_jobs(memory=1e-6) == os.cpu_count()
    assert experiment.fitting_jobs(memory=1e6) == 1


def test_every_experiment_can_be_planned(tmp_path):
    """No two of its runs share a folder, and its conditions name what is there."""
    for name, of in conditions.EXPERIMENTS.items():
        jobs = experiment.jobs_of(of, experiment.Args(), tmp_path / name)
        assert len({job.folder for job in jobs}) == len(jobs) > 0
        assert {job.script for job in jobs} <= set(conditions.SCRIPTS)
        assert set(of.figures) <= of.conditions.keys()
        for folder in {job.folder.parent for job in jobs}:
            assert folder.name == Path(folder.name).name != ""


# --- With the scripts themselves ------------------------------------------------------------------

DRIVER = """
import sys
from benchmarks import conditions, experiment

fine = conditions.Condition({flags!r}, online="--online-steps 30 --offline-share 0", warmup=20)
conditions.EXPERIMENTS["tried"] = conditions.Experiment(
    {{"fine": fine}}, scripts=("iql",), tasks=({task!r},), seeds=range(1)
)
experiment.main(sys.argv[1:])
"""


@pytest.fixture
def command(tmp_path, monkeypatch) -> list[str]:
    """What runs a short experiment with one of the scripts: a pre-training and a fine-tuning."""
    task = toy.save(tmp_path / "toy.hdf5", toy.play(toy.gym.make("toy:Toy-v0")))
    few = dict(offline_steps=2500, eval_every_offline=500, online_steps=None)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(flags=" ".join(quick("iql", **few)), task=str(task)))
    path = os.pathsep.join([str(ROOT), str(Path(toy.__file__).parent)])
    monkeypatch.setenv("PYTHONPATH", path)
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    return [sys.executable, str(driver), "tried", *folders, "--jobs", "2"]


def wait_for(text: str, runs: Path, process: subprocess.Popen) -> None:
    """Until the output of a run says so."""
    end = time.monotonic() + 60  # seconds
    while not any(text in log.read_text() for log in runs.glob("*/*.log")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)


def test_stopped_and_continued(tmp_path, command):
    """Ctrl-C ends scripts so that they save, and the same call goes on with all that is missing."""
    [results, runs] = (tmp_path / name / "tried" for name in ("results", "runs"))
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for("offline     500/", runs, first)
    first.send_signal(signal.SIGINT)
    assert "stopped; the same command goes on" in first.communicate(timeout=60)[1]
    [log] = runs.glob("*/*.log")
    assert first.returncode == 2 and "stopped: SIGINT; " in log.read_text()
    stopped = log.with_suffix("")
    assert not (stopped / "summary.json").exists() and (stopped / "checkpoint.pt").exists()

    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"settings of {stopped}" in log.read_text(), "it was continued"
    [row] = records.read_rows(results)
    assert float(row["seconds"]) > 0 < float(row["pretraining_seconds"]) and row["q_s0_after"]
    settings = json.loads((runs / "fine" / "iql-toy-s0" / "args.json").read_text())["settings"]
    assert settings["offline_share"] == 0 and settings["pretrained"] == str(stopped)
    curves = records.read_curves(records.file_of(row, results))
    assert curves["eval/score"][0][0] == 2500 and len(curves["eval/dip"][0]) > 0


# --- The report -----------------------------------------------------------------------------------


def test_interquartile_mean_of_known_numbers():
    assert report.iqm(np.array([-100.0, 1, 2, 3, 4, 5, 6, 900])) == (2 + 3 + 4 + 5) / 4
    first, second = np.array([0.0, 8, 2, 6]), np.array([-9.0, 4, 5, 99])
    assert report.iqm(first, second) == (2 + 4 + 5 + 6) / 4, "of all tasks together"


def test_interval_contains_the_mean_and_repeats_itself():
    runs = np.random.default_rng(1).normal(3, 1, (40, 2))
    low, high = report.interval([runs])
    assert ((low < report.iqm(runs)) & (report.iqm(runs) < high)).all()
    # About as long as a mean's, 2 * 1.96 / sqrt(40).
    assert ((0.4 < high - low) & (high - low < 0.9)).all()
    np.testing.assert_array_equal(report.interval([runs]), (low, high))
    np.testing.assert_array_equal(report.interval([np.ones(5)]), (1, 1))
    assert report.interval([np.ones(5), np.ones(1)]) is None


def test_interval_draws_within_each_task():
    """Tasks far apart, runs alike within each: drawn from all runs together it would be wide."""
    tasks = [np.full(4, 0.0), np.full(4, 1.0)]
    np.testing.assert_array_equal(report.interval(tasks), (0.5, 0.5))


def test_cells_of_a_table():
    def row(task, **found):
        return dict.fromkeys(records.COLUMNS, "") | {"task": task} | found

    rows = [row("d0", score_before="-0.001", dip=str(x)) for x in (-1, 0, 0, 0, 0)]
    assert report.cells(rows, ["score_before", "dip", "regret"])[::2] == ["0.00 [0.00, 0.00]", "–"]
    assert report.cells(rows[:1], ["dip"]) == ["-1.00"]
    assert report.worst_dip(rows) == "-1.00" and report.worst_dip([row("d0")]) == "–"


def test_a_search_shows_the_best_setting_of_each_script_first():
    def row(condition, script, seed, **found):
        known = dict.fromkeys(records.NUMBERS, "1") | {"task": "d0", "regret": "0", "seed": seed}
        return known | {"condition": condition, "script": script} | found

    better_return = dict(discounted_return_after="2")
    rows = [row("x", "cql", seed, regret="0.1") for seed in "01"]
    rows += [row("y", "cql", seed) for seed in "01"]
    rows += [row("z", "cql", seed, **better_return) for seed in "01"]
    rows += [row("x", "iql", seed, score_before="0.5") for seed in "01"]
    shown = [(x[0]["script"], x[0]["condition"]) for x in report.ordered(Experiment({}), rows)]
    assert shown == [("cql", "x"), ("cql", "y"), ("cql", "z"), ("iql", "x")]
    found = report.ordered(Experiment({}, ranked=True), rows)
    shown = [(x[0]["script"], x[0]["condition"]) for x in found]
    assert shown == [("iql", "x"), ("cql", "z"), ("cql", "y"), ("cql", "x")]


def test_a_table_can_have_a_row_for_each_task():
    rows = [
        dict.fromkeys(records.COLUMNS, "0.5") | dict(condition="a", script="iql", task=task)
        for task in ("d0", "d1", "d0", "d1")
    ]
    together, apart = (report.table_of(Experiment({}, by_task=x), rows) for x in (False, True))
    assert "| a | `iql` | 4 | 0.50 [0.50, 0.50] |" in together
    assert "| a | `iql` | d0 | 2 |" in apart and "| a | `iql` | d1 | 2 |" in apart


def test_older_records_can_be_read(tmp_path):
    """Those that name the task `data` and the score `success`, and lack what is known of a run."""
    (tmp_path / "runs.csv").write_text(
        "condition,script,data,seed,success_before,success_after,dip\na,iql,d1,3,0.5,0.75,-0.1\n"
    )
    [row] = records.read_rows(tmp_path)
    assert records.key_of(row) == ("a", "iql", "d1", "3") and row["command"] == ""
    assert (row["score_before"], row["score_after"]) == ("0.5", "0.75")
    records.merge_rows(tmp_path, [row | {"seed": "4"}], ["a"])
    assert records.read_rows(tmp_path) == [row, row | {"seed": "4"}]


def status_of_check(root: Path) -> int:
    with pytest.raises(SystemExit) as end:
        report.main(["--check"], root)
    return end.value.code


def test_pages_show_what_the_records_make(capsys):
    """`python -m benchmarks.report` writes them."""
    assert status_of_check(ROOT) == 0, capsys.readouterr().out


def test_a_page_or_record_that_was_changed_is_found(tmp_path, capsys):
    results = tmp_path / "benchmarks" / "results"
    shutil.copytree(ROOT / "benchmarks" / "results", results)
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text().replace("1.00 [", "1.01 [", 1))
    assert status_of_check(tmp_path) == 1
    assert capsys.readouterr().out == "README.md is not what the records make\n"
    with pytest.raises(SystemExit, match="0"):
        report.main([], tmp_path)
    assert capsys.readouterr().out == "README.md\n"
    assert page.read_text() == (ROOT / "README.md").read_text()

    [curves] = results.glob("pointmaze/curves/default/cql-d0-s0.csv")
    curves.write_text(curves.read_text() + "\n")
    with open(results / "sweep" / "runs.csv", "a", newline="") as file:
        csv.writer(file).writerow([*("new iql d0 100".split()), *"0000000000"])
    assert status_of_check(tmp_path) == 1
    changed = {line.split()[0].rpartition("/")[2] for line in capsys.readouterr().out.splitlines()}
    assert changed == {"default.png", "results.md"}
