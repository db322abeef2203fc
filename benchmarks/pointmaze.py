"""The embedded task and the program that makes its dataset.

The task: a ball is pushed through gymnasium-robotics' large PointMaze from one corner to the other,
past dead ends with traps. The reward is 1 at the goal and 0 elsewhere; goal and traps end the
episode. So no return is below 0, and a policy that forecasts less than 0 for the way to the goal
has reason to prefer a trap: its 0 is learned without bootstrapping. The scripts reach the task by
`gym.make("benchmarks.pointmaze:PointMaze-v0")`.

The data: a controller with noisy pushes walks shortest paths between cells. Most episodes begin or
end somewhere else, so the way from start to goal is seldom shown whole; some end in a trap.

    python -m benchmarks.pointmaze                 makes benchmarks/pointmaze.hdf5 again
    python -m benchmarks.pointmaze --seed 1 --out other.hdf5
"""

import contextlib
import inspect
import io
import json
import os
import platform
import sys
from collections import deque
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import tyro

with contextlib.redirect_stderr(io.StringIO()):  # a notice about its other environments
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

ENV_ID = "benchmarks.pointmaze:PointMaze-v0"
Cell = tuple[int, int]  # (row, column) of a maze map


class PointMaze(gym.Env):
    """gymnasium-robotics' PointMaze with neighbouring starts, one goal, traps, slower decisions.

    Action (2,): force in [-1, 1] along x and y, held for `frame_skip` simulator steps.
    Observation: a bump for each cell, exp(-d^2 / 2 sigma^2) of the distance d to its centre with
    sigma 0.6 cells, then half the velocity (2,). Small networks learn more from these features than
    from two coordinates.
    Reward: 1 on reaching the goal, else 0. Goal and traps end the episode.

    Args:
        maze: name of a map in gymnasium_robotics.envs.maze.maps.
        starts: cells, (row, column), in one of which an episode begins.
        goal: cell to reach.
        traps: cells that end the episode.
        start_noise: largest distance of the first position from the cell's centre, along x and y.
        goal_radius: distance from the goal's centre that counts as arrival, in cells.
        trap_radius: distance from a trap's centre along x and y that counts as in it, in cells.
        frame_skip: simulator steps of 0.01 s that an action lasts.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        maze: str = "LARGE_MAZE",
        starts: tuple[Cell, ...] = ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3)),
        goal: Cell = (7, 10),
        traps: tuple[Cell, ...] = ((4, 1), (2, 6), (6, 6), (5, 9)),
        start_noise: float = 0.3,
        goal_radius: float = 0.5,
        trap_radius: float = 0.5,
        frame_skip: int = 10,
        render_mode: str | None = None,
    ):
        self.base = PointMazeEnv(getattr(maps, maze), render_mode=render_mode)
        self.maze_map = np.array(self.base.maze.maze_map)
        self.starts = [tuple(cell) for cell in starts]
        self.goal, *self.traps = (tuple(cell) for cell in (goal, *traps))
        self.start_noise, self.frame_skip, self.render_mode = start_noise, frame_skip, render_mode
        self.goal_radius, self.trap_radius = goal_radius, trap_radius
        self.cells = np.array([self.centre(cell) for cell in np.argwhere(self.maze_map != 1)])
        self.trap_centres = np.array([self.centre(cell) for cell in self.traps]).reshape(-1, 2)
        size = len(self.cells) + 2
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def centre(self, cell: Cell) -> np.ndarray:
        """Position (2,) of a cell's centre."""
        return np.array(self.base.maze.cell_rowcol_to_xy(np.array(cell)))

    def cell(self, position: np.ndarray) -> Cell:
        """The cell that a position (2,) lies in."""
        row, column = self.base.maze.cell_xy_to_rowcol(position)
        return int(row), int(column)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Options: `start`, the cell to begin in."""
        super().reset(seed=seed)
        self.base.reset(seed=seed, options={"goal_cell": np.array(self.goal)})
        noise = self.np_random.uniform(-self.start_noise, self.start_noise, 2)
        start = self.starts[self.np_random.integers(len(self.starts))]
        position = self.centre((options or {}).get("start", start)) + noise
        self.base.point_env.set_state(position, np.zeros(2))
        return self.observe(), {"success": False}

    def step(self, action: np.ndarray):
        point = self.base.point_env
        point.set_state(point.data.qpos, point.data.qvel.clip(-5.0, 5.0))
        point.do_simulation(np.clip(action, -1.0, 1.0), self.frame_skip)
        success = bool(np.linalg.norm(self.position - self.centre(self.goal)) <= self.goal_radius)
        depth = np.abs(self.trap_centres - self.position).max(1)
        trapped = bool((depth <= self.trap_radius).any())
        return self.observe(), float(success), success or trapped, False, {"success": success}

    @property
    def position(self) -> np.ndarray:
        return self.base.point_env.data.qpos[:2].copy()

    @property
    def velocity(self) -> np.ndarray:
        return self.base.point_env.data.qvel[:2].copy()

    def observe(self) -> np.ndarray:
        squares = ((self.cells - self.position) ** 2).sum(1)
        bumps = np.exp(-squares / (2 * 0.6**2))
        # Rounded, so that most of them are exactly 0 and the dataset compresses well.
        return np.concatenate([bumps, 0.5 * self.velocity]).round(3)

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
    transitions: int = 20_000  # rows; the last episode is left unfinished there
    from_start: float = 0.3  # share of episodes that begin at one of the task's starts
    to_goal: float = 0.3  # share that go to its goal
    to_trap: float = 0.14  # share that go to a trap; the others to one cell after another
    noise: float = 0.2  # standard deviation of the force's noise
    correlation: float = 0.9  # of that noise from one decision to the next
    traps: bool = True  # without them the maze is gymnasium-robotics' own


def next_cells(maze: PointMaze, target: Cell) -> dict[Cell, Cell]:
    """For each free cell the next one on a shortest path to the target that enters no trap."""
    step, queue = {target: target}, deque([target])
    while queue:
        row, column = queue.popleft()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if maze.maze_map[cell] != 1 and cell not in step and cell not in maze.traps:
                step[cell] = (row, column)
                queue.append(cell)
    return step


def collect(args: Args, env: gym.Env) -> dict[str, np.ndarray]:
    """Arrays of D4RL's flat layout, without next_observations: they are the next row's."""
    rng, maze = np.random.default_rng(args.seed), env.unwrapped
    cells = [(int(row), int(column)) for row, column in np.argwhere(maze.maze_map != 1)]
    routes = {cell: next_cells(maze, cell) for cell in cells}
    safe = [cell for cell in cells if cell in routes[maze.goal] and cell not in maze.traps]
    rows = []
    while len(rows) < args.transitions:
        places = maze.starts if rng.random() < args.from_start else safe
        start = places[rng.integers(len(places))]
        aim = rng.random()
        to_trap = args.to_goal <= aim < args.to_goal + args.to_trap and maze.traps
        target = maze.goal if aim < args.to_goal else safe[rng.integers(len(safe))]
        target = maze.traps[rng.integers(len(maze.traps))] if to_trap else target
        wander = aim >= args.to_goal and not to_trap
        obs, _ = env.reset(seed=int(rng.integers(2**31)), options={"start": start})
        noise, over = np.zeros(2), False
        while not over:
            here = maze.cell(maze.position)
            if here == target and wander:
                target = safe[rng.integers(len(safe))]
            waypoint = maze.centre(routes[target].get(here, here))
            drift = np.sqrt(1 - args.correlation**2) * rng.standard_normal(2)
            noise = args.correlation * noise + args.noise * drift
            action = waypoint - maze.position - 0.25 * maze.velocity + noise
            action = action.clip(-1.0, 1.0).astype(np.float32)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            rows.append((obs, action, reward, terminated, truncated))
            obs, over = next_obs, terminated or truncated
    rows = rows[: args.transitions]
    keys = ("observations", "actions", "rewards", "terminals", "timeouts")
    kinds = (np.float32, np.float32, np.float32, bool, bool)
    return {key: np.array(column, kind) for key, kind, column in zip(keys, kinds, zip(*rows))}


def main() -> None:
    args = tyro.cli(Args)
    if args.transitions < 1 or args.seed < 0:
        print("pointmaze.py: --transitions must be above 0, --seed not below", file=sys.stderr)
        sys.exit(2)
    parameters = inspect.signature(PointMaze).parameters.values()
    kwargs = {p.name: p.default for p in parameters if p.name != "render_mode"}
    kwargs |= {} if args.traps else {"traps": []}
    data = collect(args, gym.make("PointMaze-v0", **kwargs))
    packages = ("gymnasium", "gymnasium-robotics", "mujoco", "numpy")
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    settings = {key: value for key, value in asdict(args).items() if key != "out"}
    # With checksums of everything: of the format's own parts ("latest"), and of the numbers.
    with h5py.File(f"{args.out}.tmp", "w", libver="latest", track_order=True) as file:
        for key, array in data.items():
            options = dict(compression="gzip", shuffle=True, fletcher32=True)
            file.create_dataset(key, data=array, **options)
        texts = dict(env_id=ENV_ID, env_kwargs=json.dumps(kwargs), versions=json.dumps(versions))
        texts["generator"] = "benchmarks/pointmaze.py"
        for key, text in texts.items():
            file.attrs[key] = np.bytes_(text)  # of one length: others have no checksum
        for key, value in settings.items():
            file.attrs[key] = value
    os.replace(f"{args.out}.tmp", args.out)
    ends = data["terminals"] | data["timeouts"]
    share = data["rewards"].sum() / ends.sum()
    print(f"{args.out}: {len(ends)} transitions, {ends.sum()} episodes, {share:.0%} reach the goal")


if __name__ == "__main__":
    main()
