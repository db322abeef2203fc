"""Damaged files: a load gives the same data or one clear line, and comes to an end.

A small sample of what tests/fuzz.py can do; --long does ten times as much.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path

import fuzz
import pytest
from scripts import OWN_FIXTURES


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_damaged_files(name, long, tmp_path):
    """A failure tells the words behind `python tests/fuzz.py` that repeat it."""
    seed, n = (1, 1000) if long else (0, 100)
    results = [*fuzz.fuzz(fuzz.KINDS[name], range(n), seed, tmp_path)]
    bad = [result for result in results if result.bad]
    assert not bad, "\n".join(f"--seed {seed} --kind {name} --only {x.number}: {x}" for x in bad)
    found = [result.outcome for result in results]
    assert found.count("refused") > n / 4 and "same" in found, "it does too much, or too little"


@pytest.mark.parametrize("kind", fuzz.KINDS.values(), ids=fuzz.KINDS)
def test_a_number_stands_for_one_change(kind):
    """Else a failure could not be repeated."""
    content = next(OWN_FIXTURES.glob("return*.npz")).read_bytes()
    samples = [fuzz.Sample(name, content, (32,), previous=content) for name in "abc"]
    one, again = ([kind.change(samples, 3, n) for n in range(20)] for _ in range(2))
    assert one == again
    assert len({change.told for change in one}) == 20
    assert kind.change(samples, 4, 0) != one[0]


class Evil(fuzz.Kind):
    """Does by turns all that a load must not do, and in the end what it may."""

    path = Path("evil")
    turns = "raise exit print whisper die hang other refuse fine".split()

    @staticmethod
    def samples(folder: Path) -> list[fuzz.Sample]:
        return [fuzz.Sample("evil", b"")]

    @classmethod
    def change(cls, samples, seed, number) -> fuzz.Change:
        return fuzz.Change(samples[0], [cls.turns[number].encode()], cls.turns[number])

    def load(self, sample: fuzz.Sample):
        turn = self.path.read_text()
        if turn == "raise":
            raise KeyError("evil")
        if turn == "exit":
            sys.exit(1)
        if turn == "print":
            print("evil\nevil", file=sys.stderr)
            sys.exit(2)
        if turn == "whisper":
            sys.exit(2)
        if turn == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if turn == "hang":
            time.sleep(60)
        if turn == "refuse":
            print("evil is damaged", file=sys.stderr)
            sys.exit(2)
        return {"other": turn == "other"}


def test_the_watcher_sees_what_is_bad(tmp_path):
    results = [*fuzz.fuzz(Evil, range(len(Evil.turns)), 0, tmp_path, patience=5)]
    found = {result.change: result.outcome for result in results}
    told = {
        "raise": "traceback: KeyError",
        "exit": "status 1",
        "print": "refused with the lines ['evil', 'evil']",
        "whisper": "refused with the lines []",
        "die": "died with status -11",
        "hang": "no end within 5 s",
        "other": "other data, and nothing said",
        "refuse": "refused$",
        "fine": "same$",
    }
    for turn, words in told.items():
        assert re.match(words.replace("[", r"\["), found[turn]), found[turn]
    assert [result.bad for result in results] == [*7 * [True], False, False]


def test_the_program_tells_how_to_repeat_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "KINDS", {"hdf5": Evil})
    for line, status in (("--n 2 --seed 7", 1), ("--only 8", 0)):
        monkeypatch.setattr(sys, "argv", ["fuzz.py", *line.split()])
        assert fuzz.main() == status
        out = capsys.readouterr().out
        assert ("--seed 7 --kind hdf5 --only 1: exit: status 1" in out) == bool(status)
