"""Returns-to-go and the way from a dataset to episodes, by hand and against the authors' code."""

from functools import cache

import numpy as np
import parity
import pytest
import torch
from scripts import FIXTURES, SCRIPTS, load_script, rows_of_dataset, stand_in

read = cache(parity.read)
CASES = [
    pytest.param(path, case, id=f"{path.stem}-{case}")
    for path in FIXTURES
    if "calc" in read(path)[0]
    for case in parity.return_cases(read(path)[1])
]


@pytest.fixture(params=SCRIPTS)
def script(request):
    return load_script(request.param)


@pytest.mark.parametrize("path, case", CASES)
def test_episodes_and_returns_are_those_of_the_authors(script, path, case):
    """calc: one episode; stream: a dataset; online: episodes played in an environment."""
    try:
        worst = parity.check_returns(script, *read(path), case)
    except parity.NotOffered as reason:
        pytest.skip(str(reason))
    assert worst.excess <= 1, worst


@pytest.mark.parametrize("timeouts", [[2, 4, 7], None], ids=["given", "guessed"])
def test_the_authors_lose_terminals_that_the_scripts_keep(script, timeouts):
    """The one difference in what is made of a dataset, and how parity.py makes up for it: a goal
    that is reached at a time limit (4) or in the last row (8) is given as a time limit alone."""
    data = dict(rewards=np.zeros(9, np.float32), terminals=flags(9, 1, 4, 8))
    if timeouts:
        data["timeouts"] = flags(9, *timeouts)
    others = parity.with_the_authors_ends(script, data, limit=3)
    assert np.flatnonzero(others["terminals"]).tolist() == [1]
    assert np.flatnonzero(others["timeouts"]).tolist() == [*([2] if timeouts else []), 4, 7, 8]
    kept, left = (load(script, x, limit=3).obs[:, 0].tolist() for x in (data, others))
    assert set(kept) - set(left) == {4, 8} and set(left) < set(kept)


# --- By hand, with gamma 0.9 ----------------------------------------------------------------------

NO, YES = False, True
SPARSE = dict(failure_reward=-1.0)
BY_HAND = {
    "discounted": ([1, 2, 4], [NO, NO, NO], {}, [1 + 0.9 * (2 + 0.9 * 4), 2 + 0.9 * 4, 4]),
    "failure goes on for ever": ([-1, -1], [NO, NO], SPARSE, [-10, -10]),
    "even where it is an end": ([-1, -1], [NO, YES], SPARSE, [-10, -10]),
    "success at the end": ([-1, -1, 0], [NO, NO, YES], SPARSE, [-1.9, -1, 0]),
    # The rule is for whole episodes: what follows a success is an ordinary sum.
    "truncated with a success": ([0, -1, -1], [NO, NO, NO], SPARSE, [-1.71, -1.9, -1]),
    "another constant is no failure": ([-2, -2], [NO, NO], SPARSE, [-3.8, -2]),
    "without a failure reward": ([-1, -1], [NO, NO], {}, [-1.9, -1]),
    "several terminals": ([1, 1, 1, 1], [NO, YES, NO, YES], {}, [1.9, 1, 1.9, 1]),
    "infinite horizon": ([0, 0, 2], [NO, NO, NO], dict(infinite_horizon=True), [16.2, 18, 20]),
    "which an end ends": ([0, 0, 2], [NO, NO, YES], dict(infinite_horizon=True), [1.62, 1.8, 2]),
    "a single step": ([3], [NO], {}, [3]),
}


@pytest.mark.parametrize("rewards, terminations, settings, wanted", BY_HAND.values(), ids=BY_HAND)
def test_returns_by_hand(script, rewards, terminations, settings, wanted):
    args = script.Args(gamma=0.9, **settings)
    found = script.returns_to_go(args, np.float32(rewards), np.array(terminations))
    np.testing.assert_allclose(found, wanted)


@pytest.mark.parametrize("scale, bias", [(10.0, -5.0), (0.1, 0.3), (1 / 3, 0.7), (-2.0, 0.0)])
def test_failure_is_recognised_in_scaled_rewards(script, scale, bias):
    """failure_reward is unscaled; rounding must not hide that all rewards equal it."""
    args = script.Args(gamma=0.9, failure_reward=0.3, reward_scale=scale, reward_bias=bias)
    nothing = np.zeros((2, 1), np.float32)
    for dtype in (np.float32, np.float64):
        raw = np.full(2, 0.3, dtype)
        episode = script.Episode(nothing, nothing, raw, nothing, np.array([NO, NO]))
        rows = script.to_rows(args, episode)
        np.testing.assert_allclose(rows[:, 2], 0.3 * scale + bias, rtol=1e-6)
        np.testing.assert_allclose(rows[:, 5], 10 * (0.3 * scale + bias), rtol=1e-6)


# --- From a dataset's flat rows to episodes -------------------------------------------------------


def load(script, data, low=-1.0, high=1.0, limit=None, **settings):
    """The batch of all rows that the script makes of a dataset; row k has the observation k.

    low, high: the box of the environment's actions. limit: the steps of its episodes, if any.
    """
    n = len(data["rewards"])
    data = {"observations": np.arange(n, dtype=np.float32)[:, None]} | data
    data = {"actions": np.zeros((n, 1), np.float32)} | data
    args, env = script.Args(gamma=0.9, **settings), stand_in(low=low, high=high, limit=limit)
    rows = rows_of_dataset(script, args, data, env)
    return script.Batch(*rows.split(1, 1))


def flags(n: int, *at: int) -> np.ndarray:
    return np.isin(np.arange(n), at)


def test_three_episodes(script):
    """The first ends at the goal, the second at a time limit, the third is not over."""
    data = dict(rewards=np.float32([0, 1, 0, 0, 9, 5, 5]), terminals=flags(7, 1))
    batch = load(script, data | dict(timeouts=flags(7, 4)), failure_reward=0.0)
    assert batch.obs[:, 0].tolist() == [0, 1, 2, 3]
    assert batch.rewards[:, 0].tolist() == [0, 1, 0, 0]
    assert batch.terminations[:, 0].tolist() == [0, 1, 0, 0]
    # Row 3 is followed by row 4, the step of the time limit, of which only the state is used: its
    # reward of 9 is neither in a return nor keeps the episode from being one of failure.
    assert batch.next_obs[:, 0].tolist()[2:] == [3, 4]
    np.testing.assert_allclose(batch.mc_returns[:, 0], [0.9, 1, 0, 0])


def test_without_timeouts_the_limit_of_the_environment_ends_episodes(script):
    """As D4RL and the authors count: every third step since the last terminal is a time limit's."""
    data = dict(rewards=np.arange(11, dtype=np.float32), terminals=flags(11, 1, 6))
    # Episodes: 0 1 | 2 3 (4) | 5 6 | 7 8 (9) | 10 is open; a limit's step is left out.
    batch = load(script, dict(data), limit=3)
    assert batch.obs[:, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert batch.terminations[:, 0].tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(batch.mc_returns[[2, 4], 0], [2 + 0.9 * 3, 5 + 0.9 * 6])
    # A limit that falls on a terminal takes nothing away. Timeouts that are given rule alone.
    assert load(script, dict(data), limit=5).obs[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    whole = load(script, data | dict(timeouts=flags(11)), limit=3)
    assert whole.obs[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_next_observations_are_taken_where_the_data_have_them(script):
    following = np.float32([[10], [20], [30]])
    data = dict(rewards=np.zeros(3, np.float32), terminals=flags(3, 1), next_observations=following)
    assert load(script, data).next_obs[:, 0].tolist() == [10, 20]


@pytest.mark.parametrize("end, kept", [("terminals", [0, 1, 2, 3, 4]), ("timeouts", [0, 1, 2, 3])])
def test_an_episode_may_end_with_the_file(script, end, kept):
    """A terminal needs no next row and stays; of a timeout only the state is used, as ever."""
    data = dict(rewards=np.float32([1, 1, 2, 2, 2]), terminals=flags(5, 1), timeouts=flags(5))
    data[end] = data[end] | flags(5, 4)
    batch = load(script, data)
    assert batch.obs[:, 0].tolist() == kept
    assert batch.terminations[:, 0].tolist() == [float(data["terminals"][row]) for row in kept]
    assert batch.next_obs.isfinite().all()


def test_a_terminal_at_a_time_limit_stays_a_terminal(script):
    """gymnasium sets both where the goal is reached with the last step that there is."""
    data = dict(rewards=np.float32([0, 0, 1, 0, 0]), terminals=flags(5, 2))
    batch = load(script, data | dict(timeouts=flags(5, 2, 4)), failure_reward=0.0)
    assert batch.obs[:, 0].tolist() == [0, 1, 2, 3]
    assert batch.terminations[:, 0].tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(batch.mc_returns[:, 0], [0.81, 0.9, 1, 0])


def test_an_episode_of_a_single_step(script):
    """A terminal makes a transition, a timeout alone leaves nothing of its episode."""
    data = dict(rewards=np.float32([1, 2, 3, 4, 5]), terminals=flags(5, 0, 2))
    batch = load(script, data | dict(timeouts=flags(5, 1)))
    assert batch.obs[:, 0].tolist() == [0, 2]
    np.testing.assert_allclose(batch.mc_returns[:, 0], [1, 3])


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.int64])
def test_flags_may_be_of_any_type(script, kind):
    data = dict(rewards=np.float32([0, 1, 0, 0, 0]), terminals=flags(5, 1).astype(kind))
    batch = load(script, data | dict(timeouts=flags(5, 3).astype(kind)))
    assert batch.terminations[:, 0].tolist() == [0, 1, 0]


def test_actions_move_from_the_box_of_the_environment_and_off_its_edge(script):
    data = dict(rewards=np.zeros(5, np.float32), terminals=flags(5, 3))
    data["actions"] = np.float32([[0], [1], [2], [4], [0]])
    batch = load(script, data, low=0.0, high=4.0)
    edge = 0.99999  # as in the authors' code: where tanh is 1 its inverse is not finite
    torch.testing.assert_close(batch.actions[:, 0], torch.tensor([-edge, -0.5, 0.0, edge]))
