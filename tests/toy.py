"""A task and datasets for the tests: small enough to be trained on in a second.

The scripts reach the task as a user's own one: by `--env-id toy:Toy-v0`, this file being on the
path, or by what the dataset's attributes say.
"""

import json
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

LIMIT = 10  # steps until an episode is cut short
ARRAYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


class Toy(gym.Env):
    """A point is pushed along a line; beyond 1 is the goal: -1 a step, 0 on arrival, which ends.

    Observation (2,): position and the last push. Action (1,): push, in [low, high]. It starts
    anywhere from -1 to 1, so that an untrained policy gets there too, now and then.

    Args:
        low, high: the box of actions; a push is scaled to [-1, 1] of it.
        actions: "box", "unbounded", "discrete", or "point": a box of a single action.
        dict_observations: the two numbers under the keys "position" and "push".
        error: name of a builtin exception that the constructor raises.
    """

    # Here and not in the instance, so that a test sees what an environment made by a script did.
    reset_seeds: list[int] = []

    def __init__(self, low=-1.0, high=1.0, actions="box", dict_observations=False, error=""):
        if error:
            raise getattr(__builtins__, error, None) or __builtins__[error]("no such simulator")
        self.low, self.high, self.dict_observations = low, high, dict_observations
        number = gym.spaces.Box(-np.inf, np.inf, (1,))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
        if dict_observations:
            self.observation_space = gym.spaces.Dict({"position": number, "push": number})
        self.action_space = {
            "box": gym.spaces.Box(low, high, (1,)),
            "unbounded": number,
            "discrete": gym.spaces.Discrete(2),
            "point": gym.spaces.Box(low, low, (1,)),
        }[actions]

    def observe(self):
        if self.dict_observations:
            return {"position": self.state[:1].copy(), "push": self.state[1:].copy()}
        return self.state.copy()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        Toy.reset_seeds.append(seed)
        self.state = np.array([self.np_random.uniform(-1, 1), 0], np.float32)
        return self.observe(), {}

    def step(self, action):
        push = 2 * (float(action[0]) - self.low) / (self.high - self.low) - 1
        self.state = np.array([self.state[0] + 0.4 * push, push], np.float32)
        success = bool(self.state[0] >= 1)
        return self.observe(), float(success) - 1, success, False, {"success": success}


class Trouble(Toy):
    """A Toy that cuts its episodes short itself, and with which a test can `meddle`: what reset and
    step would return goes through that function, which is told the environment, too."""

    episode = -1  # counted over all environments; 0 is the trial before a run begins
    meddle = staticmethod(lambda env, result: result)

    def reset(self, *, seed=None, options=None):
        Trouble.episode += 1
        self.step_number, self.limit = 0, LIMIT
        return Trouble.meddle(self, super().reset(seed=seed, options=options))

    def step(self, action):
        self.step_number += 1
        *result, _, info = super().step(action)
        return Trouble.meddle(self, (*result, self.step_number >= self.limit, info))


gym.register("Toy-v0", Toy, max_episode_steps=LIMIT)
gym.register("DictToy-v0", Toy, max_episode_steps=LIMIT, kwargs={"dict_observations": True})
gym.register("Trouble-v0", Trouble)
gym.register("DictTrouble-v0", Trouble, kwargs={"dict_observations": True})


def play(env: gym.Env, episodes: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of D4RL's flat layout from episodes of random pushes, which lean towards the goal."""
    rng, rows = np.random.default_rng(seed), []
    box = env.action_space
    for _ in range(episodes):
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        over = False
        while not over:
            share = rng.uniform(0.1, 1.0, box.shape)
            action = (box.low + share * (box.high - box.low)).astype(np.float32)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            rows.append((obs, action, reward, terminated, truncated, next_obs))
            obs, over = next_obs, terminated or truncated
    return {key: np.array(column, np.float32) for key, column in zip(ARRAYS, zip(*rows))}


def save(path: Path, data: dict[str, np.ndarray], **attributes) -> Path:
    """Writes a dataset; what is no number, text or array is stored as JSON."""
    with h5py.File(path, "w") as file:
        for key, array in data.items():
            file[key] = array
        for key, value in attributes.items():
            file.attrs[key] = json.dumps(value) if isinstance(value, dict) else value
    return path
