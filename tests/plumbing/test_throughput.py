"""The program that measures what an update costs: its counts by hand, its order, its tables.

Most of it runs in this process; a made-up d3rlpy stands in for other programs where the processes
themselves are the point.
"""

import csv
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
import torch
from scripts import CQL_FAMILY, ROOT, SCRIPTS, load_script

sys.path.append(str(ROOT))  # where benchmarks/ lies

from benchmarks import peers, throughput
from benchmarks.peers import Ours, Spec

OBS, ACT, BATCH = 5, 3, 6
SMALL = dict(batch_size=BATCH, buffer_size=1, actor_hidden=(7, 8), critic_hidden=(9, 10, 11))
MORE = dict.fromkeys(CQL_FAMILY, dict(n_actions=4)) | {
    "awac": dict(n_actions=2),
    "iql": dict(value_hidden=(12,)),
}


def small_spec(script: str, **settings) -> Spec:
    args = load_script(script).Args(**SMALL | MORE[script] | settings)
    settings = json.loads(json.dumps(asdict(args)))  # as they reach the process
    return Spec("ours", script, settings, OBS, ACT, episode=10, rows=50)


@pytest.fixture
def in_process(monkeypatch):
    """Programs are built and asked in this process. What they were asked, in order."""
    asked = []

    def start(worker):
        worker.program = peers.PROGRAMS[worker.spec.program](worker.spec)
        return worker

    def ask(worker, line):
        answers = []
        peers.serve(worker.program, worker.spec, [line], answers.append)
        asked.append((worker.name, worker.setting, line))
        return answers[-1]

    def answer(worker):
        return {"versions": peers.versions(worker.program, worker.spec)}

    monkeypatch.setattr(throughput.Worker, "__enter__", start)
    monkeypatch.setattr(throughput.Worker, "__exit__", lambda worker, *exception: None)
    monkeypatch.setattr(throughput.Worker, "ask", ask)
    monkeypatch.setattr(throughput.Worker, "answer", answer)
    monkeypatch.setattr(peers.Matrix, "sizes", {"cpu": (32,)})
    monkeypatch.setattr(peers, "N_BATCHES", 2)
    return asked


def measure(folder: Path, *line: str) -> list[dict]:
    """The rows of the CSV that a short run writes."""
    line = ["--slices=2", "--seconds=0.01", "--transitions=100", *line, f"--out={folder}"]
    throughput.main(line)
    text = [path for path in folder.iterdir() if path.suffix == ".csv"][0].read_text()
    return list(csv.DictReader(x for x in text.splitlines() if not x.startswith("#")))


# --- Counts ---------------------------------------------------------------------------------------


def cost(*widths: int, rows: int, forward: bool = False, inputs: bool = False) -> int:
    """Operations of a net's matrix products: forward alone, or with the gradient of its weights, or
    (inputs) with that of its inputs alone. The first layer's input has no gradient otherwise."""
    products = [n_in * n_out for n_in, n_out in zip(widths, widths[1:])]
    passes = 1 if forward else 2 if inputs else 3
    first = 0 if forward or inputs else products[0]
    return 2 * rows * (passes * sum(products) - first)


def by_hand(script: str, args) -> int:
    """What the losses say has to be computed."""
    n_outputs = 2 * ACT if script in CQL_FAMILY else ACT
    pi, q = (OBS, *args.actor_hidden, n_outputs), (OBS + ACT, *args.critic_hidden, 1)
    total = cost(*pi, rows=BATCH)  # pi's own gradient is in all of them
    if script == "iql":
        v = (OBS, *args.value_hidden, 1)
        total += 2 * cost(*q, rows=BATCH) + cost(*v, rows=BATCH)
        # Q' is asked once, V for pi's A, too, since it has changed by then; y needs V at s'.
        asked = cost(*q, rows=BATCH, forward=True) + cost(*v, rows=BATCH, forward=True)
        return total + 2 * asked
    if script == "awac":
        total += cost(*pi, rows=BATCH, forward=True) + 2 * cost(*q, rows=BATCH)
        evaluated = BATCH * (1 + 1 + args.n_actions)  # y, and A of the data's actions and pi's
        return total + 2 * cost(*q, rows=evaluated, forward=True)
    n, n_target = args.n_actions, args.n_actions if args.max_target_backup else 1
    total += cost(*pi, rows=2 * BATCH, forward=True)  # at s and s'
    total += 2 * cost(*q, rows=BATCH * (1 + 3 * n))
    total += 2 * cost(*q, rows=BATCH * n_target, forward=True)
    return total + 2 * cost(*q, rows=BATCH, inputs=True)


@pytest.mark.parametrize("changes", [{}, {"max_target_backup": False, "lagrange_gap": 0.8}])
def test_operations_are_those_counted_by_hand(script, changes):
    changes = changes if script in CQL_FAMILY else {}
    ours = Ours(small_spec(script, **changes))
    assert ours.flops() == by_hand(script, ours.args)


def test_sizes_are_those_of_the_networks(script):
    """What other programs must have is what the script has, but for numbers outside of layers."""
    spec = small_spec(script)
    agent = Ours(spec).agent
    found = {name: getattr(agent, name) for name in peers.expected_sizes(spec)}
    found = {name: sum(p.numel() for p in net.parameters()) for name, net in found.items()}
    found["actor"] -= 2 if script in CQL_FAMILY else ACT  # of the log-std
    peers.check_sizes(spec, found)
    with pytest.raises(RuntimeError, match="other sizes"):
        peers.check_sizes(spec, found | {"critic": found["critic"] + 1})


def test_sizes_of_the_rows_are_those_of_the_tasks():
    with h5py.File(ROOT / "benchmarks" / "data" / "pointmaze.hdf5") as file:
        shapes = file["observations"].shape[1], file["actions"].shape[1]
    task = throughput.TASKS["pointmaze"]
    assert (task.obs, task.act) == shapes
    for script in SCRIPTS:
        assert {task.row for task in throughput.TASKS.values()} <= load_script(
            script
        ).SETTINGS.keys()


def test_batches_and_updates_are_those_of_a_run(script):
    """Each batch and its random numbers are new, and an update trains."""
    ours = Ours(small_spec(script))
    first, second = ours.batch(), ours.batch()
    assert first.obs.shape == (BATCH, OBS) and not torch.equal(first.obs, second.obs)
    assert (first.terminations == 0).all()
    before = [p.clone() for p in ours.agent.actor.parameters()]
    ours.update(first)
    after = list(ours.agent.actor.parameters())
    assert any(not torch.equal(x, y) for x, y in zip(before, after))


# --- Order and time -------------------------------------------------------------------------------


def test_programs_take_turns_forward_and_backward():
    assert list(throughput.turns([1, 2, 3], 3)) == [[1, 2, 3], [3, 2, 1], [1, 2, 3], [3, 2, 1]]


@pytest.mark.parametrize("each, seconds, least", [(0.5, 4, 8), (3, 1, 1), (0.001, 1, 1000)])
def test_a_slice_takes_as_long_as_it_is_told(each, seconds, least):
    """And seldom waits for the device."""
    now, waits = [100.0], []

    def step():
        now[0] += each

    found = peers.repeat(step, seconds, lambda: now[0], lambda: waits.append(now[0]))
    assert found == (pytest.approx(least, abs=1), pytest.approx(max(seconds, each), abs=each))
    assert len(waits) <= 12


def test_a_clock_may_stand_still():
    """Where it is coarse a step takes no time at all, and nothing is divided by 0."""
    times = iter([0.0] * 4 + [1.0] * 9)
    n, spent = peers.repeat(lambda: None, 0.5, lambda: next(times), lambda: None)
    assert n >= 4 and spent == 1.0


def test_one_thread_is_timed_by_its_own_work():
    cases = {"cpu": {}, "two threads": {"threads": 2}, "a GPU": {"device": "cuda"}}
    wall = {name: throughput.wall(throughput.Settings(**case)) for name, case in cases.items()}
    assert wall == {"cpu": False, "two threads": True, "a GPU": True}
    names = [peers.clock_of(Spec("ours", wall=x)).__name__ for x in wall.values()]
    assert names == ["process_time", "perf_counter", "perf_counter"]


def test_threads_are_measured_beside_one(in_process, tmp_path):
    rows = measure(tmp_path, "--rows=pointmaze", "--scripts=iql", "--threads=2")
    assert [row["program"] for row in rows] == ["ours", "ours, one thread"]
    two = throughput.Settings(threads=2)
    specs = [w.spec for w in throughput.side_by_side("iql", throughput.TASKS["pointmaze"], two)]
    assert [(spec.threads, spec.wall) for spec in specs] == [(2, True), (1, True), (2, True)]


def test_ratios_compare_slices_of_the_same_turn():
    assert throughput.ratio([2, 40, 6], [1, 10, 3]) == 2


def test_memory_is_that_of_the_process_at_its_most():
    before = peers.peak_memory()
    held = bytearray(200_000_000)
    after = peers.peak_memory()
    del held
    assert after >= 200_000_000 and after >= before
    assert peers.peak_memory() == pytest.approx(after, rel=0.02)  # the kernel counts roughly


# --- Tables ---------------------------------------------------------------------------------------


def test_every_script_has_a_row_of_sensible_numbers(in_process, tmp_path, capsys):
    rows = measure(tmp_path, "--rows", "pointmaze")
    assert [row["script"] for row in rows] == list(throughput.SCRIPTS)
    assert sorted(throughput.SCRIPTS) == SCRIPTS
    for row in rows:
        assert row["program"] == "ours" and row["row"] == "pointmaze" and row["device"] == "cpu"
        update, least, batch = (float(row[x]) for x in ("update_ms", "update_ms_least", "batch_ms"))
        assert 0.05 < least <= update < 2000 and 0.001 < batch < 100
        steps = float(row["updates_per_s"])
        assert steps == pytest.approx(1000 / (update + batch), rel=0.9)
        share = float(row["gflop"]) / (update / 1000) / float(row["matrix_gflops"])
        assert float(row["matrix_share"]) == pytest.approx(share) and 0.001 < share < 2
        assert 50 < float(row["peak_mb"]) < 20_000
        assert float(row["times_update"]) == float(row["times_step"]) == 1
        assert len(row["slices_ms"].split()) == 2

    table = (tmp_path / "throughput.md").read_text()
    assert capsys.readouterr().out.count("| `") == table.count("| `") == len(rows)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "ms per update" in lines[0] and "buffer MB" not in lines[0]


def test_the_order_and_the_warm_up(in_process, tmp_path):
    measure(tmp_path, "--rows", "pointmaze", "--scripts", "iql")
    asked = [(name, line) for name, _, line in in_process if not line.startswith("batch")]
    ours, matrix = (("ours", "update 0.01"), ("matrix", "update 0.01"))
    facts = [("ours", "facts"), ("matrix", "facts")]
    assert asked == [ours, matrix, matrix, ours, ours, matrix, *facts]
    assert ("ours", "", "batch 0.001") in in_process


def test_the_header_says_what_was_measured_where(in_process, tmp_path, capsys):
    measure(tmp_path, "--rows=pointmaze", "--scripts=iql", "--change", "batch_size=8")
    table = (tmp_path / "throughput.md").read_text()
    head = dict(line[2:].split(": ", 1) for line in table.splitlines() if line.startswith("- "))
    assert list(head) == ["command", "commit", "hardware", "measured", "versions, ours"]
    assert head["command"].startswith("python -m benchmarks.throughput --slices=2")
    assert head["command"].endswith(f"--change batch_size=8 --out={tmp_path.name}")
    assert head["commit"].split("-")[0].isalnum()
    assert "cores" in head["hardware"] and "no GPU" in head["hardware"]
    assert head["measured"] == "slices: 2 of 0.01 s, CPU time, threads: 1, transitions: 100"
    assert f"torch {torch.__version__}" in head["versions, ours"]
    comments = (tmp_path / "throughput.csv").read_text().splitlines()[: len(head)]
    assert comments == [f"# {name}: {value}" for name, value in head.items()]


def test_a_row_that_changes_a_setting_is_for_scripts_that_have_it():
    settings = throughput.Settings(rows=("antmaze", "antmaze-no-lagrange"))
    found = [(row, workers[0].spec) for row, workers in throughput.groups(settings)]
    gaps = {(row, x.script): x.settings.get("lagrange_gap", "none such") for row, x in found}
    assert gaps == {
        ("antmaze", "iql"): "none such",
        ("antmaze", "awac"): "none such",
        ("antmaze", "cql"): 0.8,
        ("antmaze", "cal_ql"): 0.8,
        ("antmaze-no-lagrange", "cql"): None,
        ("antmaze-no-lagrange", "cal_ql"): None,
    }


def test_a_flag_is_measured_beside_ours_without_it(in_process, tmp_path):
    """Each by the matrix rate of its own precision."""
    rows = measure(tmp_path, "--rows=antmaze", "--scripts=iql", "--bf16")
    assert [row["program"] for row in rows] == ["ours bf16", "ours"]
    assert float(rows[0]["times_update"]) == 1 != float(rows[1]["times_update"])
    assert rows[0]["gflop"] == rows[1]["gflop"]
    assert rows[0]["matrix_gflops"] != rows[1]["matrix_gflops"]


def test_growth(in_process, tmp_path, monkeypatch):
    growth = {"batch_size": (8, 16), "n_actions": (1, 2), "critic_hidden": (16, 32)}
    monkeypatch.setattr(throughput, "GROWTH", growth | {"rows": (100, 1000)})
    rows = measure(tmp_path, "--grow", "--rows=pointmaze", "--scripts", "cal_ql", "iql")
    for name, values in throughput.GROWTH.items():
        for script in ("cal_ql", "iql"):
            varied = [f"{name} {value:,}" for value in values]
            found = [r for r in rows if r["script"] == script and r["setting"] in varied]
            if name == "n_actions" and script == "iql":
                assert not found, "it has none"
                continue
            assert [row["setting"] for row in found] == varied
            work = [float(row["gflop"]) for row in found]
            assert work[0] == work[1] if name == "rows" else work[0] < work[1]
            if name == "rows":
                width = 48 + 2 + 1 + 48 + 1 + 1
                for row, n in zip(found, values):
                    assert float(row["buffer_mb"]) == pytest.approx((n + 1) * width * 4 / 1e6)
    head = (tmp_path / "growth.md").read_text()
    assert "| varied |" in head and "times ours" not in head


# --- Other programs, and what goes wrong ----------------------------------------------------------

STAND_IN = """
import os, types, torch

def encoder(widths, dropout_rate=None):
    return widths

class MDPDataset:
    def __init__(self, observations, actions, rewards, terminals, timeouts):
        assert len(observations) == len(timeouts) and timeouts.sum() > 1
        self.shape = observations.shape[1], actions.shape[1]
    def sample_transition_batch(self, n):
        return n

def net(*widths):
    return torch.nn.Sequential(*[torch.nn.Linear(*x) for x in zip(widths, widths[1:])])

class IQLConfig:
    def __init__(self, **options):
        self.options = options
    def create(self, device):
        return self
    def build_with_dataset(self, dataset):
        obs, act = dataset.shape
        hidden = [self.options[f"{x}_encoder_factory"] for x in ("actor", "critic", "value")]
        q = [net(obs + act, *hidden[1], 1) for _ in range(2)]
        nets = net(obs, *hidden[0], act), torch.nn.ModuleList(q), net(obs, *hidden[2], 1)
        names = "policy", "q_funcs", "value_func"
        self.impl = types.SimpleNamespace(modules=types.SimpleNamespace(**dict(zip(names, nets))))
    def update(self, batch):
        assert batch == self.options["batch_size"]
        print("this line is no answer")
        UPDATE

algos = types.SimpleNamespace(IQLConfig=IQLConfig)
dataset = types.SimpleNamespace(MDPDataset=MDPDataset)
models = types.SimpleNamespace(VectorEncoderFactory=encoder)
"""


@pytest.fixture
def d3rlpy(tmp_path, monkeypatch):
    """Writes a package of that name, the one that processes find: with the given line in its
    update, or the given text."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    def make(update: str = "pass", text: str = STAND_IN) -> None:
        info = tmp_path / "site" / "d3rlpy-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: d3rlpy\nVersion: 0.1\n")
        (tmp_path / "site" / "d3rlpy.py").write_text(text.replace("UPDATE", update))

    return make


def test_another_program_beside_ours(d3rlpy, tmp_path):
    d3rlpy(update="x = torch.ones(2, 2) @ torch.ones(2, 2)")
    flags = ["--rows=pointmaze", "--scripts=iql", f"--d3rlpy={sys.executable}"]
    ours, other = measure(tmp_path / "out", *flags)
    assert [ours["program"], other["program"]] == ["ours", "d3rlpy"]
    assert float(other["gflop"]) == 16 / 1e9
    assert float(other["times_update"]) < 1 > float(other["times_step"])
    assert "- versions, d3rlpy: Python 3." in (tmp_path / "out" / "throughput.md").read_text()


def worker_of(program: str) -> throughput.Worker:
    return throughput.Worker(program, sys.executable, replace(small_spec("iql"), program=program))


@pytest.mark.parametrize(
    "made, said",
    [
        (dict(text="raise ImportError('No module named d3rlpy')"), "status 1: No module named d3"),
        (dict(update="os._exit(3)"), "status 3: "),
    ],
)
def test_a_process_that_ends_tells_why(d3rlpy, capsys, made, said):
    d3rlpy(**made)
    with pytest.raises(SystemExit) as end, worker_of("d3rlpy") as worker:
        worker.answer()
        worker.ask("update 0.01")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("throughput: d3rlpy, iql: the process ended, ") and said in error
    assert worker.process.returncode is not None


def test_an_interrupt_ends_the_processes(monkeypatch):
    workers = [
        throughput.Worker("matrix", sys.executable, Spec("matrix", settings={"bf16": False}))
    ]

    def interrupt(worker, seconds):
        assert worker.process.poll() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(throughput.Worker, "answer", lambda worker: {"versions": {}})
    monkeypatch.setattr(throughput.Worker, "take_slice", interrupt)
    with pytest.raises(KeyboardInterrupt):
        throughput.measure(workers, SimpleNamespace(slices=1, seconds=0.01))
    with pytest.raises(ProcessLookupError):
        os.kill(workers[0].process.pid, 0)


@pytest.mark.parametrize(
    "line, said",
    [
        (["--d3rlpy", "/no/python"], "--d3rlpy /no/python: not found"),
        (["--corl", "."], "--corl .: is no checkout, algorithms/finetune is missing"),
        (["--calql", "."], "--calql .: is no checkout, JaxCQL/model.py is missing"),
        (["--jax", sys.executable], "--calql and --jax go together"),
        (["--slices", "0"], "--slices: must be at least 1"),
        (["--seconds", "0"], "--seconds: must be above 0"),
        (["--change", "n_actions"], "--change n_actions: must be NAME=VALUE"),
        (["--change", "nonsense=1"], "iql: got an unexpected keyword argument 'nonsense'"),
        (["--change", "batch_size=0"], "iql: --batch-size: must be at least 1"),
        (["--device", "cuda"], "--device cuda: torch finds no GPU"),
    ],
)
def test_bad_input_is_one_line(in_process, monkeypatch, capsys, line, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        throughput.main(line)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"throughput: {said}\n"
    assert not in_process
