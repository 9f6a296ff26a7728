"""Runs that take turns, round after round, on the same servers."""

import tempfile
from pathlib import Path


def take_turns(bench_of, kinds, args, note):
    """The figures of all runs by kind. `bench_of` gives the bench that works in a folder; a kind is one of its methods, and what that is told."""
    if args.only:
        kinds = {name: kind for name, kind in kinds.items() if any(word in name for word in args.only)}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bench = bench_of(args, Path(folder))
        try:
            bench.start()
            found = {name: [] for name in kinds}
            # The first round counts for nothing: whoever comes first finds servers that have compiled nothing yet.
            for number in range(args.rounds + 1):
                for name, (method, kind) in kinds.items():
                    figures = getattr(bench, method)(kind, number)
                    if number:
                        found[name].append(figures)
                        note(name, figures)
            return found
        finally:
            bench.mesh.end()
