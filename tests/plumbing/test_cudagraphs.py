"""--cudagraphs changes no number. Where there is no GPU a stand-in of this file takes a graph's
part: like one it repeats what was done, on the same memory, and nothing that Python decided. What
it cannot show is whether a GPU rounds alike in a graph, and mistakes with streams and memory."""

import copy
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import quick, read_checkpoint, read_events, same_bits, words
from scripts import AWR_FAMILY, SCRIPTS, load_script, randn, small_problem
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HAS_CUDA = torch.cuda.is_available()
# What makes the CPU wait for a GPU: a number or a decision is asked for.
WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_to_cpu"}


class Operations(TorchDispatchMode):
    """What torch is asked to compute, backward passes and optimizers included."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, out))
        return out


def without_history(x):
    return x.detach() if isinstance(x, torch.Tensor) else x


class GraphOnCpu(Operations):
    """The part of torch.cuda.CUDAGraph that is used, with the operations above instead."""

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, out in self.done:
            args, kwargs, out = tree_map(without_history, (args, kwargs, out))
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again)):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors_of(agent) -> list[torch.Tensor]:
    """All that an update changes."""
    states = [x for optimizer in agent.optimizers.values() for x in optimizer.state.values()]
    return [*agent.state_dict().values(), *(x for state in states for x in state.values())]


@pytest.fixture
def graphs(monkeypatch):
    """Lets GraphedUpdate record on the CPU what is done to the agents in this list."""
    agents = []

    @contextmanager
    def recording(graph, stream):
        [agent] = agents
        before = [x.clone() for x in tensors_of(agent)]
        with graph:
            yield
        for x, old in zip(tensors_of(agent), before):  # a recording computes nothing
            x.detach().copy_(old)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "CUDAGraph": GraphOnCpu,
        "graph": recording,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return agents


def problem(name: str, device: str, **settings):
    """A script, an agent of it, a run that says which phase it is, and five different batches."""
    script = load_script(name)
    agent, _, _ = small_problem(script, torch.float32, **settings)
    agent.to(device)
    agent.device = device
    rows = randn(100, sum(script.column_widths(4, 2)), seed=1, dtype=torch.float32).tanh()
    rows[:, -2] = rows[:, -2] > 0.9  # terminations
    buffer = script.ReplayBuffer(agent.args, rows, 4, 2, device)
    batches = [buffer.sample(torch.Generator(device).manual_seed(k)) for k in range(5)]
    return script, agent, SimpleNamespace(online_steps=0), batches


def check_same_as_without(name: str, device: str, **settings) -> None:
    """Both phases, some of whose updates are logged, give the same weights, moments and metrics."""
    script, graphed, run, batches = problem(name, device, **settings)
    plain = copy.deepcopy(graphed)
    graphed.update = script.GraphedUpdate(graphed, run)
    generator = torch.Generator(device)
    for k in range(24):
        run.online_steps = int(k >= 12)
        noise = plain.draw(len(batches[0].obs), generator.manual_seed(k), log=k % 2 == 1)
        batch = batches[k % 5]
        found, wanted = graphed.update(batch, noise), plain.update(batch, noise)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    for x, y in zip(tensors_of(graphed), tensors_of(plain)):
        assert torch.equal(x, y)
    # Each phase has its own, and so has an update that is logged, where it draws more.
    assert len(graphed.update.recorded) == (4 if name in AWR_FAMILY else 2)


SETTINGS = [dict(), dict(normalize_observations=True)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recorded_update_changes_no_number(name, settings, graphs, monkeypatch):
    script = load_script(name)
    make = script.GraphedUpdate.__init__

    def remember(self, agent, run):
        graphs.append(agent)
        make(self, agent, run)

    monkeypatch.setattr(script.GraphedUpdate, "__init__", remember)
    check_same_as_without(name, "cpu", **settings)


@pytest.mark.parametrize(
    "name, settings", [("iql", dict(dropout=0.2)), ("cql", dict(lagrange_gap=1.0))]
)
def test_so_with_other_terms(name, settings, graphs, monkeypatch):
    test_a_recorded_update_changes_no_number(name, settings, graphs, monkeypatch)


@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_graph_of_cuda_changes_no_number(name, settings):
    check_same_as_without(name, "cuda", **settings)


def test_a_whole_run_with_them(run_here, script, toy_file, tmp_path, graphs, monkeypatch):
    """Ends with the same bits and the same log; and so does one that is continued with them."""
    module = load_script(script)
    monkeypatch.setattr(module, "LOG_EVERY", 5)
    monkeypatch.setattr(module, "choose_device", lambda args: "cpu")
    make = module.make_agent_and_buffer

    def make_and_remember(*given):
        agent, buffer = make(*given)
        graphs[:] = [agent]
        return agent, buffer

    monkeypatch.setattr(module, "make_agent_and_buffer", make_and_remember)
    line = partial(quick, script, dataset=toy_file)
    run_here(script, *line(run_dir="plain"))
    recorded = []
    record = module.GraphedUpdate.record

    def record_and_remember(self, batch, noise):
        recorded.append((self.run.online_steps > 0, *noise))
        return record(self, batch, noise)

    monkeypatch.setattr(module.GraphedUpdate, "record", record_and_remember)
    run_here(script, *line(run_dir="graphed", cudagraphs=True))
    assert len(recorded) == len(set(recorded)) == (4 if script in AWR_FAMILY else 2)
    assert "update" not in vars(graphs[0]), "the graphs go with the run"
    run_here(script, *line(run_dir="continued", offline_steps=30, online_steps=0))
    longer = words(resume="continued", offline_steps=120, online_steps=60, cudagraphs=True)
    run_here(script, *longer)
    plain, *others = (read_checkpoint(tmp_path / x) for x in ("plain", "graphed", "continued"))
    for other in others:
        assert same_bits(plain["agent"], other["agent"])
        for name, optimizer in plain["optimizers"].items():
            assert same_bits(optimizer["state"], other["optimizers"][name]["state"])
    assert same_bits(read_events(tmp_path / "plain"), read_events(tmp_path / "graphed"))


@pytest.mark.skipif(HAS_CUDA, reason="there is CUDA")
def test_without_cuda_they_are_refused(run_here, script, toy_file, tmp_path, capsys):
    """Also where the run had them on another machine; there it can go on without."""
    line = quick(script, dataset=toy_file, offline_steps=5, online_steps=0, run_dir="run")
    run_here(script, *line)
    record = tmp_path / "run" / "args.json"
    record.write_text(record.read_text().replace('"cudagraphs": false', '"cudagraphs": true'))
    for words_of_it in ([*line, "--cudagraphs"], ["--resume", "run"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_here(script, *words_of_it)
        assert ended.value.code == 2
        told = "--cudagraphs: needs --device cuda; else give --no-cudagraphs"
        assert capsys.readouterr().err == f"{script}.py: {told}\n"
    run_here(script, "--resume", "run", "--no-cudagraphs", "--offline-steps", "7")
    assert read_checkpoint(tmp_path / "run")["run"]["offline_steps"] == 7


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_update_waits_for_nothing(name, monkeypatch):
    """No number leaves the device and no decision depends on one: a GPU is never waited for."""
    _, agent, _, [batch, *_] = problem(name, "cpu")
    noise = agent.draw(len(batch.obs), torch.Generator().manual_seed(0))
    asked = []
    for method in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, method)

        def watched(self, *args, method=method, original=original, **kwargs):
            asked.append(method)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, method, watched)
    with Operations() as operations:
        agent.update(batch, noise)
    waits = [f for f, *_ in operations.done if f.overloadpacket.__name__ in WAITS]
    assert asked == [] and waits == []
    assert len(operations.done) > 100, "the operations were seen"
