"""Of a test that is marked `each_value`, the combinations that `make test` tries: each value at least once.

All others are marked `rest`, and `make rest` tries them. What one `parametrize` names together was chosen
together, and all of it is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence

import pytest

_Place = tuple[int, ...]


def mark_rest(items: Iterable[pytest.Item]) -> None:
    """Mark what is left out, the same in every run: whatever order the items come in."""
    some = [item for item in items if item.get_closest_marker("each_value")]
    by_name = sorted(some, key=lambda item: item.nodeid)
    for _, together in itertools.groupby(by_name, lambda item: item.nodeid.partition("[")[0]):
        family = list(together)
        places = _places(family)
        kept = chosen(places)
        for item, place in zip(family, places, strict=True):
            if place not in kept:
                item.add_marker("rest")


def chosen(places: Sequence[_Place]) -> set[_Place]:
    """Return some of the places, so that each coordinate has each of its values at least once.

    The coordinate with the most values goes through them once, the others beside it, each at its own pace.
    """
    sizes = [len({*values}) for values in zip(*places, strict=True)]
    order = sorted(range(len(sizes)), key=lambda at: -sizes[at])
    kept = {place for place in places if all(_is_on_the_way(place, sizes, order))}
    seen = {*itertools.chain.from_iterable(enumerate(place) for place in kept)}
    for place in places:  # the way may end before the others have gone through theirs
        if not {*enumerate(place)} <= seen:
            kept.add(place)
            seen |= {*enumerate(place)}
    return kept


def _is_on_the_way(place: _Place, sizes: Sequence[int], order: Sequence[int]) -> Iterator[bool]:
    step = 1
    for at in order[1:]:
        yield place[at] == place[order[0]] // step % sizes[at]
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
