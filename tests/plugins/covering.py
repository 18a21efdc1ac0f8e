"""Covering arrays: few cases in which every pair (or triple) of factor values meets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any


def covering_array(factors: Mapping[str, Sequence[Any]], strength: int, seed: int = 0) -> list[dict[str, Any]]:
    """Greedy: each case takes the value that covers most open combinations, factor by factor, best of some tries."""
    names = list(factors)
    draw = random.Random(seed)
    groups = list(itertools.combinations(range(len(names)), strength))
    sizes = [len(factors[name]) for name in names]
    open_sets = {group: set(itertools.product(*(range(sizes[index]) for index in group))) for group in groups}
    rows: list[dict[str, Any]] = []
    while any(open_sets.values()):
        best: tuple[int, list[int]] = (-1, [])
        for _ in range(8):
            # start from an open combination, so that every case covers something
            group = max(groups, key=lambda g: (len(open_sets[g]), draw.random()))
            start = dict(zip(group, draw.choice(sorted(open_sets[group])), strict=True))
            for index in draw.sample(range(len(names)), len(names)):
                if index in start:
                    continue
                gains = []
                for value in range(sizes[index]):
                    trial = {**start, index: value}
                    gain = sum(
                        tuple(trial[i] for i in g) in open_sets[g]
                        for g in groups
                        if index in g and all(i in trial for i in g)
                    )
                    gains.append((gain, draw.random(), value))
                start[index] = max(gains)[2]
            row = [start[index] for index in range(len(names))]
            score = sum(tuple(row[i] for i in g) in open_sets[g] for g in groups)
            best = max(best, (score, row), key=lambda item: item[0])
        for group in groups:
            open_sets[group].discard(tuple(best[1][i] for i in group))
        rows.append({name: factors[name][value] for name, value in zip(names, best[1], strict=True)})
    return rows
