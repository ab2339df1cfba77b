"""Which facts a run edits, and in which order: the paper's ten orders of unique subjects.

Source: Gupta et al. 2024 (arXiv:2401.07453), rebuilt from their description (one seed, shuffles that build on one
another).
"""

import json
import random
from pathlib import Path

from editscale.data.facts import Fact, load
from editscale.files import write_whole

ORDER_SEED = 37
N_ORDERS = 10


def open_set(source: str) -> list[Fact]:
    """The facts that a notebook's `fact_set` names: "atlas" for AtlasFacts, or the path of a file of facts."""
    if source == "atlas":
        from editscale.data import atlas

        return atlas.build()
    return load(source)


def unique_subjects(facts: list[Fact]) -> list[int]:
    """Ascending positions in `facts` of the first fact of every subject; upper and lower case are one.

    In the published file position and `case_id` are the same; 20,391 of its 21,919 positions are kept.
    """
    first = {}
    for position, fact in enumerate(facts):
        first.setdefault(fact.subject.lower(), position)
    return list(first.values())


def published_orders(facts: list[Fact], n_orders: int = N_ORDERS) -> list[list[int]]:
    """The paper's orders: each is a shuffle of all unique subjects' positions in `facts`.

    One generator is seeded with 37 and every order shuffles the one before it, so order n needs the
    n shuffles before it. On CounterFact this gives the published ten, index for index.
    """
    generator = random.Random(ORDER_SEED)
    positions = unique_subjects(facts)
    orders = []
    for _ in range(n_orders):
        generator.shuffle(positions)
        orders.append(list(positions))
    return orders


def orders_json(orders: list[list[int]]) -> str:
    """The orders in the text of the published file: keys "0", "1", ..., indent 4, no newline at the end."""
    return json.dumps({str(n): order for n, order in enumerate(orders)}, indent=4)


def write_orders(facts_path, out_path) -> Path:
    """Path of the file with the ten orders of the facts in `facts_path`, written as `orders_json`."""
    text = orders_json(published_orders(load(facts_path)))
    return write_whole(out_path, text.encode())


def in_order(facts: list[Fact], order: int, n_edits: int, reverse: bool = False) -> list[Fact]:
    """The first `n_edits` facts of one of the ten orders; with `reverse`, the same facts backwards.

    Raises:
        ValueError: there is no such order, or not that many unique subjects.
    """
    if not 0 <= order < N_ORDERS:
        raise ValueError(f"order {order} is not one of the ten orders 0–{N_ORDERS - 1}; set `order` to one")
    positions = published_orders(facts, order + 1)[order]
    if not 1 <= n_edits <= len(positions):
        raise ValueError(
            f"n_edits is {n_edits}, expected 1 to {len(positions)}: the facts have that many unique subjects"
        )
    chosen = [facts[position] for position in positions[:n_edits]]
    return chosen[::-1] if reverse else chosen
