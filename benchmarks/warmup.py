"""A control for the dip: is it only that the first online batches come from very few episodes?

Runs a script as it is, except that every batch is drawn from the dataset alone until the online
buffer holds a number of steps:

    python -m benchmarks.warmup 1000 cql --seed 0 --run-dir runs/warmup-cql-s0
"""

import importlib
import sys


def main() -> None:
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal():
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    steps, name = int(sys.argv[1]), sys.argv[2]
    script = importlib.import_module(name)
    sample = script.ReplayBuffer.sample

    def sample_later(buffer, generator):
        added = buffer.added
        buffer.added = added if added >= steps else 0  # 0: sample takes the dataset alone
        batch = sample(buffer, generator)
        buffer.added = added
        return batch

    script.ReplayBuffer.sample = sample_later
    sys.argv = [f"{name}.py", *sys.argv[3:]]
    script.main()


if __name__ == "__main__":
    main()
