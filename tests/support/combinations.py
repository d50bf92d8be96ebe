"""Of a test that is marked `each_value`, the combinations that `make test` tries: each value at least once.

All others are marked `rest`, and `make rest` tries them. What one `parametrize` names together was chosen
together, and all of it is tried. On each server version they are others, and through a pooler: so `make
promises` tries some that `make test` does not.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

import pytest

_Place = tuple[int, ...]
#: The runs of `make test` and `make promises`, by server version and, if there is one, pooler.
_RUNS = ("18", "16", "15", "18 transaction")


def sizes(name: str, some: object, *, rest: object) -> pytest.MarkDecorator:
    """Give a test its size: `make test` runs it smaller than `make rest`."""
    return pytest.mark.parametrize(name, [some, pytest.param(rest, marks=pytest.mark.rest)])


def mark_rest(items: Iterable[pytest.Item]) -> None:
    """Mark what is left out, the same whenever it runs: whatever order the items come in."""
    run = number_of_run(os.environ)
    some = [item for item in items if item.get_closest_marker("each_value")]
    by_name = sorted(some, key=lambda item: item.nodeid)
    for _, together in itertools.groupby(by_name, lambda item: item.nodeid.partition("[")[0]):
        family = list(together)
        places = _places(family)
        kept = chosen(places, run)
        for item, place in zip(family, places, strict=True):
            if place not in kept:
                item.add_marker("rest")


def number_of_run(environment: Mapping[str, str]) -> int:
    """Return which of those runs this one is; any other is as the first."""
    version, pooler = environment.get("INTURN_TEST_PG", ""), environment.get("INTURN_TEST_POOLER", "")
    run = f"{version} {pooler}".strip()
    return _RUNS.index(run) if run in _RUNS else 0


def chosen(places: Sequence[_Place], run: int = 0) -> set[_Place]:
    """Return some of the places, so that each coordinate has each of its values at least once.

    The coordinate with the most values goes through them once, the others beside it, each at its own pace;
    they begin elsewhere in each run.
    """
    sizes = [len({*values}) for values in zip(*places, strict=True)]
    order = sorted(range(len(sizes)), key=lambda at: -sizes[at])
    kept = {place for place in places if all(_is_on_the_way(place, sizes, order, run))}
    seen = {*itertools.chain.from_iterable(enumerate(place) for place in kept)}
    for place in places:  # the way may end before the others have gone through theirs
        if not {*enumerate(place)} <= seen:
            kept.add(place)
            seen |= {*enumerate(place)}
    return kept


def _is_on_the_way(place: _Place, sizes: Sequence[int], order: Sequence[int], run: int) -> Iterator[bool]:
    step = 1
    for at in order[1:]:
        yield place[at] == (place[order[0]] + run) // step % sizes[at]
        step *= sizes[at]


def _places(family: Sequence[pytest.Item]) -> list[_Place]:
    """Return for each item the number of its value in each `parametrize`, by first appearance."""
    names = [_names(mark) for mark in family[0].iter_markers("parametrize")]
    numbers: list[dict[Hashable, int]] = [{} for _ in names]
    return [
        tuple(
            known.setdefault(_value(item, of_one), len(known))
            for of_one, known in zip(names, numbers, strict=True)
        )
        for item in family
    ]


def _names(mark: pytest.Mark) -> tuple[str, ...]:
    names = mark.args[0] if mark.args else mark.kwargs["argnames"]
    return tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)


def _value(item: pytest.Item, names: Iterable[str]) -> Hashable:
    """Return what tells a value from the others: what cannot be compared, by being the same object."""
    assert isinstance(item, pytest.Function)
    values = (item.callspec.params[name] for name in names)
    return tuple(
        (type(value), value) if isinstance(value, str | int | None) else id(value) for value in values
    )
