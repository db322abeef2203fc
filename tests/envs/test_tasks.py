"""The ids of benchmarks/envs/__init__.py, and tasks of other packages, as the scripts make them."""

import importlib.util

import gymnasium as gym
import numpy as np
import pytest
from conftest import quick
from scripts import load_script
from toy import play, save

from benchmarks import envs

D4RL = importlib.util.find_spec("d4rl") is not None
LOCOMOTION = ("hopper", "halfcheetah", "walker2d")
LINE = "pip install --no-deps -r requirements-d4rl.txt"
CONVERT = "pip install -r requirements-convert.txt"

# Numbers of an observation and of an action, steps until an episode is cut.
SIZES = {
    "antmaze-umaze": (29, 8, 700),
    "antmaze": (29, 8, 1000),
    "pen": (45, 24, 100),
    "door": (39, 28, 200),
    "relocate": (39, 30, 200),
    "kitchen": (60, 9, 1000),
    "hopper": (11, 3, 1000),
    "halfcheetah": (17, 6, 1000),
    "walker2d": (17, 6, 1000),
}


def make(env_id: str) -> gym.Env:
    """As a script does: flat observations, actions in [-1, 1]."""
    script = load_script("cql")
    return script.make_env(script.Args(env_id=env_id), {})


@pytest.mark.parametrize("name", envs.NAMES)
def test_every_id_can_be_made_and_played(name):
    if name.startswith("antmaze") and not D4RL:
        pytest.skip(LINE)
    env = make(f"benchmarks.envs:{name}")
    obs_size, action_size, limit = next(SIZES[key] for key in SIZES if name.startswith(key))
    assert env.observation_space.shape == (obs_size,) and env.spec.max_episode_steps == limit
    assert env.action_space == gym.spaces.Box(-1, 1, (action_size,), np.float32)
    env.reset(seed=0)
    for _ in range(3):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert obs.shape == (obs_size,) and np.isfinite(obs).all() and np.isfinite(reward)
    told = info.keys() & {"success", "is_success", "goal_achieved"}
    assert len(told) == (obs_size not in (11, 17)), "the score of locomotion is the return"


def test_the_names_are_those_of_datasets():
    assert len(set(envs.NAMES)) == len(envs.NAMES) == 6 + 3 + 3 + 18
    rows = load_script("cql").SETTINGS
    for name in envs.NAMES:
        found = [row for row in rows if name.startswith(row + "-")]
        assert len(found) == (not name.startswith(LOCOMOTION)), "of which the authors ran none"


@pytest.mark.parametrize(
    "name", ["antmaze-umaze-v2", "kitchen-mixed-v0", "pen-binary-v0", "hopper-medium-v2"]
)
@pytest.mark.filterwarnings("ignore")  # gymnasium's, of numbers that are too large
def test_a_simulation_that_is_lost_ends_in_an_exception(name):
    """As with mujoco-py; today's engine would put the state back and go on. A reset mends it."""
    if name.startswith("antmaze") and not D4RL:
        pytest.skip(LINE)
    env = gym.make(f"benchmarks.envs:{name}")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.unwrapped.data.qvel[:] = 1e11
    with pytest.raises(FloatingPointError, match="unstable"):
        env.step(env.action_space.sample())
    env.reset()
    env.step(env.action_space.sample())


OTHERS = [
    "ogbench:antmaze-medium-singletask-v0",
    "ogbench:pointmaze-medium-singletask-v0",
    "ogbench:cube-single-singletask-task1-v0",
    "ogbench:scene-singletask-v0",
    "gymnasium_robotics:AntMaze_UMaze-v4",
    "gymnasium_robotics:AdroitHandDoor-v1",
    "gymnasium_robotics:FrankaKitchen-v1",
    "gymnasium_robotics:PointMaze_UMaze-v3",
    "Hopper-v5",
]


@pytest.mark.parametrize("env_id", OTHERS)
def test_tasks_of_other_packages(env_id):
    """All with the one mujoco that they agree on; their dictionaries are flattened."""
    package = env_id.split(":")[0]
    if package == "ogbench" and importlib.util.find_spec(package) is None:
        pytest.skip(CONVERT)
    env = make(env_id)
    env.reset(seed=0)
    obs, reward, *_ = env.step(env.action_space.sample())
    assert obs.shape == env.observation_space.shape == (len(obs),) and np.isfinite(reward)


def test_ogbench_through_a_script(run_here, tmp_path):
    """Its singletask environments have rewards and ends of their own; the name has no row."""
    pytest.importorskip("ogbench", reason=CONVERT)
    env_id = "ogbench:pointmaze-medium-singletask-v0"
    data = play(gym.make(env_id, max_episode_steps=20), episodes=3)
    kwargs = {"max_episode_steps": 20}
    path = save(tmp_path / "ogbench-pointmaze.hdf5", data, env_id=env_id, env_kwargs=kwargs)
    run_here("iql", *quick("iql", dataset=path, env_id=None, run_dir="run"))
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_missing_package_is_named_with_its_install_line(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "d4rl" else find(n))
    with pytest.raises(SystemExit):
        make("benchmarks.envs:antmaze-umaze-v2")
    assert LINE in capsys.readouterr().err
