"""D4RL's Franka kitchen on today's MuJoCo: an arm is to do four things, in any order.

    gym.make("benchmarks.envs:kitchen-complete-v0")

Three tasks: complete and partial are the same (microwave, kettle, light switch, slide cabinet) and
differ in D4RL's data; mixed has the bottom burner in place of the cabinet. Observation, noise,
controller, goals and start follow D4RL's source (github.com/Farama-Foundation/D4RL, 89141a6),
reward and horizon the paper's fork of it (github.com/nakamotoo/D4RL, d234792): at every step the
number of things done so far, and no end but the limit of 1000 steps. gymnasium-robotics'
FrankaKitchen-v1 is another task on the same model, which is used from there.

legacy_contacts (see legacy.py) is on unless asked otherwise; legacy_capsules changes nothing, since
no body here is made of capsules alone with an inertia that is left to the engine.
"""

import importlib.util
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

from benchmarks.envs.old_engine import LegacyPhysics

MODEL = "envs/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"
FIRST = ("microwave", "kettle", "light switch")
TASKS = {
    "complete": (*FIRST, "slide cabinet"),
    "partial": (*FIRST, "slide cabinet"),
    "mixed": (*FIRST, "bottom burner"),
}
GOALS = {  # where in the observation, and the values that count as done
    "bottom burner": (slice(11, 13), (-0.88, -0.01)),
    "light switch": (slice(17, 19), (-0.69, -0.05)),
    "slide cabinet": (slice(19, 20), (0.37,)),
    "microwave": (slice(22, 23), (-0.75,)),
    "kettle": (slice(23, 30), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
NEAR = 0.3  # distance of a thing's values from its goal below which it is done

# The half-widths of the noise on the 30 positions: a tenth of the amplitudes in D4RL's config.
ARM, SLIDE, BUTTON, HINGE = 0.01, 5e-4, 5e-5, 0.01
NOISE = [ARM] * 9 + [SLIDE] * 2 + [BUTTON] * 6 + [SLIDE] * 3 + [HINGE] * 3 + [SLIDE] * 3
NOISE = np.array(NOISE + [HINGE] * 3 + [SLIDE])

# Positions that the controller may ask for: seven joints in radians, two fingers in metres.
LOWEST = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0])
HIGHEST = np.array([2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04])
SPEED = 2.0  # of a joint at action 1, per second


START = np.array(
    [
        0.148388023,
        -1.76848573,
        1.84390296,
        -2.4768576,
        0.260252026,
        0.712533105,
        1.59515394,
        0.0479267505,
        0.0371350919,
        -2.6627985e-4,
        -5.18043486e-5,
        3.1287722e-5,
        -4.51199853e-5,
        -3.90842156e-6,
        -4.22629655e-5,
        6.28065475e-5,
        4.04984708e-5,
        4.62730939e-4,
        -2.26906415e-4,
        -4.65501369e-4,
        -6.44129196e-3,
        -1.77048263e-3,
        1.08009684e-3,
        -0.26939744,
        0.350383255,
        1.61944683,
        1.00618764,
        4.0639512e-3,
        -6.62095997e-3,
        -2.68278933e-4,
    ]
)


class Kitchen(LegacyPhysics, MujocoEnv):
    """Observation (60,): positions of arm and fingers (9), of the things (21), both with noise, and
    the goal (30), 0 where nothing is asked. Action (9,) in [-1, 1]: velocities. A step is 0.08 s.

    The noise enters more than the observation: the controller adds to the observed positions, and
    whether something is done is judged by the observed ones.

    info: success, the share of the four things done so far, which never falls; completed, their
    names.

    Args:
        tasks: complete, partial or mixed.
        noise: of the observation, as a multiple of D4RL's; 0 for a replay.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 12}

    def __init__(self, tasks: str = "complete", noise: float = 1.0, **kwargs):
        self.tasks, self.noise, self.completed = TASKS[tasks], noise, set()
        self.goal = np.zeros(30)
        for task in self.tasks:
            where, values = GOALS[task]
            self.goal[where] = values
        package = Path(importlib.util.find_spec("gymnasium_robotics").origin).parent
        view = dict(distance=2.2, azimuth=70.0, elevation=-35.0, lookat=np.array([-0.2, 0.5, 2.0]))
        super().__init__(
            str(package / MODEL),
            frame_skip=40,
            observation_space=gym.spaces.Box(-8, 8, (60,), np.float64),
            default_camera_config=view,
            **kwargs,
        )
        self.action_space = gym.spaces.Box(-1, 1, (9,), np.float32)
        self.init_qpos, self.init_qvel = START.copy(), np.zeros(self.model.nv)
        self.init_qpos[26:30] /= np.linalg.norm(START[26:30])  # before MuJoCo 3.2 the engine did it

    def specification(self) -> mujoco.MjSpec:
        spec = super().specification()
        for geom in spec.geoms:  # D4RL's pedestal under the arm is only to be seen
            if geom.type == mujoco.mjtGeom.mjGEOM_CYLINDER and np.isclose(geom.size[1], 0.9):
                geom.contype = geom.conaffinity = 0
        return spec

    def observe(self) -> np.ndarray:
        noise = self.noise * NOISE * self.np_random.uniform(-1, 1, 30)
        self.observed = self.data.qpos + noise
        return np.concatenate([self.observed, self.goal])

    def reset_model(self) -> np.ndarray:
        self.completed = set()
        self.set_state(self.init_qpos, self.init_qvel)
        return self.observe()

    def step(self, action):
        target = self.observed[:9] + SPEED * np.clip(np.float64(action), -1, 1) * self.dt
        self.do_simulation(np.clip(target, LOWEST, HIGHEST), self.frame_skip)
        obs = self.observe()
        for task in self.tasks:
            where, values = GOALS[task]
            if np.linalg.norm(self.observed[where] - values) < NEAR:
                self.completed.add(task)
        if self.render_mode == "human":
            self.render()
        info = {
            "success": len(self.completed) / len(self.tasks),
            "completed": sorted(self.completed),
        }
        return obs, float(len(self.completed)), False, False, info
