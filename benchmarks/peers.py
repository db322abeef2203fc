"""What throughput.py measures: a script of this project or another program, in its own process.

    python -m benchmarks.peers SPEC                throughput.py starts it; SPEC is a Spec as JSON

A process builds networks and a replay buffer of random transitions by the settings that it is
given, says that it is ready, and answers each line of its input with a line of JSON:

    update SECONDS     takes gradient steps for that long: {"n": steps, "seconds": time they took}
    batch SECONDS      draws batches for that long, likewise
    facts              {"memory": bytes at most, "flops": floating-point operations of an update}

Seconds are CPU time of the process, which other work on the machine hardly changes, or wall time.
An update includes its random numbers. It takes one of a few batches that lie ready, since drawing
them is measured on its own.

The process is started by the Python that the program is installed in. So beyond the standard
library and NumPy everything is imported where it is needed. Nothing of these programs is copied or
changed on disk, they are only called, with networks of the same sizes and the same settings:

    d3rlpy   github.com/takuseno/d3rlpy, the package
    corl     github.com/corl-team/CORL, a checkout
    calql    github.com/nakamotoo/Cal-QL, the authors' code in JAX, a checkout; CQL and Cal-QL alone

What differs in the work is said with each class below.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

N_BATCHES = 16  # that lie ready


@dataclass
class Spec:
    program: str  # a key of PROGRAMS
    script: str = ""  # the algorithm, by the name of this project's script
    settings: dict | None = None  # the script's Args
    obs: int = 1  # numbers of an observation
    act: int = 1  # of an action
    episode: int = 1  # steps of an episode, which d3rlpy's sums of rewards depend on
    rows: int = 10_000  # transitions in the buffer
    device: str = "cpu"  # or cuda
    threads: int = 1  # CPU threads
    wall: bool = False  # whether seconds are wall time, not CPU time
    folder: str = ""  # of the checkout


def commit(folder: str) -> str:
    """The commit that is checked out, and whether files differ from it."""
    describe = ["git", "-C", folder, "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(describe, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def peak_memory() -> int:
    """The most memory that the process has had, in bytes. (getrusage would start with what the
    process that started this one had.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status: this needs Linux")


# ---- The same work -------------------------------------------------------------------------------


def n_parameters(*widths: int) -> int:
    """Weights and biases of linear layers of these widths."""
    return sum((n_in + 1) * n_out for n_in, n_out in zip(widths, widths[1:]))


def expected_sizes(spec: Spec) -> dict[str, int]:
    """Parameters in the linear layers of policy, critics and value."""
    settings, obs, act = spec.settings, spec.obs, spec.act
    n_outputs = 2 * act if spec.script in ("cql", "cal_ql") else act  # with the log-std or without
    sizes = {
        "actor": n_parameters(obs, *settings["actor_hidden"], n_outputs),
        "critic": 2 * n_parameters(obs + act, *settings["critic_hidden"], 1),
    }
    if "value_hidden" in settings:
        sizes["value"] = n_parameters(obs, *settings["value_hidden"], 1)
    return sizes


def check_sizes(spec: Spec, found: dict[str, int]) -> None:
    if found != (expected := expected_sizes(spec)):
        raise RuntimeError(f"networks of other sizes: {found}, {spec.script}.py has {expected}")


def transitions(spec: Spec) -> dict[str, np.ndarray]:
    """Random ones, without terminations, as arrays with D4RL's names."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.random((spec.rows, *shape), np.float32) - 0.5

    return {
        "observations": draw(spec.obs),
        "actions": draw(spec.act),
        "rewards": draw(),
        "next_observations": draw(spec.obs),
        "terminals": np.zeros(spec.rows, np.float32),
        "mc_returns": draw(),
    }


# ---- The programs --------------------------------------------------------------------------------
# Each has batch(), update(batch) and finish(), which returns when all that was begun is done.


class OnTorch:
    """What all programs with torch share."""

    packages = ["torch", "numpy"]  # whose versions matter

    def __init__(self, spec: Spec):
        import torch

        torch.set_num_threads(spec.threads)
        self.torch, self.spec, self.cuda = torch, spec, spec.device == "cuda"

    def finish(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def facts(self) -> dict:
        memory = self.torch.cuda.max_memory_allocated() if self.cuda else peak_memory()
        return {"memory": memory, "flops": self.flops()}

    def flops(self) -> int:
        """Of the matrix products of an update, forward and backward; a sum and a product are two.
        All else is left out: it is little."""
        from torch.utils.flop_counter import FlopCounterMode

        batch = self.batch()
        with FlopCounterMode(display=False) as counter:
            self.update(batch)
        return counter.get_total_flops()

    def count_linear(self, *modules) -> int:
        layers = [layer for module in modules for layer in module.modules()]
        layers = [layer for layer in layers if isinstance(layer, self.torch.nn.Linear)]
        return sum(p.numel() for layer in layers for p in layer.parameters())


class Ours(OnTorch):
    """A script of this project; its metrics are not asked for, as in most updates of a run."""

    def __init__(self, spec: Spec):
        super().__init__(spec)
        module, torch = importlib.import_module(spec.script), self.torch
        # JSON has no tuples.
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.settings.items()}
        self.args = module.Args(**settings)
        self.agent = module.Agent(self.args, spec.obs, spec.act, spec.device)
        rows = torch.rand(spec.rows, 2 * spec.obs + spec.act + 3).sub_(0.5)
        rows[:, -2] = 0  # no terminations
        self.buffer = module.ReplayBuffer(self.args, rows, spec.obs, spec.act, spec.device)
        self.generator = torch.Generator(spec.device).manual_seed(0)

    def batch(self):
        return self.buffer.sample(self.generator)

    def update(self, batch) -> None:
        noise = self.agent.draw(len(batch.obs), self.generator, False)
        self.agent.update(batch, noise)

    def facts(self) -> dict:
        tensors = [x for x in vars(self.buffer).values() if isinstance(x, self.torch.Tensor)]
        return super().facts() | {"buffer": sum(x.nbytes for x in tensors)}

    def flops(self) -> int:
        """Counted with an agent on the CPU: the counter sees nothing in a CUDA graph."""
        settings = self.spec.settings
        if "cudagraphs" in settings:
            settings = settings | {"cudagraphs": False}
        twin = Ours(replace(self.spec, device="cpu", rows=1, settings=settings))
        return super(Ours, twin).flops()


class Matrix(OnTorch):
    """What a device can do: products of square matrices, of the size that is fastest."""

    sizes = {"cpu": (256, 384, 512, 768, 1024), "cuda": (2048, 4096, 8192)}

    def __init__(self, spec: Spec):
        super().__init__(spec)
        speeds = {}
        for size in self.sizes[spec.device]:
            self.take(size)
            for seconds in (0.02, 0.1):  # the first is a warm-up
                n, spent = repeat(lambda: self.update(None), seconds, clock_of(spec), self.finish)
            speeds[size] = n * self.flops() / spent
        self.take(max(speeds, key=speeds.get))

    def take(self, size: int) -> None:
        dtype = self.torch.bfloat16 if self.spec.settings["bf16"] else self.torch.float32
        options = dict(dtype=dtype, device=self.spec.device)
        self.left, self.right = (self.torch.rand(size, size, **options) for _ in range(2))
        self.product = self.torch.empty(size, size, **options)

    def batch(self) -> None:
        return None

    def update(self, batch: None) -> None:
        self.torch.mm(self.left, self.right, out=self.product)

    def flops(self) -> int:
        return 2 * len(self.left) ** 3


class D3rlpy(OnTorch):
    """d3rlpy's algorithms, by their update method.

    Its update also turns arrays into tensors and, in Cal-QL, sums up the rewards after each
    transition. Other than here: CQL takes the mean action where max_target_backup is off, has
    importance sampling always, and computes Q of the data's actions twice. IQL and AWAC learn a
    log-std always, IQL's V and critics share an optimizer.
    """

    packages = ["d3rlpy", *OnTorch.packages]

    def __init__(self, spec: Spec):
        super().__init__(spec)
        import d3rlpy

        data = transitions(spec)
        ends = np.arange(1, spec.rows + 1) % spec.episode == 0
        ends[-1] = True
        data = [data[key] for key in ("observations", "actions", "rewards", "terminals")]
        self.dataset = d3rlpy.dataset.MDPDataset(*data, timeouts=ends.astype(np.float32))
        self.batch_size = spec.settings["batch_size"]
        self.algo = self.config(d3rlpy).create(device=f"{spec.device}:0")
        self.algo.build_with_dataset(self.dataset)
        modules = self.algo.impl.modules
        sizes = {"actor": modules.policy, "critic": modules.q_funcs}
        if spec.script == "iql":
            sizes["value"] = modules.value_func
        check_sizes(spec, {key: self.count_linear(net) for key, net in sizes.items()})

    def config(self, d3rlpy):
        """The algorithm's settings under d3rlpy's names."""
        settings, script = self.spec.settings, self.spec.script

        def encoder(name: str, **options):
            return d3rlpy.models.VectorEncoderFactory(list(settings[f"{name}_hidden"]), **options)

        options = {key: settings[key] for key in ("batch_size", "gamma", "tau")}
        options |= {f"{name}_learning_rate": settings[f"{name}_lr"] for name in ("actor", "critic")}
        options["compile_graph"] = settings.get("cudagraphs", False)  # its own CUDA graphs
        options["critic_encoder_factory"] = encoder("critic")
        options["actor_encoder_factory"] = encoder(
            "actor", dropout_rate=settings.get("dropout") or None
        )
        if script == "iql":
            options["value_encoder_factory"] = encoder("value")
            more = {"expectile": settings["expectile"], "weight_temp": settings["beta"]}
        elif script == "awac":
            more = {"lam": settings["awac_lambda"], "n_action_samples": settings["n_actions"]}
        else:
            more = self.conservative()
        names = {"iql": "IQL", "awac": "AWAC", "cql": "CQL", "cal_ql": "CalQL"}
        return getattr(d3rlpy.algos, f"{names[script]}Config")(**options, **more)

    def conservative(self) -> dict:
        """What CQL and Cal-QL have beside; without a rate the factor on the penalty stays at 1."""
        settings = self.spec.settings
        gap = settings["lagrange_gap"]
        return {
            "conservative_weight": settings["cql_weight"],
            "n_action_samples": settings["n_actions"],
            "max_q_backup": settings["max_target_backup"],
            "temp_learning_rate": settings["actor_lr"],
            "alpha_learning_rate": 0.0 if gap is None else settings["critic_lr"],
            "initial_alpha": 1.0 if gap is None else math.e,
            "alpha_threshold": gap or 0.0,
        }

    def batch(self):
        return self.dataset.sample_transition_batch(self.batch_size)

    def update(self, batch) -> None:
        self.algo.update(batch)


class Corl(OnTorch):
    """CORL's files for fine-tuning, by their train or update method.

    Their networks are of fixed widths or depths, and are replaced by such of the given widths.
    Every update also reads its metrics. Other than here: with lagrange_gap the penalty is
    differentiated twice, since the factor's loss is; AWAC limits its weights at 100 instead of
    normalising them, and has Adam for AdamW.
    """

    def __init__(self, spec: Spec):
        super().__init__(spec)
        # Only its environments and its logging need them.
        sys.modules |= {name: MagicMock() for name in ("d4rl", "gym", "pyrallis", "wandb")}
        path = Path(spec.folder, "algorithms", "finetune", f"{spec.script}.py")
        found = importlib.util.spec_from_file_location(f"corl_{spec.script}", path)
        self.module = sys.modules[found.name] = importlib.util.module_from_spec(found)
        found.loader.exec_module(self.module)

        self.buffer = self.module.ReplayBuffer(spec.obs, spec.act, spec.rows, spec.device)
        self.buffer.load_d4rl_dataset(transitions(spec))
        build = {"iql": self.build_iql, "awac": self.build_awac}.get(spec.script, self.build_cql)
        self.step, networks = build()
        check_sizes(spec, {key: self.count_linear(*nets) for key, nets in networks.items()})

    def mlp(self, *widths: int):
        nn, layers = self.torch.nn, []
        for n_in, n_out in zip(widths, widths[1:]):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def trained(self, name: str, net, rate: str) -> dict:
        """A network and its optimizer, under the names that CORL's trainers give them."""
        net = net.to(self.spec.device)
        adam = self.torch.optim.Adam(net.parameters(), lr=self.spec.settings[rate])
        return {name: net, f"{name.removesuffix('_network')}_optimizer": adam}

    def build_iql(self):
        spec, settings, module = self.spec, self.spec.settings, self.module
        shape = {
            key: dict(
                hidden_dim=settings[f"{key}_hidden"][0], n_hidden=len(settings[f"{key}_hidden"])
            )
            for key in ("actor", "critic", "value")
        }
        dropout = settings["dropout"]
        actor = module.GaussianPolicy(spec.obs, spec.act, 1.0, **shape["actor"], dropout=dropout)
        critic = module.TwinQ(spec.obs, spec.act, **shape["critic"])
        value = module.ValueFunction(spec.obs, **shape["value"])
        networks = self.trained("actor", actor, "actor_lr")
        networks |= self.trained("q_network", critic, "critic_lr")
        networks |= self.trained("v_network", value, "value_lr")
        options = {"beta": settings["beta"], "iql_tau": settings["expectile"]}
        options |= {"discount": settings["gamma"], "tau": settings["tau"], "device": spec.device}
        trainer = module.ImplicitQLearning(max_action=1.0, **networks, **options)
        return trainer.train, {"actor": [actor], "critic": [critic], "value": [value]}

    def build_awac(self):
        spec, settings, module = self.spec, self.spec.settings, self.module
        actor = module.Actor(spec.obs, spec.act, 1)
        actor._mlp = self.mlp(spec.obs, *settings["actor_hidden"], spec.act)
        critics = [module.Critic(spec.obs, spec.act, 1) for _ in range(2)]
        networks = self.trained("actor", actor, "actor_lr")
        for i, critic in enumerate(critics):
            critic._mlp = self.mlp(spec.obs + spec.act, *settings["critic_hidden"], 1)
            networks |= self.trained(f"critic_{i + 1}", critic, "critic_lr")
        options = {key: settings[key] for key in ("gamma", "tau", "awac_lambda")}
        trainer = module.AdvantageWeightedActorCritic(**networks, **options)
        return trainer.update, {"actor": [actor], "critic": critics}

    def build_cql(self):
        spec, settings, module = self.spec, self.spec.settings, self.module
        actor = module.TanhGaussianPolicy(spec.obs, spec.act, 1.0)
        actor.base_network = self.mlp(spec.obs, *settings["actor_hidden"], 2 * spec.act)
        critics = [module.FullyConnectedQFunction(spec.obs, spec.act) for _ in range(2)]
        networks = self.trained("actor", actor, "actor_lr")
        for i, critic in enumerate(critics):
            critic.network = self.mlp(spec.obs + spec.act, *settings["critic_hidden"], 1)
            networks |= self.trained(f"critic_{i + 1}", critic, "critic_lr")
        options = {"bc_steps": 0, "device": spec.device, "cql_alpha": settings["cql_weight"]}
        kind = module.CalQL if spec.script == "cal_ql" else module.ContinuousCQL
        trainer = kind(**networks, **options, **authors_options(spec))
        return trainer.train, {"actor": [actor], "critic": critics}

    def batch(self) -> list:
        sampled = self.buffer.sample(self.spec.settings["batch_size"])
        return [tensor.to(self.spec.device) for tensor in sampled]

    def update(self, batch: list) -> None:
        self.step(batch)


def authors_options(spec: Spec) -> dict:
    """Settings of CQL and Cal-QL under the names of the authors' code, which CORL has, too."""
    settings, gap = spec.settings, spec.settings["lagrange_gap"]
    return {
        "target_entropy": settings["target_entropy"] * spec.act,
        "discount": settings["gamma"],
        "policy_lr": settings["actor_lr"],
        "qf_lr": settings["critic_lr"],
        "soft_target_update_rate": settings["tau"],
        "cql_n_actions": settings["n_actions"],
        "cql_importance_sample": settings["importance_sampling"],
        "cql_max_target_backup": settings["max_target_backup"],
        "cql_lagrange": gap is not None,
        "cql_target_action_gap": gap or 0.0,
    }


class CalQL:
    """The authors' code, by its train method. Metrics are computed in every update; matrix products
    are not counted."""

    packages = ["jax", "flax", "numpy"]

    def __init__(self, spec: Spec):
        use_one_thread(spec)
        sys.modules |= {name: MagicMock() for name in ("d4rl", "gym")}  # for its environments
        sys.path.insert(0, spec.folder)
        import jax
        from JaxCQL import conservative_sac, jax_utils, model, replay_buffer

        # It was written for a jax that called these a_min and a_max.
        clip = jax.numpy.clip
        jax.numpy.clip = lambda x, a_min=None, a_max=None: clip(x, a_min, a_max)
        jax_utils.init_rng(0)
        self.jax, self.spec = jax, spec
        self.subsample, self.to_jax = replay_buffer.subsample_batch, jax_utils.batch_to_jax
        self.data = transitions(spec)
        self.data["dones"] = self.data.pop("terminals")
        self.sac = self.build(conservative_sac, model)
        params = self.sac.train_params
        critic = self.count(params["qf1"]) + self.count(params["qf2"])
        check_sizes(spec, {"actor": self.count(params["policy"]), "critic": critic})
        for _ in range(2):  # each compiles: the types of some numbers change after the first
            self.update(self.batch())
        self.finish()

    def build(self, conservative_sac, model):
        spec, settings = self.spec, self.spec.settings
        shape = {
            name: (spec.obs, spec.act, "-".join(map(str, settings[f"{name}_hidden"])), True)
            for name in ("actor", "critic")
        }
        policy = model.TanhGaussianPolicy(*shape["actor"])
        critic = model.FullyConnectedQFunction(*shape["critic"])
        return conservative_sac.ConservativeSAC(authors_options(spec), policy, critic)

    def count(self, params) -> int:
        """Of the linear layers: scalars are no part of them."""
        return sum(np.size(x) for x in self.jax.tree_util.tree_leaves(params) if np.ndim(x))

    def batch(self) -> dict:
        return self.to_jax(self.subsample(self.data, self.spec.settings["batch_size"]))

    def update(self, batch: dict) -> None:
        weight, bounded = self.spec.settings["cql_weight"], self.spec.script == "cal_ql"
        self.sac.train(batch, use_cql=True, cql_min_q_weight=weight, enable_calql=bounded)

    def finish(self) -> None:
        self.jax.block_until_ready(self.sac.train_states)

    def facts(self) -> dict:
        if self.spec.device == "cuda":
            return {"memory": self.jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]}
        return {"memory": peak_memory()}


def use_one_thread(spec: Spec) -> None:
    """Tells jax, before it is imported, what to run on."""
    if spec.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    if spec.threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


PROGRAMS = {"ours": Ours, "matrix": Matrix, "d3rlpy": D3rlpy, "corl": Corl, "calql": CalQL}

# ---- The process ---------------------------------------------------------------------------------


def clock_of(spec: Spec) -> Callable[[], float]:
    return time.perf_counter if spec.wall else time.process_time


def repeat(
    step: Callable[[], object],
    seconds: float,
    clock: Callable[[], float],
    finish: Callable[[], None],
) -> tuple[int, float]:
    """Takes the step again and again, at least once: how often, and how long it took.

    The clock is read when all is done that was begun, which a GPU is not to be asked often. So a
    round takes twice as many steps as were taken before, but no more than there seems time for.
    """
    n, spent, began = 0, 0.0, clock()
    while n == 0 or spent < seconds:
        time_for = int(n * (seconds / spent - 1)) if spent else 1
        for _ in range(min(max(time_for, 1), 2 * n + 1)):
            step()
            n += 1
        finish()
        spent = clock() - began
    return n, spent


def versions(program, spec: Spec) -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in program.packages}
    checkout = {"commit": commit(spec.folder)} if spec.folder else {}
    return checkout | {"Python": platform.python_version()} | found


def serve(program, spec: Spec, lines, answer: Callable[[dict], None]) -> None:
    """Answers line after line, until there are no more."""
    batches = itertools.cycle([program.batch() for _ in range(N_BATCHES)])
    steps = {"update": lambda: program.update(next(batches)), "batch": program.batch}
    answer({"versions": versions(program, spec)})
    for line in lines:
        task, *seconds = line.split()
        if task == "facts":
            answer(program.facts())
        else:
            n, spent = repeat(steps[task], float(seconds[0]), clock_of(spec), program.finish)
            answer({"n": n, "seconds": spent})


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    # Whatever else is printed goes where the errors go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(reply: dict) -> None:
        print(json.dumps(reply), file=answers, flush=True)

    try:
        program = PROGRAMS[spec.program](spec)
    except ImportError as error:
        sys.exit(str(error))
    serve(program, spec, sys.stdin, answer)


if __name__ == "__main__":
    main()
