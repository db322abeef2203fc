"""A run that is killed and continued, at any moment and as often as you like, ends with the same
bits and the same log as one that was left alone. So does one that a signal ends, whose checkpoint
is damaged, or that another run would have liked to take the place of.

What is drawn at random goes by --chance; with --long there are more kills.
"""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import N_SMALL, quick, read_checkpoint, same_bits, words
from lives import (
    INT,
    KILL,
    TERM,
    check_same_run,
    check_stopped,
    counters,
    finish,
    progress,
    run_life,
    run_lives,
    saved_step,
    start,
    undisturbed_runs,
    words_for,
)
from scripts import ROOT, load_script
from toy import save

ONE = "cql"  # for what all scripts share


@pytest.fixture(scope="module")
def undisturbed(toy_file, tmp_path_factory):
    """For each script the folder of a quick run that nobody killed."""
    return undisturbed_runs(toy_file, tmp_path_factory)


# With QUICK's settings: evaluations, and with them checkpoints, after 0, 50, 100 and 120 updates,
# then every 20 steps, after the episode.
LIVES = {
    "at the beginning": [
        ("rename args.json", 1),  # there is nothing to resume yet
        ("judge", 5),
        ("row", 2),
        ("save", 1),
        ("sync checkpoint.new", 1),
        ("rename checkpoint.new", 1),
        ("rename checkpoint.pt", 1),
        ("sync args.json", 1),
        ("update", 1),
    ],
    "in pre-training": [
        ("update", 40),
        ("update", 60),
        ("update", 10),
        ("update", 10),
        ("sync checkpoint.new", 2),
        ("rename checkpoint.new", 2),
        ("rename checkpoint.previous", 2),
        ("rename checkpoint.pt", 2),  # there is only the previous one then
        ("rename checkpoint.pt", 1),
    ],
    "between the phases": [
        ("update", 120),
        ("save", 3),
        ("sync pretrained.pt", 1),
        ("rename pretrained.pt", 1),
        ("explore", 2),
        ("update", 1),
    ],
    "online": [("update", 150), ("explore", 2), ("row", 3), ("update", 3), ("judge", 3)],
    "at the end": [("sync summary.json", 1), ("rename summary.json", 1), ("close", 1)],
}


@pytest.mark.parametrize("when", LIVES)
def test_killed(undisturbed, toy_file, tmp_path, when):
    run_dir = run_lives(ONE, quick(ONE, dataset=toy_file), tmp_path, LIVES[when])
    check_same_run(undisturbed(ONE), run_dir)


def test_killed_all_the_time(undisturbed, toy_file, tmp_path, script):
    """Every script: it may have optimisers and buffers of its own, which have to come back too."""
    lives = [("act", 3), ("update", 20), ("update", 60), ("rename", 1), ("update", 45)]
    lives += [("act", 4), ("update", 9), ("row", 8), ("update", 30), ("close", 1)]
    run_dir = run_lives(script, quick(script, dataset=toy_file), tmp_path, lives)
    check_same_run(undisturbed(script), run_dir)


def test_killed_between_evaluations(undisturbed, toy_file, tmp_path):
    """Saved at every step, as a slow run is every minute: also with half an episode's updates
    still due. How often a run is saved shows in nothing that it computes."""
    lives = [("update", 30), ("update", 71), ("update", 23), ("update", 3), ("act", 2)]
    lives += [("update", 1), ("update", 2), ("rename", 5), ("sync", 7), ("update", 12)]
    run_dir = run_lives(ONE, quick(ONE, dataset=toy_file), tmp_path, lives, tick=100)
    check_same_run(undisturbed(ONE), run_dir)


def test_rows_are_on_the_disk_before_the_checkpoint(undisturbed, toy_file, tmp_path):
    """However slow the log is: a checkpoint says that they are, and nobody writes them again."""
    line = quick(ONE, dataset=toy_file)
    run_life(ONE, line, tmp_path, ("update", 1), lag=0.03)
    check_same_run(undisturbed(ONE), run_lives(ONE, line, tmp_path))


OTHER_SETTINGS = [
    ("cql", dict(buffer_size=25)),  # a ring of online rows, which overwrites itself twice
    ("cql", dict(offline_steps=0)),
    ("iql", dict(utd=2, normalize_observations=True)),
    # One buffer of both, as AWAC's paper has it. It ends after 35 online rows, and goes on over
    # the dataset; or it ends with the dataset, and goes on over that and then over its own rows.
    ("awac", dict(buffer_size=N_SMALL + 35)),
    ("awac", dict(buffer_size=1)),
]


@pytest.mark.parametrize("script, settings", OTHER_SETTINGS, ids=str)
def test_killed_with_other_settings(small_file, tmp_path, script, settings):
    line = quick(script, dataset=small_file, **settings)
    alone = run_lives(script, line, tmp_path / "alone")
    lives = [("update", 25), ("act", 4), ("update", 9), ("update", 7)]
    if "buffer_size" in settings:  # late in the online phase, when it has gone round
        lives += [("update", 98), ("act", 3), ("update", 12)]
    check_same_run(alone, run_lives(script, line, tmp_path / "killed", lives, tick=100))


def test_ended_from_outside(toy_file, tmp_path, chance):
    """As a user would have it: processes of their own, killed and then asked to end at moments that
    nobody chose, and continued from another working directory."""
    long_enough = dict(offline_steps=800, eval_every_offline=100)
    line = quick(ONE, dataset=toy_file, **long_enough)
    alone = run_lives(ONE, line, tmp_path / "alone", log_every=100)

    line = quick(ONE, dataset=os.path.relpath(toy_file, tmp_path), **long_enough)
    line, cwd = [*line, "--run-dir=run"], tmp_path
    for what in (KILL, chance.choice([TERM, INT])):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / f"{ONE}.py"), *line],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not process.stdout.readline().startswith("offline"):
            pass  # an evaluation, far from the end
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(what)
        errors = process.communicate()[1]
        if what == KILL:
            assert process.returncode == -KILL, "it ended before: make the run longer"
            settings = (tmp_path / "run" / "args.json").read_bytes()
            (tmp_path / "run" / "checkpoint.new.tmp").write_bytes(b"half a che")
        else:
            assert process.returncode == 2 and len(errors.splitlines()) == 1, errors
            assert re.match(
                rf"{ONE}.py: stopped: {what.name}; .* --resume {tmp_path / 'run'}$", errors
            )
        line, cwd = ["--resume", str(tmp_path / "run"), "--device=cpu"], tmp_path / "alone"
    check_same_run(alone, run_lives(ONE, [], tmp_path, log_every=100))
    assert (tmp_path / "run" / "args.json").read_bytes() == settings, "a resume changes nothing"


def test_resume_of_a_finished_run(undisturbed, tmp_path):
    """Is harmless: nothing is trained, nothing changes."""
    shutil.copytree(undisturbed(ONE), tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    run_life(ONE, [], tmp_path)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    check_same_run(undisturbed(ONE), tmp_path / "run")


# --- Moments that chance draws --------------------------------------------------------------------


def survive(kills: int, folder: Path, alone: Path, live_on) -> None:
    """Runs with so many kills in all, each of which ends as the one that was left alone.

    live_on(folder, disturbed) is a life of the run in the folder; its status.
    """
    killed = 0
    for number in itertools.count(1):
        own, status, reached = folder / str(number), None, 0
        own.mkdir()
        while status != 0:
            status = live_on(own, killed < kills)
            killed += status == -KILL
            assert reached <= progress(own / "run"), "what was saved is lost"
            reached = progress(own / "run")
        check_same_run(alone, own / "run")
        if killed >= kills:
            return


# Of each place the most calls that a life has before its end, which comes with the run otherwise:
# a third of what there is in a run that is saved at every step.
REACH = dict(update=60, act=80, row=100, save=60, sync=60, rename=120)

# For each script what is hardest to bring back: several updates a step, one buffer of both kinds of
# data, which overwrites itself or not, and of a std for good, a parameter that is not trained, the
# optimiser keeps no state.
BY_STEP = {
    "iql": dict(utd=2, dropout=0.3, fixed_log_std=-1.0),
    "awac": dict(offline_share=-1.0, buffer_size=N_SMALL + 20),
    "cql": dict(utd=3, buffer_size=25),
    "cal_ql": dict(offline_share=-1.0),
}


def test_moments_drawn_by_step(small_file, tmp_path, script, chance, long):
    """Which call of which function, with every step saved; now and then it is a signal that can be
    answered, and not a kill."""
    line = quick(script, dataset=small_file, **BY_STEP.get(script, {}))
    alone = run_lives(script, line, tmp_path / "alone")

    def live_on(folder: Path, disturbed: bool) -> int:
        name, what = chance.choice([*REACH]), chance.choice([KILL] * 6 + [TERM, INT])
        moments = [(name, chance.randint(1, REACH[name]), what)] if disturbed else []
        # The last life need not save at every step: that shows in nothing that it computes.
        tick = 100 if disturbed else 0
        child = start(script, words_for(line, folder), folder, *moments, tick=tick)
        status, output = finish(child, folder)
        print(f"life with {moments}: status {status}")
        if status == 2:
            check_stopped(script, what.name, status, output, folder / "run")
        assert status in (0, 2, -KILL) and "damaged" not in output, output
        return status

    survive(30 if long else 4, tmp_path, alone, live_on)


def test_moments_drawn_by_the_clock(undisturbed, toy_file, tmp_path, chance, long):
    """The parent kills after a while, of which the machine makes more or less: it is a part of what
    the whole run took, and less when a life was too short to be hit."""
    script = chance.choice(["awac", "cal_ql", "cql", "iql"])
    alone, line = undisturbed(script), quick(script, dataset=toy_file)
    took = (alone / "summary.json").stat().st_mtime - (alone / "args.json").stat().st_mtime
    reach = took / 2

    def live_on(folder: Path, disturbed: bool) -> int:
        nonlocal reach
        child = start(script, words_for(line, folder), folder)
        delay = chance.uniform(0, reach)
        if disturbed and child.ear.poll(300):
            child.join(delay)
            child.kill()
        status, output = finish(child, folder)
        print(f"life killed after {delay:.3f} s, if {disturbed}: status {status}")
        assert status in (0, -KILL) and "damaged" not in output, output
        reach *= 1.1 if status else 0.5
        return status

    survive(100 if long else 5, tmp_path, alone, live_on)


# --- Progress -------------------------------------------------------------------------------------

FAR_APART = dict(eval_every_offline=10**6, eval_every_online=10**6)


def test_short_lives_get_on(toy_file, tmp_path, chance):
    """From one evaluation to the next no life would get: each takes the run further all the same,
    by a part of its own length, since a life saves whenever its length has doubled."""
    line = quick(ONE, dataset=toy_file, **FAR_APART)
    alone = run_lives(ONE, line, tmp_path / "alone")
    reached, folder = 0, tmp_path / "killed"
    folder.mkdir()
    while reached < counters(alone)["updates"] - 40:
        n = chance.randint(4, 40)
        run_life(ONE, line, folder, ("update", n), tick=1)
        before, reached = reached, counters(folder / "run")["updates"]
        assert reached - before >= n / 4
    check_same_run(alone, run_lives(ONE, line, folder))


def test_lives_of_little_more_than_an_episode_get_on(toy_file, tmp_path):
    """What comes first, an episode or updates that are due, is saved as soon as it is over. An
    episode has 10 steps at most."""
    settings = dict(offline_steps=0, online_steps=100, eval_every_online=10**6)
    line, run_dir = quick(ONE, dataset=toy_file, **settings), tmp_path / "run"
    run_life(ONE, line, tmp_path, ("explore", 1))  # it has the first evaluation
    for _ in range(4):
        before = progress(run_dir)
        run_life(ONE, line, tmp_path, ("explore", 12))
        assert progress(run_dir) > before


def test_long_lives_save_every_minute(toy_file, tmp_path, chance):
    """In the online phase, too, in the midst of an episode's updates."""
    line, n = quick(ONE, dataset=toy_file, **FAR_APART), chance.randint(50, 100)
    run_life(ONE, line, tmp_path, ("update", n), tick=20)
    assert n - 5 <= counters(tmp_path / "run")["updates"] < n
    slow = words(utd=100, offline_steps=0, online_steps=10)
    (tmp_path / "slow").mkdir()
    run_life(ONE, [*line, *slow], tmp_path / "slow", ("update", n), tick=20)
    assert n - 5 <= counters(tmp_path / "slow" / "run")["updates"] < n


# --- Damaged checkpoints --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_checkpoints(toy_file, tmp_path_factory):
    """A run that was killed, with two checkpoints."""
    folder = tmp_path_factory.mktemp("killed")
    run_life(ONE, quick(ONE, dataset=toy_file), folder, ("update", 30), tick=100)
    return folder / "run"


@pytest.fixture
def killed(two_checkpoints, tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(two_checkpoints, tmp_path / "run"))


def regions(path: Path) -> dict[str, range]:
    """Every byte of a checkpoint belongs to one of these."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        ends = [member.header_offset for member in archive.infolist()[1:]] + [archive.start_dir]
        for member, end in zip(archive.infolist(), ends):
            with archive.open(member) as file:
                data = file._orig_compress_start
            name = member.filename.partition("/")[2]
            found[f"header of {name}"] = range(member.header_offset, data)
            found[f"content of {name}"] = range(data, data + member.compress_size)
            found[f"end of {name}"] = range(data + member.compress_size, end)
        size = path.stat().st_size
        end_record = path.read_bytes().rindex(b"PK\5\6")
        found["directory"] = range(archive.start_dir, end_record)
        found["end"] = range(end_record, size)
    assert sum(map(len, found.values())) == size
    return {name: region for name, region in found.items() if region}


def flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def damages(path: Path, chance: random.Random, long: bool):
    """Flipped bits in every region, then what is worse: pairs of a name and the damaged content."""
    content = path.read_bytes()
    for name, region in regions(path).items():
        n = {"directory": 100, "end": 10}.get(name, 1) * (30 if long else 1)
        for _ in range(n):
            at, bit = chance.choice(region), chance.randrange(8)
            yield f"bit {bit} at {at} in {name}", flipped(content, at, bit)
    for length in [0, 1, len(content) - 1, *chance.choices(range(len(content)), k=10)]:
        yield f"truncated to {length} bytes", content[:length]
    yield "zeros", bytes(len(content))
    yield "other bytes", chance.randbytes(len(content))
    yield "text", b"no checkpoint at all"


def test_damage_is_noticed_or_harmless(killed, capsys, chance, long):
    """A damaged checkpoint is replaced by the previous one, with a warning; or it loads as it was,
    since not every bit of a zip file means something."""
    read = load_script(ONE).read_checkpoint
    newest, previous = killed / "checkpoint.pt", killed / "checkpoint.previous"
    whole = [path.read_bytes() for path in (newest, previous)]
    states = [read_checkpoint(killed, path.name) for path in (newest, previous)]
    noticed = {}
    for name, content in damages(newest, chance, long):
        newest.write_bytes(content)
        previous.write_bytes(whole[1])
        found, errors = read(killed), capsys.readouterr().err
        noticed[name] = "checkpoint.pt is damaged" in errors
        assert same_bits(found, states[noticed[name]]), name
        assert len(errors.splitlines()) == noticed[name], (name, errors)
        assert newest.read_bytes() == (whole[1] if noticed[name] else content)
        newest.write_bytes(whole[0])
    assert all(noticed[name] for name in noticed if "bit" not in name or "content" in name)
    assert not all(noticed.values()), "some bits mean nothing"


def test_damage_in_the_middle_of_a_run(undisturbed, toy_file, tmp_path, chance):
    """As often as it may happen, and also where a life ends while it replaces the damaged one."""
    line, run_dir = quick(ONE, dataset=toy_file), tmp_path / "run"
    checkpoint, previous = run_dir / "checkpoint.pt", run_dir / "checkpoint.previous"
    run_life(ONE, line, tmp_path, ("update", 20), tick=100)
    for _ in range(2):
        run_life(ONE, line, tmp_path, ("update", chance.randint(3, 5)), tick=100)
        before = read_checkpoint(run_dir, previous.name)["run"]["updates"]
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
        for moment in (("rename checkpoint.pt", 1), ("update", 2)):
            damaged = ["checkpoint.pt"] if checkpoint.stat().st_size == 1000 else []
            run_life(ONE, line, tmp_path, moment, damaged=damaged, tick=100)
        assert counters(run_dir)["updates"] == before + 1
        previous.write_bytes(b"")  # nobody needs it
    check_same_run(undisturbed(ONE), run_lives(ONE, line, tmp_path))


def refused(folder: Path, line: list[str], *named: str) -> str:
    """The last line of a life that is over at once, and has changed nothing."""
    before = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    status, output = finish(start(ONE, line, folder), folder)
    assert status == 2 and "Traceback" not in output, output
    assert {path.name: path.read_bytes() for path in (folder / "run").iterdir()} == before
    last = output.splitlines()[-1]
    assert all(part in last for part in (f"{ONE}.py: ", *named)), output
    return last


def test_damaged_twice(undisturbed, tmp_path, killed):
    """Nothing is touched; what the message advises to delete is enough to begin again."""
    for path in killed.glob("checkpoint.*"):
        path.write_bytes(path.read_bytes()[:-1])
    advice = re.search(r"delete (checkpoint\S+) there", refused(tmp_path, ["--resume", "run"]))
    for path in killed.glob(advice[1]):
        path.unlink()
    check_same_run(undisturbed(ONE), run_lives(ONE, [], tmp_path))


class Code:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def test_no_code_of_a_checkpoint_is_run(tmp_path, killed):
    for path in killed.glob("checkpoint.*"):
        torch.save({"agent": Code()}, path)
    refused(tmp_path, ["--resume", "run"], "run")
    assert not list(tmp_path.rglob("ran"))


# --- Signals --------------------------------------------------------------------------------------


def one_more(place: str, number: int, what) -> list[tuple]:
    """A signal at a call; and a kill at the second call after it, which may not happen."""
    return [(place, number, what), (place, number + 2, KILL)]


# With QUICK's settings: each with the step at which it ends. Rows of training metrics fall on all
# of those that end with 0, evaluations on 0, 50, 100 and 120.
INTERRUPTIONS = [
    (one_more("judge", 3, INT), None),
    (one_more("update", 20, INT), 20),  # a row is due
    (one_more("update", 30, TERM), 50),  # a row and an evaluation are due
    (one_more("judge", 2, TERM), 50),
    (one_more("update", 70, INT), 120),  # the last offline step
    (one_more("judge", 12, INT), 120),
    (one_more("explore", 1, TERM), 120),  # the first online episode
    (one_more("step", 3, INT), 120),
    (one_more("update", 1, TERM), 121),  # the others of that episode are still due
]


def test_interrupted(undisturbed, toy_file, tmp_path, script):
    """Within one gradient step or one environment step, in an evaluation, too. All is saved, with
    the rows of the log that are due, and the message says how to go on."""
    line = quick(script, dataset=toy_file)
    for moments, step in INTERRUPTIONS:
        run_life(script, line, tmp_path, *moments)
        assert saved_step(tmp_path / "run") == step
    run_life(script, line, tmp_path, ("explore", 12, INT))
    run_life(script, line, tmp_path, ("judge", 1, TERM))  # in an evaluation among online steps
    check_same_run(undisturbed(script), run_lives(script, line, tmp_path))


def hurry() -> None:
    """A signal that the run has no time to answer, and another one."""
    for number in (INT, TERM):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("place", ["explore", "update"])
def test_a_second_signal_kills(undisturbed, toy_file, tmp_path, place):
    line = [*quick(ONE, dataset=toy_file), "--run-dir=run"]
    status, output = finish(start(ONE, line, tmp_path, (place, 7, hurry)), tmp_path)
    assert status == -TERM, output
    check_same_run(undisturbed(ONE), run_lives(ONE, line, tmp_path))


def test_handlers_are_put_back(run_here, toy_file, monkeypatch):
    """Whatever the end of a run, so that Ctrl-C means again what it meant."""
    handlers = [signal.getsignal(number) for number in (INT, TERM)]
    line = quick(ONE, dataset=toy_file, offline_steps=3, online_steps=0)
    module = run_here(ONE, *line, "--run-dir=one")
    assert [signal.getsignal(number) for number in (INT, TERM)] == handlers
    monkeypatch.setattr(module.Agent, "update", lambda *args: os.kill(os.getpid(), TERM) or {})
    with pytest.raises(SystemExit):
        run_here(ONE, *line, "--run-dir=two")
    assert [signal.getsignal(number) for number in (INT, TERM)] == handlers


# --- Two runs in one folder -----------------------------------------------------------------------


def test_second_run_in_a_folder(undisturbed, toy_file, tmp_path):
    """Refused, new or continued, while the first one lives; then at once accepted."""
    line = [*quick(ONE, dataset=toy_file), "--run-dir", "run"]
    first = start(ONE, line, tmp_path, ("update", 60, "hangs"))
    try:
        assert [first.ear.recv(), first.ear.recv()] == ["begins", "hangs"]
        for second in (line, ["--resume", "run"]):
            refused(tmp_path, second, "run", "another run is at work")
    finally:
        first.kill()
    assert finish(first, tmp_path)[0] == -KILL
    refused(tmp_path, line, "--resume run")  # it is begun, and may not be begun again
    check_same_run(undisturbed(ONE), run_lives(ONE, [], tmp_path))


def test_runs_that_begin_at_once(undisturbed, toy_file, tmp_path):
    """One of them has the folder."""
    line = [*quick(ONE, dataset=toy_file), "--run-dir", "run"]
    children = [start(ONE, line, tmp_path) for _ in range(3)]
    assert sorted(finish(child, tmp_path)[0] for child in children) == [0, 2, 2]
    check_same_run(undisturbed(ONE), tmp_path / "run")


# --- What --resume may change ---------------------------------------------------------------------


def test_longer_fine_tuning(undisturbed, toy_file, tmp_path):
    """A finished run goes on to the bits of one that was that long from the start."""
    line = quick(ONE, dataset=toy_file, online_steps=100)
    longer = run_lives(ONE, line, tmp_path / "longer")
    shutil.copytree(undisturbed(ONE), tmp_path / "run")
    status, output = finish(
        start(ONE, ["--resume", "run", "--online-steps=100"], tmp_path), tmp_path
    )
    assert status == 0, output
    check_same_run(longer, tmp_path / "run")


def test_longer_pre_training(toy_file, tmp_path):
    """As long as no online step is played: not even when an episode has begun, or the run is
    finished because none were wanted. Then it keeps what it has."""
    settings = dict(eval_every_offline=40, offline_steps=160)
    longer = run_lives(ONE, quick(ONE, dataset=toy_file, **settings), tmp_path / "longer")
    settings["offline_steps"] = 80
    line = quick(ONE, dataset=toy_file, **settings)
    for name, begin in dict(killed=line, finished=[*line, "--online-steps=0"]).items():
        (tmp_path / name).mkdir()
        moments = [("explore", 3)] if name == "killed" else []
        run_life(ONE, begin, tmp_path / name, *moments)
        line = ["--resume", "run", "--offline-steps=160", "--online-steps=60"]
        status, output = finish(start(ONE, line, tmp_path / name), tmp_path / name)
        assert status == 0, output
        check_same_run(longer, tmp_path / name / "run")
    refused_line = ["--resume", "run", "--offline-steps=200"]
    status, output = finish(start(ONE, refused_line, tmp_path / "killed"), tmp_path / "killed")
    assert status == 2 and "--offline-steps: fine-tuning has begun" in output.splitlines()[-1]
    check_same_run(longer, tmp_path / "killed" / "run")


def test_nothing_becomes_shorter(tmp_path, killed):
    for flag in ("--online-steps=59", "--offline-steps=119"):
        refused(tmp_path, ["--resume", "run", flag], "longer, not shorter")


@pytest.mark.parametrize(
    "flag", ["--seed=1", "--gamma=0.5", "--utd=2", "--run-dir=other", "--pretrained=run"]
)
def test_nothing_else_changes(tmp_path, killed, flag):
    name = flag.strip("-").partition("=")[0].replace("-", "_")
    refused(tmp_path, ["--resume", "run", flag], name, "cannot change")


def test_a_dataset_that_was_moved(undisturbed, toy_data, toy_file, tmp_path, killed):
    """Is given once, and remembered; another one is refused, and so is what is not there."""
    record = json.loads((killed / "args.json").read_text())
    record["settings"]["dataset"] = str(tmp_path / "old.hdf5")
    (killed / "args.json").write_text(json.dumps(record))
    refused(tmp_path, ["--resume", "run"], "old.hdf5", "no such file")
    save(tmp_path / "other.hdf5", toy_data | {"rewards": toy_data["rewards"] * 2})
    refused(tmp_path, ["--resume", "run", "--dataset=other.hdf5"], "other.hdf5", "not the file")
    shutil.copy(toy_file, tmp_path / "new.hdf5")
    status, output = finish(
        start(ONE, ["--resume=run", "--dataset=new.hdf5"], tmp_path, ("update", 20)), tmp_path
    )
    assert status == -KILL, output
    check_same_run(undisturbed(ONE), run_lives(ONE, [], tmp_path))


def test_a_dataset_with_other_content(tmp_path, toy_data):
    """Under the same name."""
    path = save(tmp_path / "toy.hdf5", toy_data)
    run_life(ONE, quick(ONE, dataset=path), tmp_path, ("update", 5))
    save(path, toy_data | {"rewards": toy_data["rewards"] * 2})
    refused(tmp_path, ["--resume", "run"], "toy.hdf5", "not the file")
