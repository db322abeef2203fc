"""The paper's tasks as gymnasium environments, under the names of the datasets that belong to them.

    gym.make("benchmarks.envs:antmaze-large-diverse-v2")

Registers the ids; the modules beside this one have the environments. OGBench's need no module of
ours: gym.make("ogbench:antmaze-large-singletask-v0").
"""

import gymnasium as gym

NAMES = []  # the ids that are registered here


def register(name: str, entry_point: str, limit: int, **kwargs) -> None:
    """limit: steps after which an episode is cut."""
    gym.register(name, f"{__name__}.{entry_point}", max_episode_steps=limit, kwargs=kwargs)
    NAMES.append(name)


for data in "umaze umaze-diverse medium-play medium-diverse large-play large-diverse".split():
    maze = data.split("-")[0]
    register(f"antmaze-{data}-v2", "antmaze:AntMaze", 700 if maze == "umaze" else 1000, maze=maze)
register("pen-binary-v0", "adroit:Pen", 100)
register("door-binary-v0", "adroit:Door", 200)
register("relocate-binary-v0", "adroit:Relocate", 200)
for data in ("complete", "partial", "mixed"):
    # The horizon of the paper's fork of D4RL; D4RL itself has 280.
    register(f"kitchen-{data}-v0", "kitchen:Kitchen", 1000, tasks=data)
for body, name in (("hopper", "Hopper"), ("halfcheetah", "HalfCheetah"), ("walker2d", "Walker2d")):
    for data in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"):
        register(f"{body}-{data}-v2", f"locomotion:{name}", 1000)
