"""Makes the embedded dataset.

    python -m benchmarks.data.collect_pointmaze                  makes pointmaze.hdf5 again
    python -m benchmarks.data.collect_pointmaze --seed 1 --out other.hdf5

A controller with noisy pushes walks shortest paths between cells of the maze. Most episodes begin
or end somewhere else than the task's do, so the way from start to goal is seldom shown whole; some
end in a trap.
"""

import inspect
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

from benchmarks.envs.pointmaze import ENV_ID, Cell, PointMaze


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
        print(
            "collect_pointmaze.py: --transitions must be above 0, --seed not below", file=sys.stderr
        )
        sys.exit(2)
    parameters = inspect.signature(PointMaze).parameters.values()
    kwargs = {p.name: p.default for p in parameters if p.name != "render_mode"}
    kwargs |= {} if args.traps else {"traps": []}
    data = collect(args, gym.make(ENV_ID, **kwargs))
    packages = ("gymnasium", "gymnasium-robotics", "mujoco", "numpy")
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    settings = {key: value for key, value in asdict(args).items() if key != "out"}
    # With checksums of everything: of the format's own parts ("latest"), and of the numbers.
    with h5py.File(f"{args.out}.tmp", "w", libver="latest", track_order=True) as file:
        for key, array in data.items():
            options = dict(compression="gzip", shuffle=True, fletcher32=True)
            file.create_dataset(key, data=array, **options)
        texts = dict(env_id=ENV_ID, env_kwargs=json.dumps(kwargs), versions=json.dumps(versions))
        texts["generator"] = "benchmarks/data/collect_pointmaze.py"
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
