"""The paper's tasks as gymnasium environments, under the names of the datasets that belong to them.

    gym.make("benchmarks.tasks:antmaze-large-diverse-v2")

Registers the ids; the modules beside this one have the environments. OGBench's need no module of
ours: gym.make("ogbench:antmaze-large-singletask-v0").
"""

import gymnasium as gym

# D4RL's dataset of the same name, its environment, and the steps after which an episode is cut.
for maze in (
    "umaze",
    "umaze-diverse",
    "medium-play",
    "medium-diverse",
    "large-play",
    "large-diverse",
):
    limit = 700 if maze.startswith("umaze") else 1000
    kwargs = {"maze": maze.split("-")[0]}
    gym.register(f"antmaze-{maze}-v2", "benchmarks.antmaze:AntMaze", None, limit, kwargs=kwargs)
for hand, limit in (("pen", 100), ("door", 200), ("relocate", 200)):
    gym.register(f"{hand}-binary-v0", f"benchmarks.adroit:{hand.title()}", None, limit)
for name in ("complete", "partial", "mixed"):
    # Upstream D4RL cuts at 280 steps, the paper's fork of it at 1000.
    kwargs = {"tasks": name}
    gym.register(f"kitchen-{name}-v0", "benchmarks.kitchen:Kitchen", None, 1000, kwargs=kwargs)
for body, cls in (("hopper", "Hopper"), ("halfcheetah", "HalfCheetah"), ("walker2d", "Walker2d")):
    for data in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"):
        gym.register(f"{body}-{data}-v2", f"benchmarks.locomotion:{cls}", None, 1000)
