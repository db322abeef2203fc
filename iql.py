# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0",
#   "gymnasium-robotics==1.4.2", "mujoco==3.11.0", "h5py==3.16.0", "tyro==1.0.16",
#   "tensorboard==2.21.0", "matplotlib==3.11.2", "tqdm==4.70.1", "filelock==4.2.11"]
# ///
"""IQL, implicit Q-learning: pre-trained on a dataset, then fine-tuned online.

Two critics Q_i with slow copies Q'_i, a value V, a policy pi, a transition (s, a, r, s', d) of the
data; G, the discounted return that followed it there, is for the log alone. No loss needs Q of an
action that is not in the data: V, an expectile of Q over the data's actions, stands for the best of
them, and pi copies the data, the better actions more:

  A      = min_i Q'_i(s, a) - V(s)
  L(V)   = E |e - 1(A < 0)| A^2                       e: expectile
  L(pi)  = -E min(exp(beta A), 100) log pi(a|s)       beta: inverse temperature
  L(Q_i) = E (Q_i(s, a) - y)^2      with y = r + gamma (1 - d) V(s')

IQL:    Kostrikov et al. 2021, arXiv:2110.06169.
Code:   github.com/ikostrikov/implicit_q_learning, 09d7002, settles what the paper leaves open.
Run:    python iql.py                  the embedded task, or with --dataset and --env-id your own
Expect: pre-training ends with Q(s0) somewhat below what is obtained. Online what the policy could
        do is kept, and more is obtained.
"""

import copy
import hashlib
import importlib.metadata
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import namedtuple
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import filelock
import gymnasium as gym
import h5py
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

@dataclass
class Args:
    dataset: str = str(Path(__file__).parent / "benchmarks/data/pointmaze.hdf5")  # HDF5, D4RL name
    env_id: str = ""  # gymnasium id, module:id, or module: for the dataset's name; empty: its own
    seed: int = 0  # of weights, data order, exploration, episodes and evaluation
    offline_steps: int = 100_000  # pre-training, in gradient steps
    online_steps: int = 100_000  # fine-tuning, in environment steps; the last episode is finished
    eval_every_offline: int = 5_000  # gradient steps between evaluations
    eval_every_online: int = 2_000  # environment steps between evaluations
    eval_episodes: int = 20  # episodes per evaluation, from the same starts each time
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    threads: int = 1  # CPU threads of torch; more only help wide networks
    run_dir: str = ""  # empty: runs/<script>-<dataset>-s<seed>
    resume: str = ""  # folder of a run to continue; only --device may stand beside it

    gamma: float = 0.99  # discount per environment step, below 1
    reward_scale: float = 1.0  # r <- reward_scale * r + reward_bias, in data and environment
    reward_bias: float = 0.0  # see reward_scale
    failure_reward: float | None = None  # unscaled; an episode of it alone gets G = r / (1-gamma)
    infinite_horizon: bool = False  # G goes on at the last reward where an episode is cut short
    batch_size: int = 256  # transitions per gradient step
    offline_share: float = 0.5  # dataset's share of online batches; -1: one FIFO buffer of both
    buffer_size: int = 1_000_000  # transitions that the online, or common, buffer keeps
    utd: int = 1  # gradient steps per environment step
    tau: float = 0.005  # rate at which target critics follow the critics, per gradient step

    actor_hidden: tuple[int, ...] = (256, 256)  # widths of the policy's hidden layers
    critic_hidden: tuple[int, ...] = (256, 256)  # widths of a critic's hidden layers
    value_hidden: tuple[int, ...] = (256, 256)  # widths of the value's hidden layers
    actor_lr: float = 3e-4  # Adam's rate for the policy, the same in both phases
    critic_lr: float = 3e-4  # Adam's rate for the critics
    value_lr: float = 3e-4  # Adam's rate for the value
    expectile: float = 0.7  # e: at 0.5 V is the mean of Q over the data's actions, at 1 the maximum
    beta: float = 3.0  # inverse temperature, times the advantage; at 0 pi copies all data alike
    dropout: float = 0.0  # share of the policy's hidden units that a gradient step leaves out
    fixed_log_std: float | None = None  # a log-std for good, from -5 to 2; none: it is learned

# Chosen by how the dataset's name begins, up to a hyphen; any other name gets the defaults above.
ADROIT = dict(offline_steps=20_000, online_steps=1_000_000, eval_every_offline=2_000,
    failure_reward=-1.0, expectile=0.8, fixed_log_std=math.log(0.03))  # fmt: skip
SETTINGS = {
    "pointmaze": dict(offline_steps=6_000, online_steps=4_000, eval_every_offline=500,
        eval_every_online=250, gamma=0.98, reward_scale=20.0, batch_size=64, tau=0.01,
        actor_hidden=(64, 64), critic_hidden=(64, 64), value_hidden=(64, 64), beta=10.0),
    "antmaze": dict(offline_steps=1_000_000, online_steps=1_000_000, reward_bias=-1.0,
        eval_every_offline=50_000, failure_reward=0.0, expectile=0.9, beta=10.0),
    "kitchen": dict(offline_steps=500_000, online_steps=1_500_000, infinite_horizon=True,
        eval_every_offline=50_000, eval_every_online=5_000, offline_share=0.25, beta=0.5,
        dropout=0.1),
    "pen-binary": ADROIT | dict(online_steps=200_000), "door-binary": ADROIT,
    "relocate-binary": ADROIT}  # fmt: skip
OUTPUT_GAIN = math.sqrt(2)  # of the last layers' initial weights: the same as of the others

def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between; at first the weights are orthogonal and the biases 0."""
    layers = []
    for n_in, n_out in zip(widths, widths[1:]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        nn.init.orthogonal_(layers[-2].weight, math.sqrt(2))
        nn.init.zeros_(layers[-2].bias)
    nn.init.orthogonal_(layers[-2].weight, OUTPUT_GAIN)
    return nn.Sequential(*layers[:-1])

class Critic(nn.Module):
    """Two Q-functions, stacked along the first axis of every Q below."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: tuple[int, ...]):
        super().__init__()
        self.nets = nn.ModuleList(mlp(obs_dim + action_dim, *hidden, 1) for _ in range(2))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """n actions at each state: (B, obs), (B, n, act) -> (2, B, n)."""
        inputs = torch.cat([obs[:, None].expand(-1, actions.shape[1], -1), actions], -1)
        return torch.stack([net(inputs).squeeze(-1) for net in self.nets])

class Actor(nn.Module):
    """A Gaussian: its mean is squashed, its samples are not, and its std is the same at every s."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: tuple[int, ...], fixed: float | None):
        super().__init__()
        self.net = mlp(obs_dim, *hidden, action_dim)
        self.log_std = nn.Parameter(torch.full((action_dim,), fixed or 0.0), fixed is None)

    def forward(self, obs: Tensor, masks: tuple[Tensor, ...] = ()) -> tuple[Tensor, Tensor]:
        """(..., obs) -> (..., act), (act). Masks of dropout: (B, width) for each hidden layer."""
        x = obs
        for i, layer in enumerate(self.net):
            x = layer(x)
            if masks and i % 2:  # after the ReLU
                x = x * masks[i // 2]
        return x.tanh(), self.log_std.clamp(-5, 2)

@torch.no_grad()
def calibration(agent: "Agent", batch: "Batch", noise: dict) -> dict[str, Tensor]:
    """How calibrated the critics are: Q at s of the data's actions, of random ones and of pi's at s
    and s', and how the last compare with the data's return. For the log; no loss sees it."""
    states = torch.stack([batch.obs, batch.next_obs], 1)[:, :, None]
    mean, log_std = agent.actor(states)  # (B, 2, 1, act)
    policy_actions = (mean + log_std.exp() * noise["policy"]).clamp(-1, 1)  # as they are played
    candidates = [batch.actions[:, None], noise["random"], policy_actions.flatten(1, 2)]
    n = noise["random"].shape[1]
    q = agent.critic(batch.obs, torch.cat(candidates, 1))  # (2, B, 1 + n + 2n)
    q_data, q_random, q_policy = q.split([1, n, 2 * n], -1)
    metrics = {"q/data": q_data.mean(), "q/random": q_random.mean(), "q/policy": q_policy.mean()}
    metrics["calibration/gap"] = (q_policy - batch.mc_returns).mean()
    metrics["calibration/rate"] = (q_policy < batch.mc_returns).float().mean()
    return metrics

class Agent(nn.Module):
    def __init__(self, args: Args, obs_dim: int, action_dim: int, device: str):
        super().__init__()
        self.args, self.action_dim, self.device = args, action_dim, device
        self.actor = Actor(obs_dim, action_dim, args.actor_hidden, args.fixed_log_std)
        self.critic = Critic(obs_dim, action_dim, args.critic_hidden)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.value = mlp(obs_dim, *args.value_hidden, 1)
        self.to(device)
        value, policy, critics = (x.parameters() for x in (self.value, self.actor, self.critic))
        self.optimizers = {
            "value": torch.optim.Adam(value, args.value_lr, fused=True),
            "actor": torch.optim.Adam(policy, args.actor_lr, fused=True),
            "critic": torch.optim.Adam(critics, args.critic_lr, fused=True),
        }

    def advantage(self, batch: "Batch") -> Tensor:
        """A = min_i Q'_i(s, a) - V(s), (B, 1). The slow critics get no gradient."""
        q = self.critic_target(batch.obs, batch.actions[:, None]).amin(0)
        return q - self.value(batch.obs)

    def value_loss(self, batch: "Batch", noise: dict) -> tuple[Tensor, dict]:
        # Kostrikov et al. 2021: L(V) = E |e - 1(A < 0)| A^2. With e above 0.5 a V below Q costs
        # more than one above it, so V rises to the better actions' Q.
        advantage = self.advantage(batch)
        weights = (self.args.expectile - (advantage < 0).to(advantage)).abs()
        value_loss = (weights * advantage**2).mean()
        return value_loss, {"loss/value": value_loss}

    def actor_loss(self, batch: "Batch", noise: dict) -> tuple[Tensor, dict]:
        # Kostrikov et al. 2021: L(pi) = -E exp(beta A) log pi(a|s). Their code has the limit of
        # 100, without which one action's loss can be of any size.
        with torch.no_grad():
            weights = (self.args.beta * self.advantage(batch)).exp().clamp(max=100)  # (B, 1)
        masks = tuple(noise[key] for key in noise if key.startswith("dropout"))
        mean, log_std = self.actor(batch.obs, masks)
        pi = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
        actor_loss = -(weights * pi.log_prob(batch.actions).sum(-1, keepdim=True)).mean()

        # Effective sample size over B: 1 where all weights are the same, 1 / B where one is all.
        effective = weights.mean() ** 2 / (weights**2).mean()
        metrics = {"pi/effective": effective, "pi/entropy": pi.entropy().sum(-1).mean()}
        return actor_loss, metrics | {"loss/actor": actor_loss}

    def critic_loss(self, batch: "Batch", noise: dict) -> tuple[Tensor, dict]:
        # Kostrikov et al. 2021: L(Q_i) = E (Q_i(s, a) - y)^2 with y = r + gamma (1 - d) V(s'), for
        # which no action is needed at s'.
        with torch.no_grad():
            next_v = self.value(batch.next_obs)
            target_q = batch.rewards + self.args.gamma * (1 - batch.terminations) * next_v  # (B, 1)
        q_data = self.critic(batch.obs, batch.actions[:, None])  # (2, B, 1)
        td_loss = ((q_data - target_q) ** 2).mean((1, 2))  # (2,)
        return td_loss.sum(), {"loss/td": td_loss.mean()}

    def update(self, batch: "Batch", noise: dict) -> dict[str, Tensor]:
        """First V; policy and critics then learn from the new V; last, the slow critics follow."""
        metrics = calibration(self, batch, noise) if "policy" in noise else {}
        losses = {"value": self.value_loss, "actor": self.actor_loss, "critic": self.critic_loss}
        for name, loss_of in losses.items():
            loss, found = loss_of(batch, noise)
            self.optimizers[name].zero_grad()
            loss.backward()
            self.optimizers[name].step()
            metrics |= found
        with torch.no_grad():
            targets, critics = self.critic_target.parameters(), self.critic.parameters()
            torch._foreach_lerp_(list(targets), list(critics), self.args.tau)
        return {key: value.detach() for key, value in metrics.items()}

    def draw(self, batch_size: int, generator: torch.Generator, log=True) -> dict[str, Tensor]:
        """What an update draws, and what it needs to be logged; from outside, so that a test can
        fix it: masks of dropout, already divided by the share of units kept, and actions."""
        options, noise = dict(generator=generator, device=self.device), {}
        if self.args.dropout:
            kept = 1 - self.args.dropout
            for i, width in enumerate(self.args.actor_hidden):
                keep = torch.rand(batch_size, width, **options) < kept
                noise[f"dropout{i}"] = keep / kept
        if log:  # ten are enough for a mean
            noise["policy"] = torch.randn(batch_size, 2, 10, self.action_dim, **options)
            noise["random"] = 2 * torch.rand(batch_size, 10, self.action_dim, **options) - 1
        return noise

    @torch.no_grad()
    def act(self, obs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(..., obs) -> (..., act) in [-1, 1]: sampled with a generator, else the mode."""
        mean, log_std = self.actor(obs)
        if generator is None:
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=self.device)
        return (mean + log_std.exp() * noise).clamp(-1, 1)

# ==== Part II: the plumbing. Every script has the same, to the byte; a test keeps it so. ==========
HERE, SCRIPT = Path(__file__).resolve().parent, Path(__file__).name
LOG_EVERY, RUN = 100, {"folder": "...", "saved": "none new; is a run at work there?"}
PEEK = """import faulthandler, h5py, json, sys; faulthandler.dump_traceback_later(10, exit=True)
a = h5py.File(sys.argv[1]).attrs; found = {k: a[k] for k in a if k[:4] in ("env_", "ref_")}
print(json.dumps(found, default=lambda v: getattr(v, "decode", v.tolist)()))"""  # h5py may hang
# B transitions: obs, next_obs (B, obs), actions (B, act) in [-1, 1]; the others are columns (B, 1),
# to broadcast over sampled actions: rewards are scaled, a time limit is no termination.
Batch = namedtuple("Batch", "obs actions rewards next_obs terminations mc_returns")

def require(good: bool, problem: str) -> None:  # else the program ends: one line, status 2
    if not good:
        print("\n" * sys.stdout.isatty() + SCRIPT + ":", *problem[:999].split(), file=sys.stderr)
        sys.exit(2)

class ReplayBuffer:  # the dataset, and a ring of online rows; offline_share -1: both in the ring
    def __init__(self, args: Args, dataset: Tensor, obs_dim: int, action_dim: int, device: str):
        self.args, self.widths = args, [obs_dim, action_dim, 1, obs_dim, 1, 1]
        n = len(dataset) if args.offline_share < 0 else 0  # rows that begin the ring
        ring = np.zeros((max(args.buffer_size, n), dataset.shape[1]), np.float32)  # not yet memory
        self.ring, self.added = torch.from_numpy(ring).to(device), 0  # rows that ever went there
        self.add(dataset[:n])
        self.offline = dataset[n:].to(device, copy=n > 0)  # a view would keep the rest, too

    def add(self, rows: Tensor) -> None:
        slots = torch.arange(self.added, self.added + len(rows)) % len(self.ring)
        self.ring[slots] = rows.to(self.ring.device)
        self.added += len(rows)

    def sample(self, generator: torch.Generator) -> Batch:
        """Uniform with replacement; the offline share is fixed once there are online episodes."""
        size, n_ring = self.args.batch_size, min(self.added, len(self.ring))
        n_offline = int(size * max(self.args.offline_share, 0)) if n_ring else size
        options = dict(generator=generator, device=self.ring.device)
        offline = torch.randint(max(len(self.offline), 1), (n_offline,), **options)
        online = torch.randint(max(n_ring, 1), (size - n_offline,), **options)
        return Batch(*torch.cat([self.offline[offline], self.ring[online]]).split(self.widths, 1))

def returns_to_go(args: Args, rewards: np.ndarray, terminations: np.ndarray) -> np.ndarray:
    """G_t = r_t + gamma (1 - d_t) G_{t+1} of one episode: scaled rewards (T,) -> returns (T,). G is
    0 after the last step, or goes on at its reward (infinite_horizon); an episode of failure_reward
    alone never ends: -1, -1 gives -10, -10 with gamma 0.9 (as in the authors' replay_buffer.py)."""
    failure = np.float32(args.failure_reward or 0) * args.reward_scale + args.reward_bias
    if args.failure_reward is not None and (rewards == failure).all():
        return np.full(len(rewards), failure / (1 - args.gamma))
    returns = [float(rewards[-1:].sum()) / (1 - args.gamma) * args.infinite_horizon]
    for reward, termination in zip(rewards[::-1].tolist(), terminations[::-1].tolist()):
        returns.append(reward + args.gamma * (1 - termination) * returns[-1])
    return np.array(returns[:0:-1])

def pack(args: Args, obs, actions, rewards, next_obs, terminations) -> Tensor:
    """One episode's arrays, rewards unscaled -> rows (T, width) with the columns of Batch."""
    rewards = np.float32(rewards) * args.reward_scale + args.reward_bias
    mc_returns = returns_to_go(args, rewards, terminations)
    columns = [obs, actions, rewards[:, None], next_obs, terminations[:, None], mc_returns[:, None]]
    return torch.from_numpy(np.concatenate(columns, 1, dtype=np.float32))

def read_dataset(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays, a row for each transition, and attributes of a path, or what D4RL has of a name."""
    data, path, key, attributes = {}, name, "file", {}
    keys = "observations", "actions", "rewards", "terminals", "timeouts", "next_observations"
    try:
        if not os.path.isfile(name):  # what knows D4RL's names lies beside the script
            path, attributes = importlib.import_module("benchmarks.data.names").find(name)
        with open(path, "rb") as content, h5py.File(path) as file:
            attributes["sha256"] = hashlib.file_digest(content, "sha256").hexdigest()
            links = [k for k in file if not isinstance(file.get(k, getlink=True), h5py.HardLink)]
            require(not links, f"--dataset {path}: {links!r:.99} are links; copy what they mean")
            for key in [key for i, key in enumerate(keys) if i < 4 or key in file]:
                array, most = file[key], 25 * os.path.getsize(path)  # 100 times the file
                huge = max(math.prod(array.shape), math.prod(array.chunks or ())) > most
                zips = array.id.get_create_plist().get_nfilters() - array.shuffle - array.fletcher32
                if array.is_virtual or array.external or huge or zips > 1:
                    raise ValueError("in another file, or too huge for this one, or packed twice")
                data[key] = array.astype(np.float32)[()]  # half the memory of float64
        key, peek = "unreadable attributes env_* or ref_*", [sys.executable, "-c", PEEK, path]
        attributes |= json.loads(subprocess.run(peek, capture_output=True, process_group=0).stdout)
        low, high = attributes.get("ref_min_score", 0.0), attributes.get("ref_max_score", 1.0)
        require(-1e9 < low < high - 1e-6 < 1e9, f"--dataset {path}: ref_min_score not below max")
    except Exception as error:  # whatever h5py may raise about a damaged file
        require(False, f"--dataset {path}: {key}: {error!r}; see 'Your own data' in the README")
    return data, attributes

def load_episodes(args: Args, data: dict[str, np.ndarray], env: gym.Env) -> Tensor:
    """Whole episodes as rows (N, width), actions moved from the environment's box to [-1, 1]. As in
    the authors' code a terminal or a timeout ends one (without timeouts the environment's limit);
    what has no successor is left out: a timeout's step, the last row, an open tail."""
    where, box, n = f"--dataset {args.dataset}:", env.env.action_space, data["rewards"].size
    shapes = {"observations": env.observation_space.shape, "actions": box.shape}
    for key, array in data.items():
        shape = (n, *shapes.get(key.removeprefix("next_"), ()))
        array = data[key] = array[:, 0] if array.shape == (*shape, 1) else array
        good = n and array.shape == shape and -1e9 < array.min() <= array.max() < 1e9
        require(good, f"{where} {key} {array.shape} must be {shape} finite numbers; see --env-id")
    obs, actions, terminations = data["observations"], data["actions"], data["terminals"] != 0
    outside = ((actions < box.low - 1e-4) | (actions > box.high + 1e-4)).mean()
    require(outside < 0.5, f"{where} {outside:.0%} of actions outside the action box; rescale them")
    if outside:
        print(f"{where} {outside:.2%} of the numbers of actions are clipped to the action box")
    steps, limit = np.arange(n), env.spec.max_episode_steps or n + 1
    steps -= np.maximum.accumulate(np.roll(terminations, 1) * steps)  # since the last terminal
    timeouts = data.get("timeouts", steps % limit == limit - 1) != 0
    ends = np.flatnonzero(terminations | timeouts) + 1
    timeouts = np.append(timeouts[:-1], True) & ~terminations  # the last row, too
    starts, stops = np.append(0, ends)[:-1], ends - timeouts[ends - 1]
    sizes, following = stops - starts, data.get("next_observations", obs[[*range(1, n), -1]])
    require(sizes.sum(), f"{where} no whole episode; mark their ends in terminals or timeouts")
    rows = torch.empty(sizes.sum(), 2 * obs.shape[1] + actions.shape[1] + 3)
    for at, part in zip(map(slice, starts, stops), rows.split(sizes.tolist())):
        scaled = 2 * (actions[at] - box.low) / (box.high - box.low) - 1
        columns = data["rewards"][at], following[at], terminations[at]
        part[:] = pack(args, obs[at], scaled.clip(-0.99999, 0.99999), *columns)
    data.clear()  # the rows have it all, and it can be gigabytes
    return rows

def make_env(args: Args, attributes: dict) -> gym.Env:
    """That of --env-id, or the dataset's own: flat observations, actions in [-1, 1]."""
    own = attributes.get("env_id", f"benchmarks.envs:{Path(args.dataset).stem}")
    env_id, kwargs = args.env_id or own, attributes.get("env_kwargs", "{}")
    try:
        env = gym.wrappers.FlattenObservation(gym.make(env_id, **json.loads(kwargs)))
        env.reset(seed=0)
    except BaseException as error:  # whatever a module or an environment may raise, SystemExit too
        require(False, f"--env-id {env_id} {kwargs}: {error!r}; give id or module:id on PYTHONPATH")
    obs_box, box = env.observation_space, env.action_space
    good = isinstance(box, gym.spaces.Box) and box.is_bounded() and len(box.shape) == 1
    good = good and (box.low < box.high).all() and obs_box.shape
    require(good, f"--env-id {env_id}: {obs_box}, {box}; needed are boxes, actions' with bounds")
    return gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))

def seed_of(args: Args, purpose: str, k: int = 0) -> int:  # so no generator's state can be lost
    return int(np.random.SeedSequence([args.seed, k, *purpose.encode()]).generate_state(1)[0])

def run_episode(agent: "Agent", env: gym.Env, k: int, generator=None) -> tuple[tuple, float]:
    """Plays the policy's mode, in evaluation, or with a generator samples: obs, actions, rewards,
    next_obs and terminations, T rows each, and the highest success that was told, else nan."""
    name, steps, success, over = "episode" if generator else "evaluation", [], math.nan, False
    try:
        obs, _ = env.reset(seed=seed_of(agent.args, name, k))
        while not over:
            state = torch.as_tensor(obs, dtype=torch.float32, device=agent.device)
            action = agent.act(state.view(env.observation_space.shape), generator).cpu().numpy()
            next_obs, reward, terminated, truncated, info = env.step(action)
            steps.append((obs, action, float(reward), next_obs, float(terminated)))
            for key in info.keys() & {"success", "is_success", "goal_achieved"}:
                success = np.fmax(success, float(info[key]))
            numbers = np.append([obs, next_obs], [reward, terminated, np.nan_to_num(success)])
            if not np.abs(numbers).max() < 1e9 or "signal" in RUN or len(steps) == 100_000:
                raise ValueError(f"no end, or beyond 1e9: {numbers.min():g} to {numbers.max():g}")
            obs, over = next_obs, bool(terminated or truncated)
    except BaseException as error:  # whatever an environment may raise
        raise InterruptedError(f"{name} {k}, after {len(steps)} steps: {error!r}") from error
    return tuple(np.array(column) for column in zip(*steps)), success

def evaluate(agent: "Agent", env: gym.Env, attributes: dict) -> dict[str, float]:
    """Means over episodes with the same seeds each time. score: the success, if any episode told
    it, else the return between the dataset's reference scores. q_s0 foretells discounted_return."""
    args, results, low = agent.args, [], attributes.get("ref_min_score", 0.0)
    for k in range(args.eval_episodes):
        (obs, _, rewards, _, _), success = run_episode(agent, env, k)
        start = torch.as_tensor(obs[:1], dtype=torch.float32, device=agent.device)
        q_s0 = agent.critic(start, agent.act(start)[:, None]).min().item()
        scaled = rewards * args.reward_scale + args.reward_bias
        obtained = (scaled * args.gamma ** np.arange(len(scaled))).sum()
        normalised = (rewards.sum() - low) / (attributes.get("ref_max_score", 1.0) - low)
        results.append((success, normalised, rewards.sum(), obtained, q_s0))
    columns, keys = np.array(results).T, ("success", "score", "return", "discounted_return", "q_s0")
    columns[:2] = columns[:2] if np.isnan(columns[0]).all() else np.nan_to_num(columns[0])
    return dict(zip(keys, columns.mean(1).tolist()))

def parse_args(argv: list[str]) -> tuple[Args, dict]:
    """The settings, checked, and the record of the run that args.json has or is to have."""
    args = tyro.cli(Args, args=[word for word in argv if word not in ("-h", "--help")])
    flags = {word.split("=")[0] for word in argv if word.startswith("--")}
    path, resume = Path(args.dataset), "--resume" in flags and not {"-h", "--help"} & {*argv}
    row = next((r for r in SETTINGS if f"{path.stem}-".startswith(r + "-")), "own")
    if resume:
        others = " ".join(flags - {"--resume", "--device"})
        require(not others, f"--resume takes all settings from the run; leave out {others}")
        try:
            record = json.loads((Path(args.resume or "-") / "args.json").read_text())
            script, row, _, _ = (record[k] for k in ("script", "row", "sha256", "dataset_sha256"))
            require(script == SCRIPT, f"--resume {args.resume}: made by {script}; go on with that")
            args = Args(**record["settings"] | {f[2:]: getattr(args, f[2:]) for f in flags})
        except Exception as error:  # whatever may stand in args.json
            require(False, f"--resume {args.resume}: not the folder of a run ({error!r:.99})")
    else:
        args = tyro.cli(Args, args=argv, default=Args(**SETTINGS.get(row, {})))
        args.dataset = str(path.resolve() if os.path.isfile(path) else path)
        args.run_dir = args.run_dir or f"runs/{Path(SCRIPT).stem}-{path.stem}-s{args.seed}"
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        git = subprocess.getoutput(f"git -C '{HERE}' describe --always --dirty --abbrev=40")
        record = {"script": SCRIPT, "row": row, "settings": asdict(args), "commit": git}
        found = importlib.metadata.distributions()
        record["versions"] = {d.name: d.version for d in found} | {"python": sys.version}
        record["hardware"] = [os.cpu_count(), torch.backends.cpu.get_cpu_capability(), gpu]
    digest = hashlib.sha256(json.dumps(record["settings"]).encode()).hexdigest()
    require(record.setdefault("sha256", digest) == digest, f"{args.resume}/args.json: edited; undo")
    limits = dict(gamma=(0, 0.99999), tau=(1e-6, 1), dropout=(0, 0.99), expectile=(0, 1))
    limits |= dict(awac_lambda=(1e-6, 1e9), fixed_log_std=(-5, 2), offline_share=(-1, 1))
    for name, value in vars(args).items():
        low = 0 if name.endswith(("seed", "steps", "lr", "weight", "beta", "decay")) else 1
        high = 1e4 if name.endswith(("hidden", "actions", "threads", "batch_size")) else 1e9
        low, high = limits.get(name, (-1e9 if low and type(value) is float else low, high))
        good = isinstance(value, str | bool | None) or np.all(np.clip(value, low, high) == value)
        require(good, f"--{name.replace('_', '-')} {value}: must lie from {low:g} to {high:g}")
    require(args.offline_share in (-1, abs(args.offline_share)), "--offline-share: -1 or from 0 on")
    require(args.device != "cuda" or torch.cuda.is_available(), "--device cuda: no CUDA; use cpu")
    return args, record

def write(path: Path, content: bytes) -> None:  # all or nothing; a previous checkpoint is kept
    part = path.with_suffix(".tmp")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.suffix == ".pt" and path.exists():
            os.replace(path, path.with_suffix(".previous"))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

def train(agent: "Agent", buffer: ReplayBuffer, env, attributes, done, writer, save) -> None:
    """Both phases. x, gradient steps plus online environment steps, is the axis of all logs."""
    args, generator, first, began = agent.args, torch.Generator(agent.device), done.x, time.time()
    end, total, saved = args.offline_steps, args.offline_steps + args.online_steps, began
    looks = [*range(0, end, args.eval_every_offline), *range(end, total, args.eval_every_online)]
    while "signal" not in RUN:
        x, fine_tuning, log = done.x, done.x >= end, (done.x + 1) % LOG_EVERY == 0
        due = end + done.env_steps - x  # steps to train before the next episode
        if look := x >= done.next_eval and (due == 0 or not fine_tuning):
            result = evaluate(agent, env, attributes)
            rewards = [part[:, sum(buffer.widths[:2])] for part in (buffer.offline, buffer.ring)]
            result["q_bound"] = torch.cat(rewards).abs().max().item() / (1 - args.gamma)
            done.evals.append((x, result))
            if scores := [past["score"] for at, past in done.evals if at > end]:
                result["dip"] = min(scores) - done.evals[-len(scores) - 1][1]["score"]
                result["regret"] = 1 - sum(scores) / len(scores)
            if abs(result["q_s0"]) > result["q_bound"] and vars(done).setdefault("explode", x) == x:
                print(f"{SCRIPT}: Q(s0) explodes: beyond q_bound from step {x}", file=sys.stderr)
            done.rows |= {f"eval/{key}": value for key, value in result.items()}
            done.next_eval = min([step for step in (*looks, total) if step > x], default=x + 1)
        for key, value in done.rows.items():
            writer.add_scalar(key, value, x)
        done.rows, done.logged = {}, x
        if look or (x % LOG_EVERY == 0 and sys.stdout.isatty()):
            at, of, since = (k + (args.utd - 1) * max(k - end, 0) for k in (x, total, first))
            last, rate = done.evals[-1][1], (at - since) / (time.time() - began) or math.nan
            line = f"{'offline' if x <= end else 'online':7} {x:>7}/{total}  {rate:4.0f} updates/s"
            line += f"  {max(of - at, 0) / rate / 60:5.1f} min left  score {last['score']:.2f}"
            line += f"  success {last['success']:.2f}  Q(s0) {last['q_s0']:6.1f}"
            line = f"{line} of {last['discounted_return']:6.1f}".replace("nan", "  ?")
            print(line if look else line[:79], end="\n" if look else "\r", flush=True)
        if look or time.time() - saved > min(60, saved - began):  # so that any life gets on
            save()
            saved = time.time()
        if fine_tuning and due == 0:
            if done.env_steps >= args.online_steps:
                return
            generator.manual_seed(seed_of(args, "exploration", done.episodes))
            episode, _ = run_episode(agent, env, done.episodes, generator)
            buffer.add(pack(args, *episode))  # it is over: now its returns are known
            done.rows["train/return"] = float(episode[2].sum())
            done.env_steps, done.episodes = done.env_steps + len(episode[2]), done.episodes + 1
        for k in range(args.utd if fine_tuning else 1):
            batch = buffer.sample(generator.manual_seed(seed_of(args, "batch", x * args.utd + k)))
            generator.manual_seed(seed_of(args, "noise", x * args.utd + k))
            metrics = agent.update(batch, agent.draw(args.batch_size, generator, log))
            bad = [key for key, value in metrics.items() if key[0] in "lq" and not value.isfinite()]
            if bad:
                raise FloatingPointError(f"{', '.join(bad)} not finite in step {x + 1}")
        done.x, done.rows = x + 1, done.rows | (metrics if log else {})
    raise InterruptedError

def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: RUN.update(signal=signal.Signals(number).name))
    args, record = parse_args(sys.argv[1:])
    data, attributes = read_dataset(args.dataset)
    same = record.setdefault("dataset_sha256", attributes["sha256"]) == attributes["sha256"]
    require(same, f"{args.dataset} changed; restore it")
    if args.env_id and args.env_id != attributes.get("env_id", args.env_id):
        attributes = {}  # arguments and scores of another environment
    env = make_env(args, attributes)
    torch.set_num_threads(args.threads)
    torch.manual_seed(seed_of(args, "weights"))
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    agent = Agent(args, *sizes, device)
    buffer = ReplayBuffer(args, load_episodes(args, data, env), *sizes, device)
    RUN["folder"] = run_dir = Path(args.resume or args.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    _lock, RUN["saved"] = filelock.FileLock(run_dir / "lock").acquire(timeout=0), "none new"
    begun = not args.resume and [*run_dir.glob("args.json"), *run_dir.glob("checkpoint.p*")]
    require(not begun, f"--run-dir {run_dir}: holds a run; take another, or --resume {run_dir}")
    if not args.resume:
        write(run_dir / "args.json", json.dumps(record, indent=2).encode())
    print(f"{SCRIPT}: row '{record['row']}', {device}, {run_dir}", flush=True)
    done = SimpleNamespace(x=0, env_steps=0, episodes=0, next_eval=0, evals=[], rows={}, logged=-1)
    checkpoint, parts = run_dir / "checkpoint.pt", {"agent": agent, **agent.optimizers}
    files = [path for path in (checkpoint, checkpoint.with_suffix(".previous")) if path.exists()]
    for path in files:  # the last 32 bytes are a hash of the others
        content = path.read_bytes()
        if intact := hashlib.sha256(content[:-32]).digest() == content[-32:]:
            break
        print(f"{SCRIPT}: {path} is damaged", file=sys.stderr)
    if files:
        require(intact, f"delete {run_dir}/checkpoint.* to begin again")
        try:
            state = torch.load(io.BytesIO(content), device, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            vars(done).update(state["done"])
            buffer.added += done.env_steps - len(state["ring"])
            buffer.add(state["ring"])
        except Exception as error:  # intact, so it stays as it is
            require(False, f"{path} is not of this script, or memory lacks: {error!r}")
        path.replace(checkpoint)  # the previous one in the place of a damaged one
        RUN["saved"] = f"step {done.x}, see --resume"

    def save() -> None:
        checked = [*agent.parameters(), torch.tensor([past["q_s0"] for _, past in done.evals])]
        if not all(tensor.isfinite().all() for tensor in checked):
            raise FloatingPointError(f"a weight or Q(s0) not finite after step {done.x}")
        writer.flush()
        online = torch.arange(-min(done.env_steps, len(buffer.ring)), 0) + buffer.added
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"done": vars(done), "ring": buffer.ring[online % len(buffer.ring)]}
        torch.save(state, content := io.BytesIO())
        write(checkpoint, content.getvalue() + hashlib.sha256(content.getbuffer()).digest())
        RUN["saved"] = f"step {done.x}, see --resume"

    writer = SummaryWriter(run_dir, purge_step=done.logged + 1)  # what a killed run did beyond
    try:
        train(agent, buffer, env, attributes, done, writer, save)
    except InterruptedError as error:
        save()
        require(False, f"{RUN.get('signal', error)}; saved, go on with --resume {run_dir}")
    writer.close()
    *_, before = [result for x, result in done.evals if x <= args.offline_steps]
    summary = {"before": before, "after": done.evals[-1][1]}
    write(run_dir / "summary.json", json.dumps(summary, indent=2).replace("NaN", "null").encode())
    for phase, result in summary.items():
        print(f"{phase:6}", *(f"{key} {value:.2f}" for key, value in result.items()), sep="  ")
    print(f"curves: python benchmarks/plot.py {run_dir}", flush=True)
    if (plot := HERE / "benchmarks" / "plot.py").exists():
        subprocess.run([sys.executable, plot, run_dir])

if __name__ == "__main__":
    threading.excepthook = lambda *_: None  # TensorBoard's thread: main gets its error, too
    try:
        main()
    except Exception as error:
        text = str(error).replace("enforce fail", "no memory") or repr(error)
        told = "memory" in text or "writer." in traceback.format_exc()  # TensorBoard's
        if not told and not isinstance(error, OSError | MemoryError | FloatingPointError):
            raise  # a mistake in the code: show where
        require(False, f"--run-dir {RUN['folder']}: {text}; last good checkpoint: {RUN['saved']}")
