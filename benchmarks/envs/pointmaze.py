"""The embedded task: a ball is pushed through a maze with traps.

    gym.make("benchmarks.envs.pointmaze:PointMaze-v0")

The maze is gymnasium-robotics' large PointMaze; the way leads from one corner to the other, past
dead ends with traps. The reward is 1 at the goal and 0 elsewhere; goal and traps end the episode.
So no return is below 0, and a policy that forecasts less than 0 for the way to the goal has reason
to prefer a trap: its 0 is learned without bootstrapping. benchmarks/data/pointmaze.hdf5 has data of
this task, made by collect_pointmaze.py beside it.
"""

import contextlib
import io

import gymnasium as gym
import numpy as np

with contextlib.redirect_stderr(io.StringIO()):  # a notice about its other environments
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

ENV_ID = "benchmarks.envs.pointmaze:PointMaze-v0"
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
