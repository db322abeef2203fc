"""D4RL's AntMaze, version 2, on today's MuJoCo: an ant walks through a maze, to a goal not shown.

    gym.make("benchmarks.envs:antmaze-large-diverse-v2")

Six tasks, three mazes: play and diverse differ in D4RL's data, not in the environment. The ant is
D4RL's own MJCF, out of the package d4rl, which is found and not imported (its environments need
mujoco-py). Mazes, start, goal, reward and end follow D4RL's source
(github.com/Farama-Foundation/D4RL, 89141a6: locomotion/maze_env.py, ant.py, goal_reaching_env.py).
gymnasium-robotics' AntMaze is another task: other torques, time step, contacts and success radius.

legacy_contacts and legacy_capsules (see legacy.py) are on unless asked otherwise.
"""

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

from benchmarks.data.names import d4rl_file
from benchmarks.envs.old_engine import LegacyPhysics

SCALE = 4.0  # metres from the centre of a cell to the next
MAZES = {  # 1 wall, 0 free, R start, G goal; x grows with the column and y with the row
    "umaze": ("11111", "1R001", "11101", "1G001", "11111"),
    "medium": (
        "11111111",
        "1R011001",
        "10010001",
        "11000111",
        "10010001",
        "10100101",
        "100010G1",
        "11111111",
    ),
    "large": (
        "111111111111",
        "1R0001000001",
        "101101010101",
        "100000010001",
        "101111011101",
        "100101000001",
        "110101010111",
        "100100010G01",
        "111111111111",
    ),
}


class AntMaze(LegacyPhysics, MujocoEnv):
    """Observation (29,): position x, y, z in metres, orientation w, x, y, z, the angles of hip and
    ankle of legs 1 to 4 in radians, then the velocities of all (14). Action (8,) in [-1, 1]: the
    torques, in shares of 30, of leg 4 first and then 1 to 3. Reward 1 and the end of the episode
    within 0.5 m of the goal, else 0; lying on its back does not end it. A step is 0.1 s.

    info: success; goal, where it is (2,).

    Args:
        maze: umaze, medium or large.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 10}

    def __init__(self, maze: str = "large", **kwargs):
        self.maze = MAZES[maze]
        walls = np.array(self.cells("1"))
        middle, width = (walls.min(0) + walls.max(0)) / 2, np.ptp(walls, axis=0).max()
        super().__init__(
            str(d4rl_file("locomotion/assets/ant.xml")),
            frame_skip=5,
            observation_space=gym.spaces.Box(-np.inf, np.inf, (29,), np.float64),
            default_camera_config=dict(  # the whole maze from above, the start at the lower left
                distance=1.4 * width, azimuth=90.0, elevation=-89.9, lookat=np.array([*middle, 0])
            ),
            **kwargs,
        )
        self.action_space = gym.spaces.Box(-1, 1, (8,), np.float32)
        [self.goal_cell] = self.cells("G")
        self.goal = self.goal_cell

    def cells(self, kind: str) -> list[np.ndarray]:
        """Centres x, y of the cells of a kind, in metres; the start's, at (1, 1), is the origin."""
        return [
            SCALE * np.array([column - 1, row - 1])
            for row, line in enumerate(self.maze)
            for column, cell in enumerate(line)
            if cell == kind
        ]

    def specification(self) -> mujoco.MjSpec:
        """The ant, and a box of 4 x 4 x 2 m for each wall; it collides with them and the floor."""
        spec = super().specification()
        for number, (x, y) in enumerate(self.cells("1")):
            wall = spec.worldbody.add_geom(name=f"wall{number}", pos=[x, y, 1], conaffinity=1)
            wall.type, wall.size = mujoco.mjtGeom.mjGEOM_BOX, [SCALE / 2, SCALE / 2, 1]
        return spec

    def observe(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def reset_model(self) -> np.ndarray:
        # D4RL adds the goal's noise twice and only upwards: it lies 0 to 1.5 m beyond the centre.
        noise = self.np_random.uniform(0, 1, 2) + self.np_random.uniform(0, 0.5, 2)
        self.goal = np.maximum(self.goal_cell + noise, 0)
        qpos = self.init_qpos + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        qpos[3:7] /= np.linalg.norm(qpos[3:7])  # before MuJoCo 3.2 the engine did it
        self.set_state(qpos, 0.1 * self.np_random.standard_normal(self.model.nv))
        return self.observe()

    def _get_reset_info(self) -> dict:
        return {"goal": self.goal.copy()}

    def step(self, action):
        self.do_simulation(30 * np.clip(np.float64(action), -1, 1), self.frame_skip)
        success = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= 0.5)
        if self.render_mode == "human":
            self.render()
        info = {"success": success, "goal": self.goal.copy()}
        return self.observe(), float(success), success, False, info
