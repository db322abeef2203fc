"""Known traps in dataset files, each in a small file with that layout, read as the scripts do.

Position and push of a toy (row k has the observation k, 0), whose episodes are cut after 10 steps.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from scripts import ROOT, load_script, rows_of_dataset

N = 12
BASE = dict(
    observations=np.stack([np.arange(N), np.zeros(N)], 1).astype(np.float32),
    actions=np.linspace(-0.9, 0.9, N, dtype=np.float32)[:, None],
    rewards=np.arange(N, dtype=np.float32),
    terminals=np.isin(np.arange(N), [2]),
    timeouts=np.isin(np.arange(N), [6]),
)  # 0 1 2 at a goal | 3 4 5, and 6 at a time limit | 7 to 11 are not over


def at(*rows: int) -> np.ndarray:
    return np.isin(np.arange(N), rows)


def load(path: Path, **settings):
    """The file's transitions, as lists of one number each."""
    script = load_script("cal_ql")
    args = script.Args(dataset=str(path), env_id="toy:Toy-v0", gamma=0.9, **settings)
    data, attributes = script.read_dataset(path)
    rows = rows_of_dataset(script, args, data, script.make_env(args, attributes))
    batch = script.Batch(*rows.split([2, 1, 1, 2, 1, 1], 1))
    return script.Batch(*(column[:, 0].tolist() for column in batch))


@pytest.fixture
def file(tmp_path):
    """Writes the base arrays with some changed, None for those left out."""

    def write(**changes):
        data = {key: array for key, array in (BASE | changes).items() if array is not None}
        return toy.save(tmp_path / "traps.hdf5", data)

    return write


def test_the_base(file):
    batch = load(file())
    assert batch.obs == [0, 1, 2, 3, 4, 5]
    assert batch.terminations == [0, 0, 1, 0, 0, 0]
    assert batch.mc_returns == pytest.approx(
        [0.9 + 0.81 * 2, 1 + 0.9 * 2, 2, 3 + 3.6 + 4.05, 8.5, 5]
    )


def test_missing_timeouts(file):
    """The environment's limit of 10 counts from the last terminal; the rest is an open tail."""
    late = dict(timeouts=None, terminals=at(0))
    assert load(file(**late)).obs == [*range(10)], "row 10 is a limit's, row 11 an open tail"
    assert load(file(timeouts=None)).obs == [0, 1, 2], "the second episode is not over"


def test_timeouts_out_of_step(file, tmp_path):
    """As in antmaze-v0: the position jumps within what the timeouts call an episode."""
    obs = BASE["observations"] / 10
    obs[5:] += 20  # the second episode begins here
    path = file(observations=obs, terminals=at(), timeouts=at(8))
    assert max(np.diff(load(path).obs)) > 15, "a transition that never was"
    line = [
        "-m",
        "benchmarks.data.convert",
        "ends",
        str(path),
        "--out",
        str(tmp_path / "mended.hdf5"),
    ]
    subprocess.run([sys.executable, *line], cwd=ROOT, check=True, capture_output=True)
    batch = load(tmp_path / "mended.hdf5")
    steps = np.subtract(batch.next_obs, batch.obs)
    assert len(steps) == 4 + 6 and np.allclose(steps, 0.1, atol=1e-5)


def test_terminals_in_runs(file):
    """As in AntMaze, where episodes go on at the goal: each ends one, with its reward."""
    batch = load(file(terminals=at(2, 3, 4), rewards=at(2, 3, 4).astype(np.float32)))
    assert batch.obs == [0, 1, 2, 3, 4, 5]
    assert batch.terminations == [0, 0, 1, 1, 1, 0]
    assert batch.mc_returns == pytest.approx([0.81, 0.9, 1, 1, 1, 0])
    # What follows the run and never succeeds counts as failing for ever, as in the authors' code.
    failing = load(file(terminals=at(2, 3), rewards=at(2, 3) - 1.0), failure_reward=-1.0)
    assert failing.mc_returns[-2:] == pytest.approx([-10, -10])


COLUMN = {key: BASE[key][:, None] for key in ("rewards", "terminals", "timeouts")}
SAME = {
    "rewards and flags are columns": COLUMN,
    "rewards are a column": dict(rewards=COLUMN["rewards"]),
    "actions of one number are no column": dict(actions=BASE["actions"][:, 0]),
    "float64": {
        key: BASE[key].astype(np.float64) for key in ("observations", "actions", "rewards")
    },
    "float terminals": dict(terminals=BASE["terminals"].astype(np.float32)),
    "float64 flags": {key: BASE[key].astype(np.float64) for key in ("terminals", "timeouts")},
    "integer flags": {key: BASE[key].astype(np.uint8) for key in ("terminals", "timeouts")},
    "next_observations of its own": dict(next_observations=BASE["observations"] + [[1, 0]]),
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_the_same_in_another_form(file, changes):
    assert load(file(**changes)) == load(file())


def test_next_observations_across_an_episodes_end(file):
    """Where they are not given the next row is taken: after a terminal another episode's, which
    nobody asks for, since the value of what follows is 0. A timeout's row, whose next is another
    episode's too, is left out."""
    batch = load(file())
    assert batch.next_obs == [1, 2, 3, 4, 5, 6]
    assert batch.terminations[batch.next_obs.index(3)] == 1
    assert 6 not in batch.obs
    # Where the file has them, they are taken, at a terminal too.
    own = BASE["observations"] + 0.5
    assert load(file(next_observations=own)).next_obs == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]


def test_the_last_transition(file):
    """A terminal needs no next row; a timeout's step is left out, but not its episode."""
    batch = load(file(terminals=BASE["terminals"] | at(11)))
    assert batch.obs == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert batch.terminations[-2:] == [0, 1] and batch.rewards[-1] == 11
    batch = load(file(timeouts=BASE["timeouts"] | at(11)))
    assert batch.obs == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]


def test_a_terminal_at_the_time_limit(file):
    """The task ended there, with that reward, whether or not time was up, too."""
    batch = load(file(terminals=at(2, 6)))
    assert batch.obs == [0, 1, 2, 3, 4, 5, 6]
    assert batch.terminations == [0, 0, 1, 0, 0, 0, 1] and batch.rewards[-1] == 6


@pytest.mark.parametrize("seed", range(20))
def test_no_end_of_the_task_is_lost(file, seed):
    """Wherever terminals and timeouts fall, together or apart: each terminal stays, as one, with
    its own reward as its return. What is left out is timeouts and the tail alone."""
    rng = np.random.default_rng(seed)
    terminals, timeouts = (rng.random(N) < share for share in rng.uniform(0.1, 0.9, 2))
    terminals[0] = True  # else there may be no episode
    batch = load(file(terminals=terminals, timeouts=timeouts))
    ends = [row for row, last in zip(batch.obs, batch.terminations) if last]
    assert ends == np.flatnonzero(terminals).tolist()
    returns = [found for found, last in zip(batch.mc_returns, batch.terminations) if last]
    assert returns == [BASE["rewards"][int(row)] for row in ends]
    cut = timeouts & ~terminals
    tail = np.arange(N) > np.flatnonzero(terminals | timeouts).max()
    assert batch.obs == np.flatnonzero(~cut & ~tail).tolist()


def test_an_unfinished_tail(file):
    """Nobody knows what it would have obtained."""
    assert max(load(file()).obs) == 5


def test_kitchen_without_timeouts(file):
    """A terminal marks the last row of each demonstration; none is as long as the limit. Returns go
    on at the last reward where no terminal cuts them."""
    settings = dict(infinite_horizon=True)
    demonstrations = dict(timeouts=None, terminals=at(3, 7, 11))
    batch = load(file(**demonstrations), **settings)
    assert batch.obs == [*range(12)] and batch.terminations == [0, 0, 0, 1] * 3
    assert batch.mc_returns[3:4] + batch.mc_returns[7:] == pytest.approx(
        [3, 7, 8 + 0.9 * (9 + 0.9 * (10 + 0.9 * 11)), 9 + 0.9 * (10 + 0.9 * 11), 10 + 0.9 * 11, 11]
    )
    # The same where the file has timeouts, in place of terminals.
    cut = load(file(timeouts=at(3, 7, 11), terminals=at()), **settings)
    assert cut.obs == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert cut.mc_returns[:3] == pytest.approx([0.9 + 0.81 * 20, 1 + 0.9 * 20, 20])
