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
        n_added = buffer.n_added
        buffer.n_added = n_added if n_added >= steps else 0  # 0: the dataset alone is drawn from
        batch = sample(buffer, generator)
        buffer.n_added = n_added
        return batch

    script.ReplayBuffer.sample = sample_later
    script.main(sys.argv[3:])


if __name__ == "__main__":
    main()
