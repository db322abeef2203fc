# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "gymnasium-robotics==1.4.2",
#   "mujoco==3.11.0", "h5py==3.16.0", "tyro==1.0.16", "tensorboard==2.21.0", "matplotlib==3.11.2",
#   "tqdm==4.70.1", "filelock==4.2.11"]
# ///
"""CQL, conservative Q-learning: pre-trained on a dataset, then fine-tuned online.

There are two critics Q_i with slow copies Q'_i and a policy pi with a learned temperature alpha, as
in SAC. A transition is (s, a, r, s', d), with d = 1 where the task ended; G is the discounted
return from (s, a) to the end of its episode. w is the weight of a penalty on Q-values of actions
that are not in the data:

  y      = r + gamma (1 - d) max_a' min_i Q'_i(s', a')                        a' ~ pi(.|s')
  L(Q_i) = E (Q_i(s, a) - y)^2 + w E [log sum_a' exp(Q_i(s, a') - log mu(a')) - Q_i(s, a)]
           with a' ~ mu: uniform, pi(.|s) and pi(.|s'), all of them judged at s
  L(pi)  = E [alpha log pi(a|s) - min_i Q_i(s, a)]                            a ~ pi(.|s)

CQL alone pushes the Q-values of pi's actions far below any true return. As they rise again in
fine-tuning, whatever rises first replaces the good policy. Calibrated means: the push ends at G.

CQL:    Kumar et al. 2020, arXiv:2006.04779v3.  Cal-QL: Nakamoto et al. 2023, arXiv:2303.05479v4.
The authors' code settles what the papers leave open: github.com/nakamotoo/Cal-QL, ac6eafe.
Run:    python cql.py                  the small task, or with --dataset and --env-id your own
Expect: after pre-training Q(s0), the forecast for an episode's start, lies far below the worst
        possible return. Online it rises, the policy follows what rises first, and the score drops.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, NoReturn

import filelock
import gymnasium as gym
import h5py
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# ==== Settings ====================================================================================


@dataclass
class Args:
    dataset: str = "pointmaze"  # an HDF5 file, or a name: pointmaze or one of D4RL's
    env_id: str = ""  # gymnasium id, or module:id; empty: the environment of the dataset
    seed: int = 0  # of weights, batches, exploration, episodes and evaluation
    offline_steps: int = 100_000  # pre-training, in gradient steps
    online_steps: int = 100_000  # fine-tuning, in environment steps; ends with an episode
    eval_every_offline: int = 5_000  # gradient steps between evaluations
    eval_every_online: int = 2_000  # environment steps between evaluations
    eval_episodes: int = 20  # episodes per evaluation, from the same starts each time
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    threads: int = 1  # CPU threads of torch; more only help wide networks
    run_dir: str = ""  # folder of the run; empty: runs/<script>-<dataset>-s<seed>
    resume: str | None = None  # folder of a run to continue with its own settings
    pretrained: str | None = None  # folder of a run: fine-tune from the end of its pre-training
    bf16: bool = False  # critics in bfloat16, but for their last layer; faster where they are wide
    cudagraphs: bool = False  # each update as one CUDA graph: the same work with less Python
    track: bool = False  # log to Weights & Biases as well (pip install wandb)

    gamma: float = 0.99  # discount per environment step, below 1
    reward_scale: float = 1.0  # r <- reward_scale * r + reward_bias, in data and environment
    reward_bias: float = 0.0  # see reward_scale
    failure_reward: float | None = None  # unscaled; with no other it fails forever: returns_to_go
    infinite_horizon: bool = False  # G repeats the last reward forever after a cut
    normalize_observations: bool = False  # to mean 0 and std 1 over the dataset
    batch_size: int = 256  # transitions per gradient step
    offline_share: float = 0.5  # dataset's share of online batches; -1: one ring of both
    buffer_size: int = 1_000_000  # transitions that the ring keeps; with -1 at least the dataset
    utd: int = 1  # gradient steps per environment step
    tau: float = 0.005  # rate at which target critics follow the critics, per gradient step

    actor_hidden: tuple[int, ...] = (256, 256)  # widths of the policy's hidden layers
    critic_hidden: tuple[int, ...] = (256, 256, 256, 256)  # widths of a critic's hidden layers
    actor_lr: float = 1e-4  # Adam's rate for policy and temperature
    critic_lr: float = 3e-4  # Adam's rate for critics and Lagrange factor
    cql_weight: float = 5.0  # w, the weight of the conservative penalty
    n_actions: int = 10  # actions sampled from each of uniform, pi(.|s) and pi(.|s')
    importance_sampling: bool = True  # subtract log mu; off: Q(s, a) joins the sum instead
    max_target_backup: bool = True  # y takes the best of n_actions; off: a single action
    target_entropy: float = -1.0  # entropy that alpha holds pi at, per action dimension
    lagrange_gap: float | None = None  # holds the [...] of L(Q_i) here, by a factor on w

    def __post_init__(self):
        if self.bf16 and min(self.critic_hidden, default=0) < 256:
            raise ValueError(
                "--bf16: slows down critics with layers narrower than 256; leave it out"
            )
        at_least(self, 1, "eval_every_offline", "eval_every_online", "eval_episodes", "threads")
        at_least(self, 1, "batch_size", "buffer_size", "utd", "actor_hidden", "critic_hidden")
        at_least(self, 1, "n_actions")
        at_least(self, 0, "seed", "offline_steps", "online_steps", "actor_lr", "critic_lr")
        between(self, 0, 0.99999, "gamma")
        between(self, 1e-6, 1, "tau")
        if self.offline_share != -1 and not 0 <= self.offline_share <= 1:
            raise ValueError("--offline-share: must be from 0 to 1, or -1 for a common buffer")


ADROIT = dict(
    offline_steps=20_000,
    online_steps=1_000_000,
    eval_every_offline=2_000,
    reward_scale=10.0,
    reward_bias=5.0,
    failure_reward=-1.0,
    cql_weight=1.0,
    actor_hidden=(512, 512),
    critic_hidden=(512, 512, 512),
)
# A row applies to the dataset of that name and to names that continue it with a hyphen, such as
# antmaze-umaze-v2; others get the defaults above. The values are those of the public code named on
# top, but for pointmaze, the project's own small task.
SETTINGS = {
    "pointmaze": dict(
        offline_steps=6_000,
        online_steps=4_000,
        eval_every_offline=500,
        eval_every_online=250,
        gamma=0.98,
        reward_scale=20.0,
        batch_size=64,
        tau=0.01,
        actor_hidden=(64, 64),
        critic_hidden=(64, 64),
        actor_lr=3e-4,
        critic_lr=5e-4,
        n_actions=4,
        max_target_backup=False,
        target_entropy=0.125,
    ),
    "antmaze": dict(
        offline_steps=1_000_000,
        online_steps=1_000_000,
        eval_every_offline=50_000,
        reward_scale=10.0,
        reward_bias=-5.0,
        failure_reward=0.0,
        lagrange_gap=0.8,
    ),
    "kitchen": dict(
        offline_steps=500_000,
        online_steps=1_500_000,
        eval_every_offline=50_000,
        eval_every_online=5_000,
        infinite_horizon=True,
        offline_share=0.25,
        actor_hidden=(512, 512, 512),
        critic_hidden=(512, 512, 512),
        importance_sampling=False,
    ),
    "pen-binary": ADROIT | dict(online_steps=200_000),
    "door-binary": ADROIT,
    "relocate-binary": ADROIT,
}

# ==== Networks ====================================================================================

OUTPUT_GAIN = 0.01  # scales the last layer's initial weights: every output starts near 0


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

    def __init__(self, obs_dim: int, action_dim: int, hidden: tuple[int, ...], bf16: bool):
        super().__init__()
        self.bf16 = bf16
        self.nets = nn.ModuleList(mlp(obs_dim + action_dim, *hidden, 1) for _ in range(2))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """n actions at each state: (B, obs), (B, n, act) -> (2, B, n)."""
        inputs = torch.cat([obs[:, None].expand(-1, actions.shape[1], -1), actions], -1)
        return torch.stack([self.q_of(net, inputs).squeeze(-1) for net in self.nets])

    def q_of(self, net: nn.Sequential, inputs: Tensor) -> Tensor:
        """One of the two. With --bf16 the last layer alone keeps its precision: bfloat16 has 8
        significant bits, so that Q-values near 100 would be multiples of 0.5."""
        if not self.bf16:
            return net(inputs)
        with torch.autocast(inputs.device.type, torch.bfloat16):
            hidden = net[:-1](inputs)
        return net[-1](hidden.to(inputs.dtype))


class Actor(nn.Module):
    """Mean and log-std of the Gaussian under the tanh; two learned scalars adjust the log-std."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: tuple[int, ...]):
        super().__init__()
        self.net = mlp(obs_dim, *hidden, 2 * action_dim)
        self.log_std_multiplier = nn.Parameter(torch.tensor(1.0))
        self.log_std_offset = nn.Parameter(torch.tensor(-1.0))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(..., obs) -> (..., act), (..., act)."""
        mean, log_std = self.net(obs).chunk(2, -1)
        return mean, (self.log_std_multiplier * log_std + self.log_std_offset).clamp(-20, 2)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(u) with u = mean + std * noise, and log pi(a|s): (..., act), (...)."""
    u = mean + log_std.exp() * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2) from u: recovering u = atanh(a) gives inf where tanh(u) rounds to 1.
    log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    return u.tanh(), (log_normal - log_slope).sum(-1)


# ==== The agent: its losses and their update ======================================================


class Agent(nn.Module):
    """Networks, losses and update.

    Besides what every nn.Module has, the part that all scripts share uses args, device, optimizers
    (all are saved), draw, update, act, begin_finetuning, obs_mean, obs_std and, to evaluate, critic
    and normalize. For twenty critic steps per environment step take --utd 20, and let update train
    pi at every twentieth call (without --cudagraphs); a counter of calls is saved if
    register_buffer holds it.
    """

    def __init__(self, args: Args, obs_dim: int, action_dim: int, device: str):
        super().__init__()
        self.args, self.action_dim, self.device = args, action_dim, device
        self.actor = Actor(obs_dim, action_dim, args.actor_hidden)
        self.critic = Critic(obs_dim, action_dim, args.critic_hidden, args.bf16)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        # Lists made once, for the slow critics' step in each update.
        self.critic_weights = list(self.critic.parameters())
        self.target_weights = list(self.critic_target.parameters())
        self.log_alpha = nn.Parameter(torch.tensor(0.0))
        self.log_lagrange = nn.Parameter(torch.tensor(1.0))  # as in the authors' code
        self.target_entropy = args.target_entropy * action_dim
        # Mean and std of the dataset's observations, for normalize.
        self.register_buffer("obs_mean", torch.zeros(obs_dim))
        self.register_buffer("obs_std", torch.ones(obs_dim))
        self.to(device)
        actors = {"params": [*self.actor.parameters(), self.log_alpha], "lr": args.actor_lr}
        critics = {"params": [*self.critic.parameters(), self.log_lagrange], "lr": args.critic_lr}
        self.optimizers = {"adam": torch.optim.Adam([actors, critics], fused=True)}

    @torch.no_grad()
    def propose(self, batch: Batch, noise: dict) -> tuple[Tensor, Tensor, Tensor]:
        """What the policy would do at s and at s', without a gradient.

        n actions of pi(.|s) and n of pi(.|s') for the penalty, (B, 2, n, act), with their
        log-probabilities (B, 2, n); and fresh ones of pi(.|s') for y, (B, n or 1, act).
        """
        states = torch.stack([batch.obs, batch.next_obs], 1)[:, :, None]  # (B, 2, 1, obs)
        mean, log_std = self.actor(states)  # (B, 2, 1, act)
        policy_actions, policy_log_prob = squash(mean, log_std, noise["policy"])
        next_actions, _ = squash(mean[:, 1], log_std[:, 1], noise["target"])
        return policy_actions, policy_log_prob, next_actions

    @torch.no_grad()
    def td_target(self, batch: Batch, next_actions: Tensor) -> Tensor:
        """y = r + gamma (1 - d) max_a' min_i Q'_i(s', a'), first the min, then the max: (B, 1).

        Unlike SAC's target it has no entropy term, as in the authors' code.
        """
        next_q = self.critic_target(batch.next_obs, next_actions).amin(0).amax(-1, keepdim=True)
        return batch.rewards + self.args.gamma * (1 - batch.terminations) * next_q

    def penalty(self, gap: Tensor) -> tuple[Tensor, Tensor, dict]:
        """The penalty of each critic (2,), the factor's loss, and metrics.

        The penalty is w * gap or, with lagrange_gap, factor * w * (gap - lagrange_gap), and the
        learned factor grows while gap is above lagrange_gap.
        """
        args = self.args
        if args.lagrange_gap is None:
            return args.cql_weight * gap, torch.zeros_like(self.log_lagrange), {}
        lagrange = self.log_lagrange.exp().clamp(max=1e6)
        excess = args.cql_weight * (gap - args.lagrange_gap)
        # Both critics share the factor; 0.5 makes their sum a mean, as in the authors' code.
        lagrange_loss = -0.5 * lagrange * excess.detach().sum()
        return lagrange.detach() * excess, lagrange_loss, {"q/lagrange": lagrange}

    def critic_losses(self, batch: Batch, noise: dict) -> tuple[dict, dict]:
        """Losses of the critics (2,) and of the Lagrange factor, and metrics."""
        n, mc_returns = self.args.n_actions, batch.mc_returns
        policy_actions, policy_log_prob, next_actions = self.propose(batch, noise)
        # All actions are judged at s, even those of pi(.|s'): what suits the next state is often
        # plausible at s, too, and must not look better than the data's action either.
        candidates = [batch.actions[:, None], noise["random"], policy_actions.flatten(1, 2)]
        q = self.critic(batch.obs, torch.cat(candidates, 1))  # (2, B, 1 + n + 2n)
        q_data, q_random, q_policy = q.split([1, n, 2 * n], -1)
        # Before any bound: how far Q of pi's actions lies from G, and which share of them is below.
        metrics = {
            "q/data": q_data.mean(),
            "q/random": q_random.mean(),
            "q/policy": q_policy.mean(),
            "calibration/gap": (q_policy - mc_returns).mean(),
            "calibration/rate": (q_policy < mc_returns).float().mean(),
        }

        # gap = E [log sum_a' exp(Q_i(s, a') - log mu(a')) - Q_i(s, a)]. Each exp Q is divided by
        # the density mu that its action was drawn from, so that each term estimates the integral of
        # exp Q over all actions, and the sum is 3n times that. Without the division the sum is a
        # soft maximum over the samples, with the data's action among them: gap is then above 0.
        if self.args.importance_sampling:
            log_uniform = -self.action_dim * math.log(2)  # log density on [-1, 1]^act
            exponents = [q_random - log_uniform, q_policy - policy_log_prob.flatten(1)]
        else:
            exponents = [q_random, q_data, q_policy]
        soft_maximum = torch.cat(exponents, -1).logsumexp(-1, keepdim=True)  # (2, B, 1)
        gap = (soft_maximum - q_data).mean((1, 2))  # (2,)
        penalty, lagrange_loss, lagrange_metrics = self.penalty(gap)

        # L(Q_i) = E (Q_i(s, a) - y)^2 + penalty
        td_loss = ((q_data - self.td_target(batch, next_actions)) ** 2).mean((1, 2))  # (2,)
        metrics |= {"loss/td": td_loss.mean(), "loss/cql": penalty.mean(), "q/gap": gap.mean()}
        losses = {"critic": td_loss + penalty, "lagrange": lagrange_loss}
        return losses, metrics | lagrange_metrics

    def actor_losses(self, batch: Batch, noise: dict) -> tuple[dict, dict]:
        """Losses of policy and temperature, and metrics."""
        # L(pi) = E [alpha log pi(a|s) - min_i Q_i(s, a)]. The critics are frozen while they are
        # asked: so they will pass the gradient on to the action, but get none themselves.
        mean, log_std = self.actor(batch.obs)
        actions, log_prob = squash(mean[:, None], log_std[:, None], noise["actor"])
        self.critic.requires_grad_(False)
        q = self.critic(batch.obs, actions).amin(0)  # (B, 1)
        self.critic.requires_grad_(True)
        alpha = self.log_alpha.exp().detach()
        actor_loss = (alpha * log_prob - q).mean()
        # L(alpha) = -log(alpha) E [log pi(a|s) + H]: alpha grows while the entropy is below the
        # target entropy H.
        alpha_loss = -self.log_alpha * (log_prob.detach() + self.target_entropy).mean()
        metrics = {"loss/actor": actor_loss, "pi/alpha": alpha, "pi/entropy": -log_prob.mean()}
        return {"actor": actor_loss, "alpha": alpha_loss}, metrics

    def update(self, batch: Batch, noise: dict) -> dict[str, Tensor]:
        """One Adam step on all losses, each taken at the old weights; then the targets follow."""
        batch = batch._replace(obs=self.normalize(batch.obs))
        batch = batch._replace(next_obs=self.normalize(batch.next_obs))
        losses, metrics = self.critic_losses(batch, noise)
        actor_losses, actor_metrics = self.actor_losses(batch, noise)
        losses |= actor_losses
        # One pass backward, yet each loss reaches its own parameters only: in the critics' losses
        # pi, Q' and the Lagrange factor are without gradient, in the factor's the gap is, in pi's
        # the critics are frozen and alpha is detached, in alpha's log pi is.
        self.optimizers["adam"].zero_grad()
        sum(loss.sum() for loss in losses.values()).backward()
        self.optimizers["adam"].step()
        with torch.no_grad():  # Q' <- Q' + tau (Q - Q'), all tensors in one call
            torch._foreach_lerp_(self.target_weights, self.critic_weights, self.args.tau)
        return {key: value.detach() for key, value in (metrics | actor_metrics).items()}

    def draw(self, batch_size: int, generator: torch.Generator, log=True) -> dict[str, Tensor]:
        """The random numbers of one update; a test can pass others. (log: whether its metrics will
        be logged; some other scripts then draw more.)"""
        options = dict(generator=generator, device=self.device)
        n, size = self.args.n_actions, self.action_dim
        n_target = n if self.args.max_target_backup else 1
        return {
            "actor": torch.randn(batch_size, 1, size, **options),  # the action that trains pi
            "target": torch.randn(batch_size, n_target, size, **options),  # pi(.|s') in y
            "policy": torch.randn(batch_size, 2, n, size, **options),  # pi(.|s), pi(.|s') in L(Q)
            "random": 2 * torch.rand(batch_size, n, size, **options) - 1,  # uniform ones in L(Q)
        }

    def normalize(self, obs: Tensor) -> Tensor:
        """(..., obs) as the networks see them: standardised with --normalize-observations."""
        if not self.args.normalize_observations:
            return obs
        return (obs - self.obs_mean) / self.obs_std

    @torch.no_grad()
    def act(self, obs: Tensor | np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        """(..., obs) as the environment gives them -> (..., act) in [-1, 1]: samples with a
        generator, else the mean."""
        obs = torch.as_tensor(obs).to(self.obs_mean)  # its device and dtype
        mean, log_std = self.actor(self.normalize(obs))
        if generator is None:
            return mean.tanh()
        noise = torch.randn(mean.shape, generator=generator, device=self.device)
        return squash(mean, log_std, noise)[0]

    def begin_finetuning(self, buffer: ReplayBuffer) -> int:
        """Called before the first online episode; returns how many environment steps to play
        before the first online update. Nothing changes here: the same update goes on, with its
        penalty and, in Cal-QL, the bound."""
        return 0


# ==== From here on all the scripts of this project are the same: returns and replay buffer ========


class Batch(NamedTuple):
    """B transitions. All but states and actions are columns, to broadcast over sampled actions."""

    obs: Tensor  # (B, obs)
    actions: Tensor  # (B, act), in [-1, 1]
    rewards: Tensor  # (B, 1), scaled
    next_obs: Tensor  # (B, obs)
    terminations: Tensor  # (B, 1), 1 where the task ended; a time limit is no termination
    mc_returns: Tensor  # (B, 1), G


class Episode(NamedTuple):
    """T steps of one episode, of the dataset or just played."""

    obs: np.ndarray  # (T, obs)
    actions: np.ndarray  # (T, act), in [-1, 1]
    rewards: np.ndarray  # (T,), as the environment gives them
    next_obs: np.ndarray  # (T, obs)
    terminations: np.ndarray  # (T,), 1 where the task ended; a time limit is no termination
    success: float | None = None  # the highest that info reported; None if it reported none


def column_widths(obs_dim: int, action_dim: int) -> list[int]:
    """How many numbers each column of a Batch has."""
    return [obs_dim, action_dim, 1, obs_dim, 1, 1]


def scale_rewards(args: Args, rewards: np.ndarray) -> np.ndarray:
    return args.reward_scale * rewards + args.reward_bias


def returns_to_go(args: Args, rewards: np.ndarray, terminations: np.ndarray) -> np.ndarray:
    """G_t = r_t + gamma (1 - d_t) G_{t+1} of one episode: unscaled rewards (T,) -> returns (T,).

    After the last step G is 0 or, with infinite_horizon, repeats the last reward forever. An
    episode of nothing but failure_reward counts as failing forever: with gamma 0.9 the rewards
    -1, -1 have the returns -10, -10 (as in replay_buffer.py of github.com/nakamotoo/Cal-QL).
    """
    scaled = scale_rewards(args, rewards.astype(np.float64))
    discounts = args.gamma * (1 - terminations.astype(np.float64))
    forever = scaled / (1 - args.gamma)  # the return of a reward that is earned forever
    if args.failure_reward is not None and np.isclose(rewards, args.failure_reward).all():
        return forever
    returns = np.zeros(len(rewards))
    following = forever[-1] if args.infinite_horizon else 0.0
    for t in reversed(range(len(rewards))):
        following = scaled[t] + discounts[t] * following
        returns[t] = following
    return returns


def to_rows(args: Args, episode: Episode) -> Tensor:
    """An episode as (T, width): the columns of a Batch side by side."""
    obs, actions, rewards, next_obs, terminations, _ = episode
    returns = returns_to_go(args, rewards, terminations)
    scaled = scale_rewards(args, rewards)
    columns = [obs, actions, scaled[:, None], next_obs, terminations[:, None], returns[:, None]]
    return torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float32))


def draw_rows(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n of the rows, uniformly and with replacement."""
    n_rows = max(len(rows), 1)  # randint needs a row to choose from, even for n = 0
    return rows[torch.randint(n_rows, (n,), generator=generator, device=rows.device)]


class ReplayBuffer:
    """The dataset, which stays, and a ring of the newest online transitions.

    With offline_share -1 the dataset is in the ring as well, and is overwritten first.
    """

    def __init__(self, args: Args, dataset: Tensor, obs_dim: int, action_dim: int, device: str):
        self.batch_size, self.offline_share = args.batch_size, args.offline_share
        self.widths = column_widths(obs_dim, action_dim)
        self.n_added = 0  # rows that ever went into the ring
        self.n_shared = len(dataset) if args.offline_share == -1 else 0  # the dataset's among them
        capacity = max(args.buffer_size, self.n_shared)
        self.ring = torch.empty(capacity, sum(self.widths), device=device)
        if self.n_shared:
            self.offline = torch.empty(0, sum(self.widths), device=device)
            self.add(dataset)
        else:
            self.offline = dataset.to(device)

    def add(self, rows: Tensor) -> None:
        self.n_added += len(rows)
        # If there are more rows than slots, only the newest.
        rows = rows[-len(self.ring) :].to(self.ring.device)
        slots = torch.arange(self.n_added - len(rows), self.n_added, device=self.ring.device)
        self.ring[slots % len(self.ring)] = rows

    def sample(self, generator: torch.Generator) -> Batch:
        """In pre-training the whole batch is from the dataset; afterwards a share of it, its first
        rows, and the rest is from the ring. With -1 all of it is from the ring."""
        if self.n_added == 0:  # nothing from online episodes yet
            rows = draw_rows(self.offline, self.batch_size, generator)
        else:
            n_offline = round(max(self.offline_share, 0) * self.batch_size)
            offline = draw_rows(self.offline, n_offline, generator)
            online = self.ring[: self.n_added]
            online = draw_rows(online, self.batch_size - n_offline, generator)
            rows = torch.cat([offline, online])
        # Each column gets memory of its own, as a CUDA graph has it: another layout may lead to
        # another rounding.
        return Batch(*(column.contiguous() for column in rows.split(self.widths, dim=1)))

    def state_dict(self) -> dict:
        """The online rows that are left, and the share, which an agent may change. The dataset is
        not saved: it is read again."""
        n_online = min(self.n_added - self.n_shared, len(self.ring))
        slots = torch.arange(self.n_added - n_online, self.n_added) % len(self.ring)
        online = self.ring[slots.to(self.ring.device)]
        return {"online": online, "n_added": self.n_added, "offline_share": self.offline_share}

    def load_state_dict(self, state: dict) -> None:
        """Every row gets the slot that it had."""
        self.offline_share = state["offline_share"]
        self.n_added = state["n_added"] - len(state["online"])
        self.add(state["online"])


# ==== The two phases ==============================================================================
# A Run, below, holds the counters of both loops. Its report is called after each pass: it logs,
# saves, evaluates and stops.


def pretrain(agent: Agent, buffer: ReplayBuffer, run: Run) -> None:
    """Offline: gradient steps on the dataset."""
    while run.offline_steps < agent.args.offline_steps:
        metrics = gradient_step(agent, buffer, run)
        run.offline_steps += 1
        run.report(metrics)


def finetune(agent: Agent, buffer: ReplayBuffer, env: gym.Env, run: Run) -> None:
    """Online: play an episode, add it with its returns, take utd gradient steps for each step.

    A pass of the loop is either an episode or one of the gradient steps that are due for it, so
    that a run can be saved, stopped and continued between any two of them. A warm-up starts
    updates_due below 0: the gradient steps of its environment steps are never taken.
    """
    args = agent.args
    if run.online_steps == 0:
        run.updates_due = -args.utd * agent.begin_finetuning(buffer)
    while run.updates_due > 0 or run.online_steps < args.online_steps:
        metrics = {}
        if run.updates_due > 0:
            metrics = gradient_step(agent, buffer, run)
            run.updates_due -= 1
        else:
            seed = seed_for(args, "episode", run.episodes)
            exploration = run.generator("exploration", run.episodes)
            episode = play_episode(agent, env, seed, run.stop, exploration)
            buffer.add(to_rows(args, episode))  # it is over: now its returns are known
            run.episodes += 1
            run.online_steps += len(episode.rewards)
            run.updates_due += args.utd * len(episode.rewards)
            run.train_return = float(episode.rewards.sum())
        run.report(metrics)


def gradient_step(agent: Agent, buffer: ReplayBuffer, run: Run) -> dict[str, Tensor]:
    """One batch and one update; its metrics if they are to be logged, else none. What is drawn
    depends on the number of the update alone, so that a resumed run draws the same."""
    log = run.log_due()
    batch = buffer.sample(run.generator("batch", run.updates))
    noise = agent.draw(len(batch.obs), run.generator("noise", run.updates), log)
    metrics = agent.update(batch, noise)
    run.updates += 1
    return metrics if log else {}


# ==== Plumbing ====================================================================================

SCRIPT = Path(__file__).name if "__file__" in globals() else "notebook"
LOG_EVERY = 100  # steps of a run between two rows of training metrics
SAVE_EVERY = 60  # seconds between two checkpoints; every evaluation makes one, too
LONGEST_EPISODE = 100_000  # steps; longer ones are taken to be endless
SUCCESS_KEYS = ["success", "is_success", "goal_achieved"]  # in the environment's info
# What --resume accepts besides the run's own settings.
RESUME_MAY_CHANGE = ["resume", "dataset", "device", "cudagraphs"]
RESUME_MAY_CHANGE += ["offline_steps", "online_steps"]
# With other values of these, pre-trained networks would not fit or would mean something else.
PRETRAINING_FIXES = ["offline_steps", "gamma", "reward_scale", "reward_bias", "failure_reward"]
PRETRAINING_FIXES += ["infinite_horizon", "normalize_observations", "actor_hidden", "critic_hidden"]
PRETRAINING_FIXES += ["value_hidden", "fixed_log_std"]  # which not every script has


def fail(problem: str) -> NoReturn:
    """Ends the program with one line and status 2, where a traceback would not help."""
    tqdm.write(f"{SCRIPT}: {problem}", file=sys.stderr)
    sys.exit(2)


def check(good: bool, problem: str) -> None:
    if not good:
        fail(problem)


def warn(problem: str) -> None:
    tqdm.write(f"{SCRIPT}: warning: {problem}", file=sys.stderr)


def seed_for(args: Args, purpose: str, index: int = 0) -> int:
    """A seed of its own for each purpose and index, all derived from --seed."""
    entropy = [args.seed, index, *purpose.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_everything(args: Args) -> None:
    """Python's, NumPy's and torch's global generators: weights are drawn from torch's, and a user's
    environment may draw from any of them."""
    seed = seed_for(args, "weights")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the old generator, which others may use
    torch.manual_seed(seed)


# ---- The dataset's file --------------------------------------------------------------------------

REQUIRED_ARRAYS = ["observations", "actions", "rewards", "terminals"]
OPTIONAL_ARRAYS = ["timeouts", "next_observations"]
ATTRIBUTES = ["env_id", "env_kwargs", "ref_min_score", "ref_max_score"]


def find_dataset(name: str) -> tuple[Path, dict]:
    """The path of the dataset's file and, for a name, what is known about its task."""
    if os.path.isfile(name):
        return Path(name), {}
    folder = os.path.isdir(name)
    if os.path.basename(name) != name or name.endswith((".hdf5", ".h5")):
        check(not folder, f"--dataset {name}: is a folder; give a file")
        hint = "; convert a Minari id first: python -m benchmarks.data.convert minari ID"
        fail(f"--dataset {name}: no such file{'' if Path(name).suffix else hint}")
    try:
        from benchmarks.data import names  # lies beside the script, unless that was copied alone
    except ImportError:
        problem = "no such file, and names of datasets need the folder benchmarks/ of this project"
        fail(f"--dataset {name}: {problem} beside the script")
    try:
        return names.find(name)
    except (ImportError, OSError) as error:
        check(not folder, f"--dataset {name}: is a folder; give a file")
        fail(f"--dataset {name}: {error}")


def read_dataset(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of an HDF5 file in D4RL's flat layout as float32, and its attributes."""
    data, attributes = {}, {}
    try:
        with h5py.File(path) as file:
            check_layout(path, file)
            for key in REQUIRED_ARRAYS + OPTIONAL_ARRAYS:
                if key in file:
                    data[key] = file[key].astype(np.float32)[()]
            for key in ATTRIBUTES:
                if key in file.attrs:
                    value = file.attrs[key]
                    attributes[key] = value.decode() if isinstance(value, bytes) else value
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # h5py raises these
        fail(f"--dataset {path}: cannot be read as HDF5 ({error}){advice_for_other_formats(path)}")
    return data, attributes


def check_layout(path: Path, file: h5py.File) -> None:
    """The arrays are there and hold numbers; for other layouts there is a converter."""
    where, convert = f"--dataset {path}:", "convert it first: python -m benchmarks.data.convert"
    check("episode_0" not in file, f"{where} is a Minari file; {convert} minari ID")
    robomimic = "data" in file and isinstance(file["data"], h5py.Group) and "demo_0" in file["data"]
    check(not robomimic, f"{where} is a robomimic file; {convert} robomimic {path}")
    missing = ", ".join(key for key in REQUIRED_ARRAYS if key not in file)
    problem = f"has no {missing}, but {', '.join(file) or 'nothing'}; docs/data.md has the layout"
    check(not missing, f"{where} {problem}")
    for key in REQUIRED_ARRAYS + OPTIONAL_ARRAYS:
        if key in file:
            numbers = isinstance(file[key], h5py.Dataset) and file[key].dtype.kind in "fiub"
            check(numbers and file[key].shape, f"{where} {key} is not an array of numbers")


def advice_for_other_formats(path: Path) -> str:
    """For a file that is not HDF5 but whose name suggests what it may be."""
    convert = "python -m benchmarks.data.convert"
    if path.suffix == ".npz":
        return (
            f"; if it is OGBench's: {convert} ogbench {path} --name TASK; else write it with h5py"
        )
    if path.suffix in (".npy", ".pkl", ".pickle"):
        return (
            f"; if it has a hand's demonstrations: {convert} adroit {path} --task door (or other)"
        )
    return ""


def hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_and_tidy(args: Args, data: dict[str, np.ndarray], env: gym.Env) -> None:
    """The arrays fit each other and the environment, and all numbers are finite.

    Single numbers a row are taken as (N,) and as (N, 1). The flags become bool, and timeouts are
    guessed where there are none.
    """
    where, n = f"--dataset {args.dataset}:", len(data["rewards"])
    check(data["observations"].ndim < 3, f"{where} images as observations are not supported")
    lengths = ", ".join(f"{key} {len(array)}" for key, array in data.items())
    same_lengths = all(len(array) == n for array in data.values())
    check(n > 0, f"{where} has no rows in rewards")
    check(same_lengths, f"{where} its arrays have different numbers of rows: {lengths}")
    shapes = {key: (n,) for key in data}
    shapes["observations"] = shapes["next_observations"] = (n, *env.observation_space.shape)
    shapes["actions"] = (n, *action_box(env).shape)
    for key, array in data.items():
        if shapes[key] in [(n,), (n, 1)] and array.shape in [(n,), (n, 1)]:
            array = data[key] = array.reshape(shapes[key])
        problem = f"{key} has the shape {array.shape}, but {env.spec.id} needs {shapes[key]}"
        check(array.shape == shapes[key], f"{where} {problem}; is this its environment? --env-id")
        finite = np.isfinite(array.reshape(n, -1)).all(axis=1)
        check(finite.all(), f"{where} {key} has NaN or inf in row {finite.argmin()}")
    data["terminals"] = data["terminals"] != 0
    if "timeouts" not in data:
        data["timeouts"] = guess_timeouts(data["terminals"], env.spec.max_episode_steps)
    data["timeouts"] = data["timeouts"] != 0


def check_scores(args: Args, attributes: dict) -> None:
    """Reference scores are two numbers, the first below the second."""
    scores = [attributes.get("ref_min_score", 0.0), attributes.get("ref_max_score", 1.0)]
    where = f"--dataset {args.dataset}: ref_min_score and ref_max_score are"
    try:
        low, high = map(float, scores)
    except (TypeError, ValueError):
        fail(f"{where} {scores}, not two numbers")
    good = -math.inf < low < high < math.inf
    check(good, f"{where} {low:g} and {high:g}; the first must be below the second")


def guess_timeouts(terminals: np.ndarray, time_limit: int | None) -> np.ndarray:
    """For a file without timeouts: episodes were cut short at the environment's time limit."""
    timeouts, length = np.zeros(len(terminals), bool), 0
    for i, terminal in enumerate(terminals):
        length += 1
        timeouts[i] = length == time_limit
        if terminal or timeouts[i]:
            length = 0
    return timeouts


def find_episodes(data: dict[str, np.ndarray]) -> list[slice]:
    """The rows of each episode, in order.

    As in Cal-QL's public code, two things are left out: the step of a timeout, since many files do
    not hold the observation after it (online it is kept: there it is known), and a last episode
    that does not end, since its return is not known. A terminal always stays, also where the time
    limit ended the episode at the same step (gymnasium then sets both) and in the last row.
    """
    episodes, start = [], 0
    for end in np.flatnonzero(data["terminals"] | data["timeouts"]).tolist():
        stop = end + 1 if data["terminals"][end] else end
        if stop > start:
            episodes.append(slice(start, stop))
        start = end + 1
    return episodes


def load_rows(
    args: Args, data: dict[str, np.ndarray], episodes: list[slice], box: gym.spaces.Box
) -> Tensor:
    """The episodes one after the other as (N, width), with the columns of a Batch."""
    n_rows = sum(span.stop - span.start for span in episodes)
    width = sum(column_widths(data["observations"].shape[1], box.shape[0]))
    rows, begin = torch.empty(n_rows, width), 0
    for span in episodes:
        end = begin + span.stop - span.start
        rows[begin:end] = to_rows(args, episode_at(data, span, box))
        begin = end
    return rows


def episode_at(data: dict[str, np.ndarray], span: slice, box: gym.spaces.Box) -> Episode:
    """The file's rows of an episode, with actions moved from the environment's box to [-1, 1]."""
    actions = 2 * (data["actions"][span] - box.low) / (box.high - box.low) - 1
    # Off the edge, for scripts that invert a tanh; as in Cal-QL's public code.
    actions = actions.clip(-0.99999, 0.99999)
    obs, rewards = data["observations"][span], data["rewards"][span]
    terminations = data["terminals"][span].astype(np.float32)
    return Episode(obs, actions, rewards, next_observations(data, span), terminations)


def next_observations(data: dict[str, np.ndarray], span: slice) -> np.ndarray:
    """The file's own, else the next row's observation. After a terminal that is a wrong one
    (another episode's, or in the last row its own): y does not look beyond a terminal, and a
    penalty takes no more than some guesses at actions from there."""
    if "next_observations" in data:
        return data["next_observations"][span]
    following = np.arange(span.start + 1, span.stop + 1)
    return data["observations"][following.clip(max=len(data["observations"]) - 1)]


def set_normalization(agent: Agent, obs: Tensor) -> None:
    """Mean and std of the dataset's observations (N, obs); they are saved with the agent."""
    agent.obs_mean.copy_(obs.mean(dim=0, dtype=torch.float64))
    std = obs.std(dim=0, unbiased=False)
    # A column that is constant in the dataset may not be so in the environment: divided by nearly
    # nothing, a small difference there would drown all else.
    constant = std <= 1e-5 * obs.abs().mean(dim=0)
    agent.obs_std.copy_(torch.where(constant, 1.0, std + 1e-3))


# ---- The environment, episodes and evaluations ---------------------------------------------------


def make_env(args: Args, attributes: dict) -> gym.Env:
    """That of --env-id, else the dataset's own; flat observations, actions in [-1, 1]."""
    # The project's environments are named like D4RL's datasets.
    default = f"benchmarks.envs:{Path(args.dataset).stem}"
    env_id = args.env_id or attributes.get("env_id") or default
    where, parts = f"--env-id {env_id}", env_id.split(":")
    form = "give a gymnasium id, or module:id with a module of yours"
    if env_id == default:
        where = f"--dataset {args.dataset}: names no environment, and {default} is none"
        form = "give --env-id, or the file the attribute env_id"
    check(len(parts) < 3 and all(parts), f"{where}: {form}")
    try:
        kwargs = json.loads(attributes.get("env_kwargs", "{}"))
        good = isinstance(kwargs, dict)
        check(good, f"{where}: the dataset's env_kwargs are {kwargs}, not a dict")
        env = gym.make(env_id, **kwargs)
    except (gym.error.Error, ImportError) as error:
        fail(f"{where}: {error}; {form}")
    except json.JSONDecodeError as error:
        fail(f"{where}: the dataset's attribute env_kwargs is not JSON ({error})")
    box = env.action_space
    check(isinstance(box, gym.spaces.Box), f"{where}: its actions are {box}, not a box of numbers")
    check(len(box.shape) == 1, f"{where}: actions have the shape {box.shape}, not one axis")
    check(box.is_bounded(), f"{where}: its actions have no bounds; a wrapper may set some")
    check((box.low < box.high).all(), f"{where}: its actions' bounds leave no room: {box}")
    space = env.observation_space
    images = isinstance(space, gym.spaces.Box) and len(space.shape) > 1
    check(not images, f"{where}: images as observations are not supported: {space}")
    env = gym.wrappers.FlattenObservation(env)
    flat = isinstance(env.observation_space, gym.spaces.Box)
    check(flat, f"{where}: its observations, {space}, cannot be flattened into a vector")
    return gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))


def action_box(env: gym.Env) -> gym.spaces.Box:
    """The box that the dataset's actions lie in: that of the environment inside RescaleAction."""
    return env.env.action_space


class Stopped(Exception):
    """A signal asked the run to stop."""


class UnusableStep(Exception):
    """The environment returned something that cannot be learned from."""


class StopSignal:
    """Ctrl-C and SIGTERM end a run after the gradient step or environment step that is under way.

    A half-played episode or evaluation is thrown away; the resumed run plays it again, from the
    same seed. A second signal kills. As a context manager it replaces the handlers of both signals
    and restores them on exit; only the main thread can do that, elsewhere it does nothing.
    """

    def __init__(self):
        self.received = None
        self.previous_handlers = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous_handlers[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *_):
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame) -> None:
        self.received = signal.Signals(number).name
        for each in self.previous_handlers:
            signal.signal(each, signal.SIG_DFL)

    def raise_if_received(self) -> None:
        if self.received:
            raise Stopped(self.received)


def play_episode(
    agent: Agent,
    env: gym.Env,
    seed: int,
    stop: StopSignal,
    generator: torch.Generator | None = None,
) -> Episode:
    """One episode with the policy's mean action or, with a generator, with samples.

    Raises: Stopped; UnusableStep for NaN, inf, a success that is no number, and for no end.
    """
    obs, _ = env.reset(seed=seed)
    refuse_nan("reset", obs)
    steps, success, over = [], None, False
    while not over:
        stop.raise_if_received()
        action = agent.act(obs, generator).cpu().numpy()
        next_obs, reward, terminated, truncated, info = env.step(action)
        steps.append((obs, action, float(reward), next_obs, float(terminated)))
        success = highest_success(success, info)
        refuse_nan(f"step {len(steps)}", next_obs, reward)
        if len(steps) == LONGEST_EPISODE:
            raise UnusableStep(f"no end after {len(steps)} steps; set its max_episode_steps")
        obs, over = next_obs, terminated or truncated
    return Episode(*(np.array(column) for column in zip(*steps)), success)


def refuse_nan(call: str, obs: np.ndarray, reward: float = 0.0) -> None:
    if not np.isfinite(obs).all() or not math.isfinite(reward):
        problem = f"{call} returned observation {obs}, reward {reward}"
        raise UnusableStep(f"the environment's {problem}; mend the environment")


def highest_success(before: float | None, info: dict) -> float | None:
    """The highest success of an episode so far; None as long as info has reported none."""
    for key in SUCCESS_KEYS:
        if key in info:
            value = np.asarray(info[key])
            if value.size != 1 or value.dtype.kind not in "fiub" or not np.isfinite(value).all():
                needed = "needed is one number, or leave that key out"
                raise UnusableStep(f"the environment's info[{key!r}] is {info[key]!r}; {needed}")
            before = max(before or 0.0, float(value.item()))
    return before


def summarize(agent: Agent, episodes: list[Episode], attributes: dict) -> dict[str, float]:
    """The means of an evaluation's episodes.

    score: the success if the environment reports one, else the return, normalised by the dataset's
    reference scores if it has some. q_s0: the critics' forecast of discounted_return, which is in
    scaled rewards; Q looks beyond a time limit, discounted_return does not.
    """
    args = agent.args
    returns = [episode.rewards.sum() for episode in episodes]
    discounted_returns = []
    for episode in episodes:
        discounts = args.gamma ** np.arange(len(episode.rewards))
        discounted_returns.append((discounts * scale_rewards(args, episode.rewards)).sum())
    starts = torch.from_numpy(np.array([episode.obs[0] for episode in episodes], np.float32))
    starts = starts.to(agent.device)
    with torch.no_grad():
        q = agent.critic(agent.normalize(starts), agent.act(starts)[:, None])
    low, high = attributes.get("ref_min_score", 0.0), attributes.get("ref_max_score", 1.0)
    result = {
        "score": (np.mean(returns) - low) / (high - low),
        "return": np.mean(returns),
        "discounted_return": np.mean(discounted_returns),
        "q_s0": q.amin(0).mean().item(),
    }
    if any(episode.success is not None for episode in episodes):
        result["success"] = np.mean([episode.success or 0.0 for episode in episodes])
        result["score"] = result["success"]
    return {key: float(value) for key, value in result.items()}


# ---- Settings: the command line and args.json ----------------------------------------------------


def between(args: Args, lowest: float, highest: float, *names: str) -> None:
    """Raises: ValueError, which tyro shows as an error of the command line."""
    for name in names:
        values = np.array(getattr(args, name))
        if not np.all((values >= lowest) & (values <= highest)):
            limits = f"from {lowest} to {highest}" if highest < math.inf else f"at least {lowest}"
            raise ValueError(f"--{name.replace('_', '-')}: must be {limits}")


def at_least(args: Args, lowest: float, *names: str) -> None:
    between(args, lowest, math.inf, *names)


def parse_args(argv: list[str]) -> Args:
    """The command line, over the settings of the dataset's row, over the defaults."""
    words = [word for word in argv if word not in ("-h", "--help")]
    refuse_several_files(words)
    # The first time only to find out which defaults apply; --help must show those.
    given = tyro.cli(Args, prog=SCRIPT, args=words)
    if given.resume is not None:
        return args_of_resumed_run(argv, given.resume)
    defaults = Args(**SETTINGS.get(row_of(given.dataset), {}))
    if given.pretrained is not None:
        defaults = defaults_from_pretraining(given.pretrained)
    args = tyro.cli(Args, prog=SCRIPT, args=argv, default=defaults)
    if given.pretrained is not None:
        changed = [name for name in PRETRAINING_FIXES if differ(args, defaults, name)]
        where = f"--pretrained {args.pretrained}"
        check(not changed, f"{where}: {', '.join(changed)} must stay as in that run")
        args.pretrained = str(Path(args.pretrained).resolve())
    args.dataset = absolute(args.dataset)
    label = f"{Path(args.dataset).stem}{'-finetuned' if args.pretrained else ''}-s{args.seed}"
    args.run_dir = args.run_dir or f"runs/{Path(SCRIPT).stem}-{label}"
    return args


def refuse_several_files(words: list[str]) -> None:
    """As a pattern such as *.hdf5 gives them."""
    if "--dataset" in words:
        following = words[words.index("--dataset") + 1 :]
        files = list(itertools.takewhile(lambda word: not word.startswith("-"), following))
        how = f"python -m benchmarks.data.convert join {' '.join(files)} --out joined.hdf5"
        check(len(files) < 2, f"--dataset takes one file; join these with `{how}`")


def absolute(dataset: str) -> str:
    """A file's full path, since --resume may be called from elsewhere; a name stays as it is."""
    return str(Path(dataset).resolve()) if os.path.isfile(dataset) else dataset


def row_of(dataset: str) -> str:
    """The row of SETTINGS for a dataset's name or path; "defaults" if there is none."""
    name = Path(dataset).stem
    rows = [row for row in SETTINGS if f"{name}-".startswith(f"{row}-")]
    return rows[0] if rows else "defaults"


def differ(one: Args, other: Args, name: str) -> bool:
    return getattr(one, name, None) != getattr(other, name, None)


def read_record(folder: str, flag: str) -> tuple[dict, Args]:
    """What args.json of a run's folder has, and the settings in it."""
    check(folder != "", f"{flag}: give the folder of a run")
    check(Path(folder).exists(), f"{flag} {folder}: no such folder")
    try:
        record = json.loads((Path(folder) / "args.json").read_text())
        script, settings = record["script"], record["settings"]
        check(script == SCRIPT, f"{flag} {folder}: was made by {script}; use that")
        for name, value in settings.items():  # JSON has no tuples
            settings[name] = tuple(value) if isinstance(value, list) else value
        args = Args(**settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fail(f"{flag} {folder}: is not the folder of a run ({type(error).__name__}: {error})")
    return record, args


def args_of_resumed_run(argv: list[str], folder: str) -> Args:
    """The run's own settings, except those that may change: it may go on for longer, on another
    device, with a dataset that was moved. All else would make it another experiment."""
    _, saved = read_record(folder, "--resume")
    args = tyro.cli(Args, prog=SCRIPT, args=argv, default=saved)
    changed = [name for name in vars(args) if differ(args, saved, name)]
    fixed = ", ".join(name for name in changed if name not in RESUME_MAY_CHANGE)
    check(not fixed, f"--resume keeps the settings of a run; {fixed} cannot change")
    longer = args.online_steps >= saved.online_steps and args.offline_steps >= saved.offline_steps
    check(longer, f"--resume {folder}: the phases of a run can become longer, not shorter")
    args.dataset, args.run_dir = absolute(args.dataset), folder  # both may have been moved
    return args


def defaults_from_pretraining(folder: str) -> Args:
    """The settings of the run whose pre-training is used, for a run of its own."""
    _, saved = read_record(folder, "--pretrained")
    check(
        (Path(folder) / "pretrained.pt").exists(),
        f"--pretrained {folder}: has not finished pre-training",
    )
    saved.run_dir, saved.resume, saved.pretrained = "", None, folder
    return saved


def check_hash(args: Args, sha256: str) -> None:
    """A run goes on with the data that it began with."""
    if args.resume is None and args.pretrained is None:
        return
    flag, folder = ("--resume", args.resume) if args.resume else ("--pretrained", args.pretrained)
    record, _ = read_record(folder, flag)
    problem = f"{args.dataset} is not the file that this run began with; give that with --dataset"
    check(record.get("dataset_sha256") == sha256, f"{flag} {folder}: {problem}")


def describe_run(args: Args, task: Task) -> dict:
    """The content of a new run's args.json: what it takes to repeat the run."""
    here = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "script": SCRIPT,
        "row": args.pretrained or row_of(args.dataset),
        "settings": asdict(args),
        "dataset_sha256": task.sha256,
        "dataset": task.description,
        "commit": commit_of(here),
        "hardware": [os.cpu_count(), torch.backends.cpu.get_cpu_capability(), gpu],
        "python": sys.version,
        "packages": packages,
    }


def commit_of(folder: Path) -> str:
    """Of the scripts; empty where there is no repository, or no git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def save_record(args: Args, task: Task) -> None:
    """args.json of a new run; of a resumed one, only settings that have changed."""
    if args.resume is None:
        record = describe_run(args, task)
    else:
        record, saved = read_record(args.resume, "--resume")
        own = {"resume": None, "run_dir": saved.run_dir}
        record["settings"] = asdict(args) | own
    content = json.dumps(record, indent=2).encode()
    write_whole(Path(args.run_dir) / "args.json", lambda file: file.write(content))


# ---- Files of a run ------------------------------------------------------------------------------


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """A file gets its name when it is complete and on the disk."""
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_state(path: Path) -> dict:
    """Raises: whatever a damaged file makes zipfile or torch raise. No code in a file is run."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch does not look at checksums
        # A flipped bit here makes torch skip what is in the file; no checksum covers it.
        marked = [entry.filename for entry in archive.infolist() if entry.external_attr]
    if damaged or marked:
        raise zipfile.BadZipFile(f"{damaged or marked[0]} is not what was saved")
    return torch.load(path, "cpu", weights_only=True)  # on a GPU it would be there twice


def read_checkpoint(folder: Path) -> dict | None:
    """The newest checkpoint that is not damaged; None where there is none yet."""
    newest, previous = folder / "checkpoint.pt", folder / "checkpoint.previous"
    existing = [path for path in (newest, previous) if path.exists()]
    for path in existing:
        try:
            state = read_state(path)
        except Exception as error:
            warn(f"{path} is damaged, or cannot be read: {error}")
        else:
            path.replace(newest)  # the previous one takes the place of a damaged one
            return state
    remedy = "no checkpoint can be read; delete checkpoint.* there to begin this run again"
    check(not existing, f"--resume {folder}: {remedy}")
    return None


@contextlib.contextmanager
def lock_folder(args: Args) -> Iterator[None]:
    """Keeps two runs from using the same folder, at once or one after the other."""
    folder = Path(args.run_dir)
    lock = filelock.FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        fail(f"--run-dir {folder}: another run is at work there")
    except OSError as error:
        fail(f"--run-dir {folder}: {error}")
    try:
        used = [*folder.glob("args.json"), *folder.glob("checkpoint.*")]
        problem = f"holds a run; give another folder, or continue it with --resume {folder}"
        check(args.resume is not None or not used, f"--run-dir {folder}: {problem}")
        yield
    finally:
        lock.release()


def start_tracking(args: Args) -> None:
    """Weights & Biases gets all that TensorBoard gets; the stored id lets a resumed run continue
    the same one."""
    import wandb  # optional, so imported only here

    id_file = Path(args.run_dir) / "wandb_id.txt"
    if not id_file.exists():
        id_file.write_text(os.urandom(4).hex())
    folder = Path(args.run_dir)  # wandb's files go beside it: inside they would be logged, too
    names = dict(project="cal-ql", name=folder.name, dir=folder.parent)
    identity = dict(id=id_file.read_text(), resume="allow", reinit="finish_previous")
    wandb.init(**names, **identity, config=asdict(args), sync_tensorboard=True)


def draw_curves(folder: Path) -> None:
    """curves.png and curves.csv, if the folder benchmarks/ lies beside the script."""
    try:
        from benchmarks import plot
    except ImportError:
        return
    plot.main([str(folder)])


# ---- The run -------------------------------------------------------------------------------------


class Run:
    """The counters of a run, and its log, evaluations and checkpoints; see report."""

    saved_fields = ["offline_steps", "online_steps", "updates", "updates_due", "episodes"]
    saved_fields += ["train_return", "evaluations", "logged", "logged_step"]

    def __init__(self, agent: Agent, buffer: ReplayBuffer, task: Task):
        self.args, self.folder = agent.args, Path(agent.args.run_dir)
        self.agent, self.buffer, self.task = agent, buffer, task
        self.offline_steps = 0  # gradient steps of pre-training that are done
        self.online_steps = 0  # environment steps of fine-tuning that are played
        self.updates = 0  # gradient steps of both phases
        self.updates_due = 0  # gradient steps due for the steps played; below 0 in a warm-up
        self.episodes = 0  # of fine-tuning
        self.train_return = 0.0  # of the last of them
        self.evaluations = []  # pairs of step and result
        self.logged, self.logged_step = {}, 0  # the log's rows of the newest step
        self.saved_step = None  # that of the newest checkpoint
        self.load()
        self.saved_progress = self.updates, self.episodes
        self.stop = StopSignal()
        # A run that was killed had got further than its checkpoint. What it logged from that step
        # on is void, and what the checkpoint holds of that very step is logged again.
        self.writer = SummaryWriter(self.folder, purge_step=self.step)
        self.log(self.logged)
        total = self.args.offline_steps + self.args.online_steps
        # disable=None: a bar only if the output is a terminal.
        self.progress = tqdm(total=total, initial=self.step, disable=None)
        self.started_at = self.saved_at = time.monotonic()
        self.first_step = self.step

    @property
    def step(self) -> int:
        """The axis of all logs: gradient steps of pre-training, then those environment steps of
        fine-tuning whose gradient steps are done."""
        waiting = math.ceil(max(self.updates_due, 0) / self.args.utd)
        return self.offline_steps + self.online_steps - waiting

    def generator(self, purpose: str, index: int) -> torch.Generator:
        """What it draws depends on --seed, purpose, index and the kind of device alone: so a
        resumed run draws the same, and so do two scripts that are compared."""
        generator = torch.Generator(self.agent.device)
        return generator.manual_seed(seed_for(self.args, purpose, index))

    def report(self, metrics: dict) -> None:
        """Called between two passes of a loop, when nothing is half done.

        On the axis of step, metrics are logged every LOG_EVERY steps and the return once an
        episode. There is a checkpoint once a minute, and an evaluation with a checkpoint every
        eval_every_... steps. Then a signal is obeyed.
        """
        self.log(metrics)
        if self.online_steps > 0 and self.updates_due <= 0:  # trained on the last episode
            self.log({"train/return": self.train_return})
        self.progress.update(self.step - self.progress.n)
        if self.save_due():
            self.save()
        self.evaluate_if_due()
        self.stop.raise_if_received()

    def how_to_go_on(self) -> str:
        if self.saved_step is None:
            return f"no checkpoint yet; --resume {self.folder} begins again"
        return f"{self.what_is_good()}; continue with --resume {self.folder}"

    def what_is_good(self) -> str:
        if self.saved_step is None:
            return "no checkpoint yet"
        return f"the checkpoint of step {self.saved_step} is good"

    # -- Log --

    def log_due(self) -> bool:
        """Whether the coming gradient step completes a step of the axis that is to be logged.

        In fine-tuning an environment step has utd gradient steps: this must be the last of them.
        """
        due_afterwards = max(self.updates_due - 1, 0)
        completes_step = due_afterwards % self.args.utd == 0
        return completes_step and (self.step + 1) % LOG_EVERY == 0

    def log(self, metrics: dict) -> None:
        if self.logged_step != self.step:
            self.logged, self.logged_step = {}, self.step
        for key, value in metrics.items():
            self.check_finite(key, torch.as_tensor(value))
            self.logged[key] = float(value)
            self.writer.add_scalar(key, float(value), self.step)

    def check_finite(self, name: str, values: Tensor) -> None:
        """Ends a run that diverges; what is saved is from before."""
        if not values.isfinite().all():
            problem = (
                f"{name} is NaN or inf at step {self.step}; {self.what_is_good()}, but --resume"
            )
            fail(f"{problem} would end here again: start another run with smaller learning rates")

    def check_weights(self) -> None:
        for name, weights in self.agent.named_parameters():
            self.check_finite(name, weights)

    # -- Evaluations --

    def evaluation_due(self) -> bool:
        """After every eval_every_... steps and at the end of each phase. In fine-tuning an episode
        is first played and trained on to its end."""
        if not self.evaluations:
            return True  # of the policy that the run begins with
        last, args = self.evaluations[-1][0], self.args
        if self.step == last or self.updates_due > 0:
            return False
        if self.online_steps == 0:
            at_the_end = self.offline_steps == args.offline_steps
            return at_the_end or self.offline_steps % args.eval_every_offline == 0
        n_due = self.online_steps // args.eval_every_online
        n_done = (last - self.offline_steps) // args.eval_every_online
        return n_due > n_done or self.online_steps >= args.online_steps

    def evaluate_if_due(self) -> None:
        """Also called when a run begins or is continued: it may have been stopped in here."""
        if not self.evaluation_due():
            return
        self.check_weights()
        seeds = [seed_for(self.args, "evaluation", k) for k in range(self.args.eval_episodes)]
        episodes = [play_episode(self.agent, self.task.env, seed, self.stop) for seed in seeds]
        if not self.evaluations:
            compare_with_data(self.task, episodes)
        result = summarize(self.agent, episodes, self.task.attributes)
        result["q_bound"] = largest_reward(self.buffer) / (1 - self.args.gamma)
        self.evaluations.append((self.step, result | self.dip_and_regret(result)))
        self.show_evaluation()
        self.save()

    def dip_and_regret(self, result: dict) -> dict[str, float]:
        """Of the online evaluations, with this one. dip: their lowest score minus the last score
        before them, so below 0 if it fell. regret: 1 minus their mean score, where a score of 1 is
        the goal: a success, or a normalised return."""
        if self.online_steps == 0:
            return {}
        before, online = split_evaluations(self.args, self.evaluations)
        scores = [earlier["score"] for earlier in online] + [result["score"]]
        found = {"dip": min(scores) - before[-1]["score"]}
        if "success" in result or "ref_max_score" in self.task.attributes:
            found["regret"] = 1 - sum(scores) / len(scores)
        return found

    def show_evaluation(self) -> None:
        _, result = self.evaluations[-1]
        self.log({f"eval/{key}": value for key, value in result.items()})
        rate = (self.step - self.first_step) / (time.monotonic() - self.started_at)
        phase = "offline" if self.online_steps == 0 else "online"
        score = "success" if "success" in result else "score"
        line = f"{phase:7} {self.step:>7}/{self.progress.total}  {rate:4.0f} steps/s"
        line += f"  {score} {result[score]:.2f}  return {result['return']:.2f}"
        line += f"  Q(s0) {result['q_s0']:.1f}, obtained {result['discounted_return']:.1f}"
        tqdm.write(line)
        warn_of_exploding_q(self.evaluations)

    # -- Checkpoints --

    def save_due(self) -> bool:
        """Once a minute. At first sooner, the wait doubling from checkpoint to checkpoint, so that
        even a run that is killed again and again makes progress."""
        waited = time.monotonic() - self.saved_at
        age_when_saved = self.saved_at - self.started_at
        return waited > min(SAVE_EVERY, age_when_saved)

    def state(self) -> dict:
        optimizers = self.agent.optimizers
        return {
            "agent": self.agent.state_dict(),
            "optimizers": {name: optimizers[name].state_dict() for name in optimizers},
            "buffer": self.buffer.state_dict(),
            "run": {name: getattr(self, name) for name in self.saved_fields},
        }

    def save(self) -> None:
        """The previous checkpoint is kept: it serves if the new one is damaged, or if the run is
        killed between the two renamings."""
        self.check_weights()
        self.writer.flush()  # the log on the disk is never behind the checkpoint
        state, newest = self.state(), self.folder / "checkpoint.pt"
        written = self.folder / "checkpoint.new"
        write_whole(written, lambda file: torch.save(state, file))
        if newest.exists():
            newest.replace(self.folder / "checkpoint.previous")
        written.replace(newest)
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.saved_progress = self.updates, self.episodes

    def save_progress(self) -> None:
        """What was done since the last checkpoint, if anything was."""
        if self.saved_progress != (self.updates, self.episodes):
            self.save()

    def keep_pretrained(self) -> None:
        """The end of pre-training in a file of its own, for --pretrained."""
        if self.online_steps == 0:
            state = self.state()
            write_whole(self.folder / "pretrained.pt", lambda file: torch.save(state, file))

    def load(self) -> None:
        """Goes on from the folder's checkpoint; a new run may begin at another's pre-training."""
        state = read_checkpoint(self.folder)
        if state is not None:
            self.load_agent(state)
            self.buffer.load_state_dict(state["buffer"])
            for name in self.saved_fields:
                setattr(self, name, state["run"][name])
            fixed = self.online_steps > 0 and self.offline_steps != self.args.offline_steps
            check(not fixed, "--offline-steps: fine-tuning has begun; only --online-steps can grow")
            self.saved_step = self.step
        elif self.args.pretrained is not None:
            path = Path(self.args.pretrained) / "pretrained.pt"
            try:
                state = read_state(path)
            except Exception as error:
                fail(f"--pretrained: {path} is damaged: {error}")
            self.load_agent(state)
            self.offline_steps = self.updates = state["run"]["offline_steps"]
            done = self.offline_steps == self.args.offline_steps
            check(done, f"--pretrained {self.args.pretrained}: has not finished pre-training")

    def load_agent(self, state: dict) -> None:
        try:
            self.agent.load_state_dict(state["agent"])
        except RuntimeError:  # many lines, some for each layer
            fail("the saved networks are of other sizes than those of the settings")
        for name, optimizer in self.agent.optimizers.items():
            # Learning rates are those of the settings, which may be others than in pre-training.
            groups = optimizer.state_dict()["param_groups"]
            saved = state["optimizers"][name]["state"]
            optimizer.load_state_dict({"state": saved, "param_groups": groups})

    def finish(self) -> None:
        """Summary and picture of a run that is done."""
        before, _ = split_evaluations(self.args, self.evaluations)
        summary = {"before": before[-1], "after": self.evaluations[-1][1]}
        content = json.dumps(summary, indent=2)
        write_whole(self.folder / "summary.json", lambda file: file.write(content.encode()))
        for phase, result in summary.items():
            print(f"{phase:6}", *(f"{key} {value:.2f}" for key, value in result.items()), sep="  ")
        draw_curves(self.folder)

    def close(self) -> None:
        self.progress.close()
        with contextlib.suppress(OSError):  # of a full disk, which has ended the run already
            self.writer.close()


def split_evaluations(args: Args, evaluations: list) -> tuple[list[dict], list[dict]]:
    """The results up to the end of pre-training, and those of fine-tuning."""
    before = [result for step, result in evaluations if step <= args.offline_steps]
    online = [result for step, result in evaluations if step > args.offline_steps]
    return before, online


def largest_reward(buffer: ReplayBuffer) -> float:
    """The largest absolute value of the scaled rewards in a buffer."""
    column = buffer.widths[0] + buffer.widths[1]
    online = buffer.ring[: buffer.n_added, column]
    return torch.cat([buffer.offline[:, column], online]).abs().max().item()


# ---- The program ---------------------------------------------------------------------------------


class Task(NamedTuple):
    """A dataset and its environment."""

    env: gym.Env
    rows: Tensor  # (N, width), the columns of a Batch
    attributes: dict  # of the dataset: its environment, its reference scores
    sha256: str  # of the dataset's file
    description: dict  # of the dataset
    summary: DataSummary  # to compare the environment with


def load_task(args: Args) -> Task:
    """Dataset and environment, checked against each other."""
    path, attributes = find_dataset(args.dataset)
    data, own_attributes = read_dataset(path)
    attributes |= own_attributes
    if args.env_id and args.env_id != attributes.get("env_id", args.env_id):
        attributes = {}  # they are about another environment
    check_scores(args, attributes)
    env = make_env(args, attributes)
    check_and_tidy(args, data, env)
    episodes = find_episodes(data)
    problem = "has no whole episode; mark where episodes end in terminals or timeouts"
    check(len(episodes) > 0, f"--dataset {args.dataset}: {problem}")
    box = action_box(env)
    description = describe_dataset(data, episodes, box)
    diagnose_dataset(args, data, episodes, box)
    rows, summary = load_rows(args, data, episodes, box), summarize_data(data, episodes)
    return Task(env, rows, attributes, hash_of(path), description, summary)


def choose_device(args: Args) -> str:
    cuda = torch.cuda.is_available()
    check(cuda or args.device != "cuda", "--device cuda: there is no CUDA here; leave it out")
    device = "cuda" if cuda and args.device != "cpu" else "cpu"
    usable = device == "cuda" or not args.cudagraphs
    check(usable, "--cudagraphs: needs --device cuda; else give --no-cudagraphs")
    if args.bf16 and not has_bf16_units(device):
        warn("--bf16: this processor has no units for bfloat16; a run is slower with it")
    return device


def has_bf16_units(device: str) -> bool:
    """Elsewhere bfloat16 is emulated. A CPU names them amx_bf16, avx512_bf16 and the like."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(on for name, on in torch.cpu.get_capabilities().items() if "bf16" in name)


def make_agent_and_buffer(args: Args, task: Task, device: str) -> tuple[Agent, ReplayBuffer]:
    obs_dim, action_dim = task.env.observation_space.shape[0], task.env.action_space.shape[0]
    seed_everything(args)
    agent = Agent(args, obs_dim, action_dim, device)
    if args.normalize_observations:
        set_normalization(agent, task.rows[:, :obs_dim])
    return agent, ReplayBuffer(args, task.rows, obs_dim, action_dim, device)


def main(argv: list[str] | None = None) -> None:
    """A run, from the command line or in Python with the same arguments: main(["--seed", "1"]).

    Wrong input, a signal in training, a run that diverges and an environment that cannot be learned
    from end it with one line and status 2; other errors keep their traceback, with a note on how to
    go on.
    """
    args = parse_args(sys.argv[1:] if argv is None else argv)
    has_wandb = importlib.util.find_spec("wandb") is not None
    check(has_wandb or not args.track, "--track: needs Weights & Biases; pip install wandb")
    device = choose_device(args)
    torch.set_num_threads(args.threads)
    task = load_task(args)
    check_hash(args, task.sha256)
    origin = args.resume or args.pretrained or f"row {row_of(args.dataset)!r}"
    print(f"{SCRIPT}: settings of {origin}, device {device}, folder {args.run_dir}")
    print_description(task.description)
    agent, buffer = make_agent_and_buffer(args, task, device)
    with lock_folder(args):
        if args.track:
            start_tracking(args)  # before the log is opened
        run = Run(agent, buffer, task)
        save_record(args, task)
        if args.cudagraphs:
            agent.update = GraphedUpdate(agent, run)
        with run.stop:
            train(agent, buffer, task.env, run)


WARM_UP = 3  # calls of each kind that run as usual before one is recorded; CUDA needs some


class GraphedUpdate:
    """Takes the place of agent.update with --cudagraphs: an update is recorded as a CUDA graph, and
    to repeat that takes no Python.

    A graph does the same work on the same memory each time. So new batches and noise are copied
    over those that it was recorded with, and its metrics are overwritten by the next call. What
    update decides in Python is decided in the recording. (After PyTorch's notes on CUDA graphs;
    d3rlpy and LeanRL use them, too.)
    """

    def __init__(self, agent: Agent, run: Run):
        self.update, self.run = agent.update, run
        self.calls, self.recorded = {}, {}  # of each kind of update
        self.stream = torch.cuda.Stream()  # not the usual one, as CUDA demands
        for optimizer in agent.optimizers.values():
            for group in optimizer.param_groups:
                group["capturable"] = True  # Adam's count of steps goes on in a graph

    def __call__(self, batch: Batch, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        # An agent may train otherwise online, and some scripts draw more for an update that is
        # logged: each kind has a graph of its own.
        kind = (self.run.online_steps > 0, *noise)  # of the noise, its names
        self.calls[kind] = self.calls.get(kind, 0) + 1
        if self.calls[kind] <= WARM_UP:
            return self.warm_up(batch, noise)
        if kind not in self.recorded:
            self.recorded[kind] = self.record(batch, noise)
        graph, inputs, metrics = self.recorded[kind]
        for static, new in zip(inputs, [*batch, *noise.values()], strict=True):
            static.copy_(new)
        graph.replay()
        return metrics

    def warm_up(self, batch: Batch, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """As without graphs, but on the stream of the recording."""
        usual = torch.cuda.current_stream()
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream):
            metrics = self.update(batch, noise)
        usual.wait_stream(self.stream)
        return metrics

    def record(self, batch: Batch, noise: dict[str, Tensor]) -> tuple:
        """The graph, its inputs and its metrics. Recording computes nothing yet."""
        batch = Batch(*(column.clone() for column in batch))
        noise = {name: numbers.clone() for name, numbers in noise.items()}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            metrics = self.update(batch, noise)
        return graph, [*batch, *noise.values()], metrics


def train(agent: Agent, buffer: ReplayBuffer, env: gym.Env, run: Run) -> None:
    """Both phases, and what is said and saved if they end early."""
    try:
        run.evaluate_if_due()  # of what it begins with; or where it was stopped in one
        pretrain(agent, buffer, run)
        run.keep_pretrained()
        finetune(agent, buffer, env, run)
        run.finish()
    except (Stopped, UnusableStep) as reason:
        run.save_progress()
        fail(f"stopped: {reason}; {run.how_to_go_on()}")
    except Exception as error:
        error.add_note(f"{SCRIPT}: {run.how_to_go_on()}")
        raise
    finally:
        run.close()
        vars(agent).pop("update", None)  # main may have set it; the graphs are freed with it


# ---- Diagnoses: what a run was given -------------------------------------------------------------
# A dataset can be wrong without an error: training runs on and learns nothing. Each function below
# looks for one such mistake and says in one line what it saw and what to do. They prefer missing a
# mistake to a false alarm.

FEW_REWARDS = 10  # distinct rewards up to which they count as sparse, such as 0 and 1
RECURRENCE = 10  # how often each of them occurs then, on average
SAMPLE = 10_000  # rows that are enough for an average
MANY_CLIPPED, MOST_CLIPPED = 0.05, 0.5  # share of the actions' numbers; above: a warning, the end
FEW_JUMPS, MOST_JUMPS = 1e-4, 0.5  # share of steps not leading to the next row; above: likewise
ROUNDING = 1e-4  # of the action box, by which actions may lie outside
START_ROOM = 0.25  # of the range of the dataset's starts, which is allowed on either side
ENOUGH_PLAYED = 3  # episodes of an evaluation, to call its rewards too good
MANY_LOST = 0.1  # share of the rows with the highest reward that are left out
JUMP = 0.01  # of an observation's usual size; two that differ by more are two states
LARGE_OBS, SMALL_OBS = 1_000.0, 0.01  # usual size of the largest column of the observations
FAR = 10.0  # spreads of the dataset's observations beyond which a first observation is far
ENOUGH_EPISODES = 20  # of a dataset, to know where episodes begin
MOST_ENTRIES = 6  # of a Dict observation; they can be put in 720 orders
MISFIT, MISFIT_FACTOR = 0.1, 4.0  # an order is wrong above 0.1 + 4 * the best order's misfit
KNOWN_REWARDS = 0.2  # share of the environment's rewards that the dataset has, at least
SELDOM = 0.05  # share of the dataset's episodes that begin with its highest reward


class DataSummary(NamedTuple):
    """What of a dataset is compared with the environment at the first evaluation."""

    rewards: np.ndarray  # (N,)
    first_rewards: np.ndarray  # of each episode
    obs_low: np.ndarray  # (obs,), of all observations
    obs_high: np.ndarray  # (obs,)
    start_low: np.ndarray  # (obs,), of each episode's first observation
    start_high: np.ndarray  # (obs,)


def summarize_data(data: dict[str, np.ndarray], episodes: list[slice]) -> DataSummary:
    # Episodes of one step come from runs of terminals, as in AntMaze, and begin at the goal.
    longer = [span.start for span in episodes if span.stop - span.start > 1]
    firsts = longer or [span.start for span in episodes]
    obs, starts = data["observations"], data["observations"][firsts]
    rewards = data["rewards"]
    limits = obs.min(axis=0), obs.max(axis=0), starts.min(axis=0), starts.max(axis=0)
    return DataSummary(rewards, rewards[firsts], *limits)


def thin_out(array: np.ndarray) -> np.ndarray:
    """At most 10,000 rows of an array, evenly spaced; a view, not a copy."""
    return array[:: len(array) // SAMPLE + 1]


def few_rewards(rewards: np.ndarray) -> np.ndarray | None:
    """The distinct rewards, sorted, if they are few and recur; else None."""
    values = np.unique(rewards) + 0.0  # makes 0 of -0
    return values if len(values) <= min(FEW_REWARDS, len(rewards) / RECURRENCE) else None


def share_outside(actions: np.ndarray, box: gym.spaces.Box) -> float:
    """Share of the actions' numbers that lie outside the action box by more than rounding."""
    tolerance = ROUNDING * (box.high - box.low)
    below = np.count_nonzero(actions < box.low - tolerance)
    above = np.count_nonzero(actions > box.high + tolerance)
    return (below + above) / actions.size


def describe_dataset(
    data: dict[str, np.ndarray], episodes: list[slice], box: gym.spaces.Box
) -> dict:
    """Facts about a dataset, for args.json and print_description."""
    rewards, actions = data["rewards"], data["actions"]
    lengths = [span.stop - span.start for span in episodes]
    by_terminal = sum(bool(data["terminals"][span.stop - 1]) for span in episodes)
    last_end = int(np.flatnonzero(data["terminals"] | data["timeouts"])[-1])
    scaled = 2 * (thin_out(actions) - box.low) / (box.high - box.low) - 1
    return {
        "rows": len(rewards),
        "rows_used": sum(lengths),
        "rows_of_an_open_episode": len(rewards) - 1 - last_end,
        "episodes": len(episodes),
        "episodes_of_one_step": lengths.count(1),
        "ended_by_terminal": by_terminal,
        "ended_by_timeout": len(episodes) - by_terminal,
        "longest_episode": max(lengths),
        "mean_action_size": float(np.abs(scaled).mean()),
        "actions_clipped": share_outside(actions, box),
        **describe_rewards(np.concatenate([rewards[span] for span in episodes]), lengths),
    }


def describe_rewards(rewards: np.ndarray, lengths: list[int]) -> dict:
    """Returns of episodes of these lengths, one after the other. Where rewards are few: how many
    rows have each, and how many episodes reach the highest: those with a success, wherever success
    is what is rewarded."""
    episodes = np.split(rewards, np.cumsum(lengths)[:-1])
    returns = [float(episode.sum(dtype=np.float64)) for episode in episodes]
    description = {
        "return_least": min(returns),
        "return_mean": sum(returns) / len(returns),
        "return_most": max(returns),
    }
    values = few_rewards(rewards)
    if values is not None:
        description["rewards"] = {f"{value:g}": int((rewards == value).sum()) for value in values}
    if values is not None and len(values) > 1:
        best = [bool((episode == values[-1]).any()) for episode in episodes]
        description["episodes_with_the_highest"] = sum(best)
    return description


def print_description(description: dict) -> None:
    """Three lines: a dataset's episodes, its rewards, its actions."""
    about = description
    line = f"data: {about['rows_used']:,} of {about['rows']:,} rows are used, in"
    line += f" {about['episodes']:,} episodes ({about['episodes_of_one_step']:,} of a single step):"
    line += f" {about['ended_by_terminal']:,} end in a terminal,"
    line += f" {about['ended_by_timeout']:,} at a time limit"
    if about["rows_of_an_open_episode"] > 0:
        line += f"; after the last end {about['rows_of_an_open_episode']:,} rows are left out"
    print(line)
    line = f"data: returns from {about['return_least']:.4g} to {about['return_most']:.4g},"
    line += f" mean {about['return_mean']:.4g}"
    if "rewards" in about:
        counts = [f"{value} ({count:,} rows)" for value, count in about["rewards"].items()]
        line += f"; rewards {', '.join(counts)}"
    if "episodes_with_the_highest" in about:
        line += f"; {about['episodes_with_the_highest']:,} episodes have the highest"
    print(line)
    line = (
        f"data: rescaled to [-1, 1], actions have a mean size of {about['mean_action_size']:.2f};"
    )
    line += f" {about['actions_clipped']:.2%} of their numbers are outside and clipped"
    print(line, flush=True)


def diagnose_dataset(
    args: Args, data: dict[str, np.ndarray], episodes: list[slice], box: gym.spaces.Box
) -> None:
    """All that can be seen in the file alone."""
    check_row_order(args, data, episodes)
    check_clipped_actions(args, data["actions"], box)
    warn_of_lost_rewards(data, episodes)
    warn_of_equal_rewards(args, data, episodes)
    if not args.normalize_observations:
        warn_of_observation_scale(data["observations"])


def check_row_order(args: Args, data: dict[str, np.ndarray], episodes: list[slice]) -> None:
    """Returns are sums over the rows that follow, so rows must be in order of time. Whether they
    are can be seen where the file has next_observations."""
    if "next_observations" not in data:
        return
    jumps = share_of_jumps(data, episodes)
    seen = f"in {jumps:.2%} of the steps next_observations is not the next row's observation"
    remedy = "write whole episodes one after the other, neither shuffled nor interleaved"
    problem = f"--dataset {args.dataset}: the rows are not in order of time: {seen}; {remedy}"
    check(jumps <= MOST_JUMPS, problem)
    if jumps > FEW_JUMPS:
        warn(f"{seen}, so some returns are wrong: mark the ends of all episodes, and {remedy}")


def share_of_jumps(data: dict[str, np.ndarray], episodes: list[slice]) -> float:
    """Share of the steps within episodes whose next observation is not the next row's."""
    obs, next_obs = data["observations"], data["next_observations"]
    tolerance = JUMP * np.abs(thin_out(obs)).mean(axis=0)
    n_jumps = n_steps = 0
    for span in episodes:
        following = obs[span.start + 1 : span.stop]
        own = next_obs[span.start : span.stop - 1]  # the last step leads out of the episode
        n_jumps += np.count_nonzero((np.abs(own - following) > tolerance).any(axis=1))
        n_steps += len(following)
    return n_jumps / max(n_steps, 1)


def check_clipped_actions(args: Args, actions: np.ndarray, box: gym.spaces.Box) -> None:
    """Where many actions are clipped, the file probably has them on another scale, and the clipped
    ones are not what was done."""
    outside = share_outside(actions, box)
    if outside <= MANY_CLIPPED:
        return
    seen = f"{outside:.0%} of the numbers of actions lie outside the environment's action box"
    seen += f" ({box.low.min():g} to {box.high.max():g}; the file's: {actions.min():.4g} to"
    seen += f" {actions.max():.4g})"
    remedy = "rescale the file's actions to that box, or name their environment with --env-id"
    check(outside <= MOST_CLIPPED, f"--dataset {args.dataset}: {seen}; {remedy}")
    warn(f"{seen}. They are clipped, which is right if they were when played; if not, {remedy}")


def warn_of_lost_rewards(data: dict[str, np.ndarray], episodes: list[slice]) -> None:
    """Goals that are marked as timeouts: their rows are left out, and the successes with them."""
    values = few_rewards(data["rewards"])
    used = np.concatenate([data["rewards"][span] for span in episodes])
    if values is None or (used == used[0]).all():  # of equal rewards another warning tells
        return
    best = data["rewards"] == values[-1]
    n_lost = np.count_nonzero(best & data["timeouts"] & ~data["terminals"])
    if n_lost > MANY_LOST * np.count_nonzero(best):
        seen = f"{n_lost:,} of {np.count_nonzero(best):,} rows with the highest reward"
        warn(f"{seen} are left out, since they are timeouts; mark goals as terminals")


def warn_of_equal_rewards(args: Args, data: dict[str, np.ndarray], episodes: list[slice]) -> None:
    """Where all rewards are the same, no action is better than another. The exception: scaled ones
    other than 0 where the task ends episodes, since then it matters how long these last."""
    used = np.concatenate([data["rewards"][span] for span in episodes])
    ends = [data["terminals"][span.stop - 1] for span in episodes]
    length_matters = scale_rewards(args, used[0]) != 0 and any(ends)
    if (used != used[0]).any() or length_matters:
        return
    remedy = "write the task's rewards into the file"
    if (data["rewards"] != used[0]).any():
        remedy = "the others are in rows that are left out; mark goals as terminals, not timeouts"
    warn(f"all rewards that are used are {used[0] + 0.0:g}, so there is nothing to learn: {remedy}")


def warn_of_observation_scale(obs: np.ndarray) -> None:
    """Networks learn from numbers of about 1 in size. A few tiny columns do no harm."""
    sizes = np.sqrt(np.square(thin_out(obs), dtype=np.float64).mean(axis=0))
    if sizes.max() > LARGE_OBS or 0 < sizes.max() < SMALL_OBS:
        seen = f"observations are about {sizes.max():.2g} in size in column {sizes.argmax()}"
        warn(f"{seen}, the largest; networks learn badly from that: add --normalize-observations")


def compare_with_data(task: Task, episodes: list[Episode]) -> None:
    """Checks on the first evaluation: where episodes begin and which kind of rewards there are
    hardly depends on the policy."""
    firsts = np.stack([episode.obs[0] for episode in episodes])
    warn_of_other_starts(task.summary, firsts, entries_of(task.env))
    warn_of_other_rewards(task.summary, episodes)


def warn_of_other_starts(data: DataSummary, firsts: np.ndarray, entries: dict[str, int]) -> None:
    """Whether the numbers of an observation mean the same in dataset and environment. The usual
    reason if not: the entries of a Dict observation were put together in another order."""
    listed = ", ".join(f"{key} ({size})" for key, size in entries.items())
    order, far = better_order(data, firsts, entries), far_columns(data, firsts)
    if order:
        seen = "the environment's first observations do not fit the dataset's, which seem to have"
        seen += f" their entries in the order {', '.join(order)}"
        warn(f"{seen}; write the file's in gymnasium's order, {listed}")
    elif len(far) > 0:
        column = far[0]
        low, high = data.obs_low[column], data.obs_high[column]
        seen = f"in the environment's first observations column {column} is"
        seen += f" {firsts[0, column]:.4g}, far from the dataset's {low:.4g} to {high:.4g}"
        hint = f" (the environment's entries are {listed})" if entries else ""
        warn(f"{seen}; make sure that both have the same quantities, order and units{hint}")


def entries_of(env: gym.Env) -> dict[str, int]:
    """A Dict observation's entries in the order in which gymnasium flattens them, with the size of
    each; empty for any other observation."""
    space = env.env.env.observation_space  # that of the environment inside FlattenObservation
    if not isinstance(space, gym.spaces.Dict):
        return {}
    return {key: gym.spaces.flatdim(entry) for key, entry in space.spaces.items()}


def better_order(data: DataSummary, firsts: np.ndarray, entries: dict[str, int]) -> list[str]:
    """The order of entries in which the environment's first observations fit those of the dataset,
    if they do not fit as they are; else nothing.

    Start and goal may be elsewhere in a good dataset: then no order fits, and nothing is said. Even
    in the right order some numbers fall outside, where there are few episodes to compare.
    """
    few = len(data.first_rewards) < ENOUGH_EPISODES
    if few or not 1 < len(entries) <= MOST_ENTRIES:
        return []
    ends = np.cumsum(list(entries.values()))
    parts = dict(zip(entries, np.split(firsts, ends[:-1], axis=1)))
    misfits = {}
    for order in itertools.permutations(entries):
        numbers = np.concatenate([parts[key] for key in order], axis=1)
        misfits[order] = share_outside_starts(data, numbers)
    best = min(misfits, key=misfits.get)
    fits = misfits[tuple(entries)] <= MISFIT + MISFIT_FACTOR * misfits[best]
    return [] if fits else list(best)


def share_outside_starts(data: DataSummary, firsts: np.ndarray) -> float:
    """Share of the numbers that lie outside the range in which the dataset's episodes begin, with
    some room around it. Zeros do not count: an observation may be full of them."""
    room = START_ROOM * (data.start_high - data.start_low) + 1e-3  # constant ones have some, too
    outside = (firsts < data.start_low - room) | (firsts > data.start_high + room)
    counted = firsts != 0
    return np.count_nonzero(outside & counted) / max(np.count_nonzero(counted), 1)


def far_columns(data: DataSummary, firsts: np.ndarray) -> np.ndarray:
    """In which columns all first observations are far outside what the dataset ever has there.

    A start elsewhere, or a goal that is constant in the dataset, is not far: distance is measured
    by the spread of that column or by the mean spread of all, whichever is larger.
    """
    spread = data.obs_high - data.obs_low
    margin = FAR * np.maximum(spread, spread.mean())
    outside = (firsts < data.obs_low - margin) | (firsts > data.obs_high + margin)
    return np.flatnonzero(outside.all(axis=0))


def warn_of_other_rewards(data: DataSummary, episodes: list[Episode]) -> None:
    """Whether dataset and environment have the same kind of rewards.

    An untrained policy may see fewer of them, or worse ones. So this speaks only in two cases: one
    side has few distinct values, and the environment's are hardly ever among the dataset's; or all
    that was played is at least the dataset's highest, although the dataset's episodes begin lower
    (success - 1 in the dataset, 0 and 1 in the environment).
    """
    played = np.concatenate([episode.rewards for episode in episodes]).astype(np.float32)
    values = few_rewards(data.rewards)
    sparse = values is not None or few_rewards(played) is not None
    strange = sparse and np.isin(played, data.rewards).mean() < KNOWN_REWARDS
    too_good = False
    if values is not None and len(episodes) >= ENOUGH_PLAYED:
        begin_best = (data.first_rewards == values[-1]).mean()
        too_good = played.min() >= values[-1] and begin_best < SELDOM
    if strange or too_good:
        seen = f"the dataset's rewards are {spell(data.rewards)}, but those of the environment"
        seen += f" {spell(played)} in the first evaluation, and do not match"
        remedy = "convert the file's rewards (--reward-scale and --reward-bias change both alike)"
        warn(f"{seen}; {remedy}, or name the environment that they are from with --env-id")


def spell(rewards: np.ndarray) -> str:
    """The distinct rewards if they are few, else from where to where they go."""
    values = few_rewards(rewards)
    if values is None:
        return f"many values from {rewards.min():.4g} to {rewards.max():.4g}"
    return ", ".join(f"{value:g}" for value in values)


def warn_of_exploding_q(evaluations: list) -> None:
    """Q beyond what the rewards seen so far allow; said at the first such evaluation alone."""
    newest, result = evaluations[-1]
    told = any(explodes(step, earlier) for step, earlier in evaluations[:-1])
    if explodes(newest, result) and not told:
        allowed = f"{result['q_bound']:g}, what the rewards so far allow (eval/q_bound)"
        warn(f"Q(s0) explodes: from step {newest} on it is beyond {allowed}")


def explodes(step: int, result: dict[str, float]) -> bool:
    """A bound of 0 says nothing, and before the first update nothing has been learned."""
    return step > 0 and abs(result["q_s0"]) > result["q_bound"] > 0


if __name__ == "__main__" and "__file__" in globals():  # in a notebook, call main yourself
    main()
