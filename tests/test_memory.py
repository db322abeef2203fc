"""`benchmarks/memory.py`, which watches what a run takes: that a run's memory is flat, and that the
program would have noticed if it were not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import quick, run_script
from scripts import ROOT, SCRIPTS
from toy import LIMIT

from benchmarks import memory

ONE = "cal_ql"  # the others keep memory as it does: their Part II is the same
OFFLINE, ONLINE = 3000, 2000
SLACK = 4  # MB; with a kilobyte more for each update it would be that
MEMORY = ROOT / "benchmarks" / "memory.py"


@pytest.fixture
def watch(monkeypatch, tmp_path, toy_file):
    """Watches a run of the toy task; the rows, and the run's folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))

    def run(script: str, offline_steps: int, online_steps: int) -> tuple[list[memory.Row], Path]:
        own = ("offline_steps", "online_steps", "eval_every_offline", "eval_every_online")
        flags = quick(script, dataset=toy_file, **dict.fromkeys(own))
        args = memory.Args(script, offline_steps, online_steps)
        return memory.measure(args, flags, tmp_path / "run"), tmp_path / "run"

    return run


# A script that takes 20 MB more before each line. Of its rows of 5 MB two are there after step 4,
# and the ring has room for no third.
GROWING = """
import json, sys, time
from pathlib import Path
import torch
folder, kept = Path(sys.argv[-1]), []
folder.mkdir()
(folder / "args.json").write_text(json.dumps({"settings": dict(offline_steps=2, buffer_size=2)}))
torch.save({"ring": torch.zeros(0, 1_250_000)}, folder / "checkpoint.pt")
for step in range(6):
    kept.append(torch.ones(5_000_000))
    time.sleep(1.5)
    print(f"{'offline' if step <= 2 else 'online':7} {step:>7}/5  score 0.00", flush=True)
"""


def test_growth_is_seen(monkeypatch, tmp_path, capsys):
    (tmp_path / "cql.py").write_text(GROWING)
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    rows = memory.measure(memory.Args("cql", 2, 3), [], tmp_path / "run")
    assert [(row.phase, row.step) for row in rows] == [
        *(("offline", step) for step in range(3)),
        *(("online", step) for step in range(3, 6)),
    ]
    assert [row.ring for row in rows] == [0, 0, 0, 5, 10, 10]
    assert rows[-1].private - rows[0].private == pytest.approx(5 * 20, abs=22)
    early, late = memory.trend(rows)
    assert (early, late) == (rows[1].rest, rows[-1].rest) and late - early > 40
    assert all(row.rest == row.private - row.ring and row.peak >= row.private for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows), "the table"


@pytest.mark.parametrize("script", SCRIPTS)
def test_memory_is_flat(watch, script, long):
    """Over some thousand updates and steps: ten evaluations in either phase, and the rows."""
    if script != ONE and not long:
        pytest.skip("with --long: all scripts")
    rows, run_dir = watch(script, OFFLINE, ONLINE)
    offline, online = rows[:11], rows[11:]
    assert [row.step for row in offline] == [*range(0, OFFLINE + 1, OFFLINE // 10)]
    wanted = range(OFFLINE + ONLINE // 10, OFFLINE + ONLINE + 1, ONLINE // 10)
    assert all(0 <= row.step - step < LIMIT for row, step in zip(online, wanted, strict=True))
    assert online[-1].ring == pytest.approx((online[-1].step - OFFLINE) * 4 * (2 + 2 + 1 + 3) / 1e6)
    assert online[-1].events > offline[1].events > 0
    assert online[-1].checkpoint > offline[1].checkpoint > 0
    early, late = memory.trend(rows)
    assert late - early < SLACK, [row.rest for row in rows]


# --- What goes wrong ------------------------------------------------------------------------------


def refused(*line: object) -> str:
    """What the program says before it ends with status 2, having measured nothing."""
    done = run_script(MEMORY, *map(str, line), cwd=ROOT)
    assert done.status == 2 and not done.stdout
    return done.stderr


def test_the_script_refuses_its_flags():
    message = refused("--script", "cql", "--gamma", "2")
    assert message.startswith("cql.py: --gamma 2.0: ") and len(message.splitlines()) == 1


def test_a_folder_with_a_run(tmp_path):
    (tmp_path / "args.json").touch()
    assert refused("--run-dir", tmp_path) == (
        f"memory.py: --run-dir {tmp_path}: holds a run; take another\n"
    )


def test_no_such_script():
    assert "--script" in refused("--script", "sac")


def test_a_script_that_is_killed(monkeypatch, tmp_path, capsys):
    (tmp_path / "cql.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    with pytest.raises(SystemExit) as stop:
        memory.measure(memory.Args("cql"), [], tmp_path / "run")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "memory.py: cql.py was ended by signal 9\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_broken_off(tmp_path, number):
    """The script ends, too, and no folder is left that would be in the way of another start."""
    process = subprocess.Popen(
        [sys.executable, str(MEMORY), "--script", "cql"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()  # the table begins, so the script is at work
    process.send_signal(number)
    _, message = process.communicate(timeout=60)  # until the script has closed its stderr as well
    assert process.returncode == 2
    script, program = sorted(message.splitlines()[-2:])
    assert script.startswith("cql.py: SIGTERM; saved, go on with --resume ")
    assert program == "memory.py: stopped; start it again"
    folder = Path(script.split()[-1])
    assert tmp_path in folder.parents and not folder.exists()
