"""The embedded task and the program that makes its dataset.

The task: a ball is pushed through gymnasium-robotics' large PointMaze from one corner to the other.
The reward is -1 a step and 0 on arrival, which ends the episode; with gamma 0.98 the returns lie
in [-50, 0]. The scripts reach it by `gym.make("benchmarks.pointmaze:PointMaze-v0")`.

The data: a controller walks shortest paths of cells with noisy pushes. Most episodes begin or end
somewhere else, so the way from start to goal is rarely shown whole and has to be put together.

    python -m benchmarks.pointmaze                 makes benchmarks/pointmaze.hdf5 again
    python -m benchmarks.pointmaze --seed 1 --out other.hdf5
"""

import json
import platform
from collections import deque
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import tyro
from gymnasium_robotics.envs.maze import maps
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

ENV_ID = "benchmarks.pointmaze:PointMaze-v0"
Cell = tuple[int, int]  # (row, column) of a maze map


class PointMaze(gym.Env):
    """PointMaze with one start, one goal and decisions of `frame_skip` simulator steps.

    Observation (4,): position in cells and half the velocity. Action (2,): force in [-1, 1].

    Args:
        maze: name of a map in gymnasium_robotics.envs.maze.maps.
        starts: cells in which an episode may begin, each as likely.
        goal: cell whose centre is to be reached.
        start_noise: largest distance from the cell's centre along each axis, in cells.
        goal_radius: distance that counts as arrival, in cells.
        frame_skip: simulator steps (of 0.01 s) that an action lasts.
        action_noise: standard deviation of the normal noise on each action.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        maze: str = "LARGE_MAZE",
        starts: tuple[Cell, ...] = ((1, 1),),
        goal: Cell = (7, 10),
        start_noise: float = 0.45,
        goal_radius: float = 0.5,
        frame_skip: int = 10,
        action_noise: float = 0.0,
        render_mode: str | None = None,
    ):
        self.base = PointMazeEnv(getattr(maps, maze), render_mode=render_mode)
        self.maze_map = np.array(self.base.maze.maze_map)
        self.starts, self.start_noise, self.frame_skip = starts, start_noise, frame_skip
        self.goal_cell, self.goal_radius, self.action_noise = goal, goal_radius, action_noise
        self.goal = self.centre(goal)
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def centre(self, cell: Cell) -> np.ndarray:
        """Position (2,) of a cell's centre."""
        return np.array(self.base.maze.cell_rowcol_to_xy(np.array(cell)))

    def cell(self, position: np.ndarray) -> Cell:
        """The cell that a position (2,) lies in."""
        row, column = self.base.maze.cell_xy_to_rowcol(position)
        return int(row), int(column)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Options: `start`, a cell to begin in instead."""
        super().reset(seed=seed)
        cell = self.starts[self.np_random.integers(len(self.starts))]
        cell = (options or {}).get("start", cell)
        self.base.reset(seed=seed, options={"goal_cell": np.array(self.goal_cell)})
        noise = self.np_random.uniform(-self.start_noise, self.start_noise, 2)
        self.base.point_env.set_state(self.centre(cell) + noise, np.zeros(2))
        return self.observe(), {"success": False}

    def step(self, action: np.ndarray):
        force = np.asarray(action) + self.action_noise * self.np_random.standard_normal(2)
        point = self.base.point_env
        point.set_state(point.data.qpos, point.data.qvel.clip(-5.0, 5.0))
        point.do_simulation(force.clip(-1.0, 1.0), self.frame_skip)
        success = bool(np.linalg.norm(self.position - self.goal) <= self.goal_radius)
        return self.observe(), float(success) - 1.0, success, False, {"success": success}

    @property
    def position(self) -> np.ndarray:
        return self.base.point_env.data.qpos[:2].copy()

    def observe(self) -> np.ndarray:
        return np.concatenate([self.position, 0.5 * self.base.point_env.data.qvel[:2]])

    def render(self):
        return self.base.render()

    def close(self):
        self.base.close()


gym.register("PointMaze-v0", PointMaze, max_episode_steps=80)


# --- The dataset ----------------------------------------------------------------------------------


@dataclass
class Args:
    out: str = str(Path(__file__).parent / "pointmaze.hdf5")  # file to write
    seed: int = 0  # of starts, targets and noise
    transitions: int = 20_000  # at least; the last episode is finished
    from_start: float = 0.3  # share of episodes that begin at the task's start
    to_goal: float = 0.3  # share that go to its goal; the others to one random cell after another
    noise: float = 0.2  # standard deviation of the force's noise
    correlation: float = 0.9  # of that noise from one decision to the next


def next_cells(maze_map: np.ndarray, target: Cell) -> dict[Cell, Cell]:
    """For each free cell the next one on a shortest path to the target (breadth first)."""
    step, queue = {target: target}, deque([target])
    while queue:
        row, column = queue.popleft()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if maze_map[cell] != 1 and cell not in step:
                step[cell] = (row, column)
                queue.append(cell)
    return step


def collect(args: Args, env: gym.Env) -> dict[str, np.ndarray]:
    """Arrays of D4RL's flat layout. A timeout's row is a step like any other."""
    rng = np.random.default_rng(args.seed)
    maze: PointMaze = env.unwrapped
    free = [tuple(cell) for cell in np.argwhere(maze.maze_map != 1)]
    routes = {cell: next_cells(maze.maze_map, cell) for cell in free}
    keys = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    rows = []
    while len(rows) < args.transitions:
        options = {} if rng.random() < args.from_start else {"start": free[rng.integers(len(free))]}
        obs, _ = env.reset(seed=int(rng.integers(2**31)), options=options)
        to_goal = rng.random() < args.to_goal
        target = maze.goal_cell if to_goal else free[rng.integers(len(free))]
        noise, over = np.zeros(2), False
        while not over:
            here = maze.cell(maze.position)
            if here == target and not to_goal:
                target = free[rng.integers(len(free))]
            waypoint = maze.centre(routes[target].get(here, here))
            drift = np.sqrt(1 - args.correlation**2) * rng.standard_normal(2)
            noise = args.correlation * noise + args.noise * drift
            action = waypoint - maze.position - 0.25 * maze.base.point_env.data.qvel[:2] + noise
            action = action.clip(-1.0, 1.0).astype(np.float32)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            rows.append((obs, action, reward, terminated, truncated, next_obs))
            obs, over = next_obs, terminated or truncated
    kinds = (np.float32, np.float32, np.float32, bool, bool, np.float32)
    return {key: np.array(column, kind) for key, kind, column in zip(keys, kinds, zip(*rows))}


def main() -> None:
    args = tyro.cli(Args)
    data = collect(args, gym.make("PointMaze-v0"))
    packages = ("gymnasium", "gymnasium-robotics", "mujoco", "numpy")
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    settings = {key: value for key, value in asdict(args).items() if key != "out"}
    with h5py.File(args.out, "w", track_order=True) as file:
        for key, array in data.items():
            file.create_dataset(key, data=array, compression="gzip", shuffle=True)
        file.attrs["env_id"] = ENV_ID
        file.attrs["env_kwargs"] = json.dumps({})
        file.attrs["generator"] = "benchmarks/pointmaze.py"
        file.attrs["settings"] = json.dumps(settings)
        file.attrs["versions"] = json.dumps(versions)
    ends = data["terminals"] | data["timeouts"]
    share = data["terminals"].sum() / ends.sum()
    print(f"{args.out}: {len(ends)} transitions, {ends.sum()} episodes, {share:.0%} reach the goal")


if __name__ == "__main__":
    main()
