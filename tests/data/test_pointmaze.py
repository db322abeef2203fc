"""The embedded task and dataset: made again, the data are the same, and the task keeps its word."""

import json
import subprocess
import sys

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scripts import ROOT

from benchmarks.data import collect_pointmaze, names
from benchmarks.envs import pointmaze

COMMITTED = ROOT / "benchmarks" / "data" / "pointmaze.hdf5"


def read(path) -> tuple[dict[str, np.ndarray], dict]:
    with h5py.File(path) as file:
        return {key: file[key][()] for key in file}, names.attributes_of(file)


@pytest.fixture(scope="module")
def committed():
    return read(COMMITTED)


@pytest.fixture
def env():
    return gym.make(pointmaze.ENV_ID)


# --- The task -------------------------------------------------------------------------------------


def test_gymnasium_likes_it(env):
    check_env(env.unwrapped, skip_render_check=True)


def test_a_seed_decides_everything(env):
    actions = np.random.default_rng(0).uniform(-1, 1, (30, *env.action_space.shape))

    def course(env, seed):
        return np.array([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])

    first = course(env, 3)
    np.testing.assert_array_equal(first, course(env, 3))
    np.testing.assert_array_equal(first, course(gym.make(pointmaze.ENV_ID), 3))
    assert (first[0] != course(env, 4)[0]).any()


def arrive(env, cell):
    """The first step of an episode that begins in a cell: reward, terminated, truncated, success.

    It begins anywhere in the cell, and what ends an episode may be smaller: seeds are tried.
    """
    still = np.zeros(env.action_space.shape, np.float32)
    for seed in range(20):
        env.reset(seed=seed, options={"start": cell})
        _, reward, terminated, truncated, info = env.step(still)
        if terminated:
            break
    return reward, terminated, truncated, info["success"]


def test_goal_and_traps_end_an_episode(env):
    assert arrive(env, env.unwrapped.goal) == (1.0, True, False, True)
    for trap in env.unwrapped.traps:
        assert arrive(env, trap) == (0.0, True, False, False)


def test_the_time_limit_truncates(env):
    env.reset(seed=0)
    still = np.zeros(env.action_space.shape, np.float32)
    for step in range(1, env.spec.max_episode_steps + 1):
        _, reward, terminated, truncated, info = env.step(still)
        assert (reward, terminated, info["success"]) == (0.0, False, False)
        assert truncated == (step == env.spec.max_episode_steps)


# --- The dataset ----------------------------------------------------------------------------------


def test_made_twice_the_same_bits(env, tmp_path):
    """Here and by the program in a process of its own; another seed makes other data."""
    args = collect_pointmaze.Args(seed=5, transitions=400)
    one, other = (
        collect_pointmaze.collect(args, env),
        collect_pointmaze.collect(collect_pointmaze.Args(seed=6), env),
    )
    line = ["--seed", "5", "--transitions", "400", "--out", str(tmp_path / "again.hdf5")]
    program = [sys.executable, "-m", "benchmarks.data.collect_pointmaze", *line]
    subprocess.run(program, cwd=ROOT, check=True, capture_output=True)
    again, attributes = read(tmp_path / "again.hdf5")
    assert one.keys() == again.keys()
    for key, array in one.items():
        assert array.dtype == again[key].dtype and array.tobytes() == again[key].tobytes()
    assert attributes["seed"] == 5
    assert other["actions"][:400].tobytes() != one["actions"].tobytes()


def test_attributes_tell_how_it_was_made(committed):
    _, attributes = committed
    assert attributes["env_id"] == pointmaze.ENV_ID
    assert (ROOT / attributes["generator"]).is_file()
    assert {"numpy", "mujoco", "gymnasium-robotics"} <= json.loads(attributes["versions"]).keys()
    # The committed file is what the program makes when nothing is said.
    defaults = collect_pointmaze.Args()
    assert attributes["seed"] == defaults.seed and attributes["noise"] == defaults.noise
    kwargs = json.loads(attributes["env_kwargs"])
    assert gym.make(attributes["env_id"], **kwargs).unwrapped.goal == tuple(kwargs["goal"])


def test_committed_data_are_what_the_program_makes(committed, env):
    """Bit for bit on one machine only; everywhere the shapes, and statistics within 2 %, those of a
    column relative to its spread."""
    data, _ = committed
    fresh = collect_pointmaze.collect(collect_pointmaze.Args(), env)
    assert fresh.keys() == data.keys()
    for key, array in fresh.items():
        assert array.dtype == data[key].dtype and array.shape == data[key].shape
        found, wanted = array.astype(float), data[key].astype(float)
        spread = wanted.std(0)
        np.testing.assert_array_less(np.abs(found.mean(0) - wanted.mean(0)), 0.02 * spread + 1e-9)
        np.testing.assert_allclose(found.std(0), spread, rtol=0.02, atol=1e-9)

    def episodes(data):
        return (data["terminals"] | data["timeouts"]).sum()

    assert episodes(fresh) == pytest.approx(episodes(data), rel=0.02)
    share, wanted = (d["rewards"].sum() / episodes(d) for d in (fresh, data))
    assert share == pytest.approx(wanted, abs=0.02)


def test_data_fit_the_task(committed, env):
    data, _ = committed
    assert COMMITTED.stat().st_size < 5e6
    assert data["observations"].shape[1:] == env.observation_space.shape
    assert np.abs(data["actions"]).max() <= 1
    assert set(np.unique(data["rewards"])) == {0.0, 1.0}
    assert data["terminals"][data["rewards"] == 1].all(), "arriving ends an episode"
    ends = np.flatnonzero(data["terminals"] | data["timeouts"]) + 1
    assert np.diff(ends, prepend=0).max() <= env.spec.max_episode_steps
    assert len(data["rewards"]) - ends[-1] < env.spec.max_episode_steps, "the last one may be cut"
