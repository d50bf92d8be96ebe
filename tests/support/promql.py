"""What the alert rules use of PromQL, evaluated over two looks at the metrics: one before, and one now.

Of a range the two looks are all that there is: so a rate is what came between them.
It finds in the scene of each rule what promtool finds there: see test_monitoring_files.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from support.scrape import Samples

_Labels: TypeAlias = frozenset[tuple[str, str]]
_Vector: TypeAlias = dict[_Labels, float]
_TOKEN = re.compile(r'\s*([A-Za-z_]\w*|\d+[smhd]|\d+(?:\.\d+)?|"[^"]*"|=~|==|[(){}\[\],=>*])')
_AGGREGATES: Mapping[str, Callable[[list[float]], float]] = {"max": max, "min": min, "sum": sum}
_FUNCTIONS = ("rate", "increase", "max_over_time")


def found(query: str, before: Samples, now: Samples) -> list[dict[str, str]]:
    """Return the labels of what a query finds; of an alert's: for each that fires, once it has lasted."""
    return [dict(labels) for labels in _Query(query, before, now).whole()]


class _Query:
    """A query that is read from left to right, and evaluated meanwhile."""

    def __init__(self, text: str, before: Samples, now: Samples) -> None:
        self._left = _tokens(text)
        self._before, self._now = before, now

    def whole(self) -> _Vector:
        vector = self._either()
        assert not self._left, self._left
        return vector

    def _either(self) -> _Vector:
        vector = self._both()
        while self._accept("or"):
            vector = self._both() | vector
        return vector

    def _both(self) -> _Vector:
        vector = self._compared()
        while (wanted := self._accept("and")) or self._accept("unless"):
            on = self._names() if self._accept("on") else None
            there = {_by(labels, on) for labels in self._compared()}
            vector = {k: value for k, value in vector.items() if (_by(k, on) in there) == bool(wanted)}
        return vector

    def _compared(self) -> _Vector:
        vector = self._term()
        for sign, holds in ((">", float.__gt__), ("==", float.__eq__)):
            if self._accept(sign):
                factor, other = self._factor(), None if self._at_end() else self._term()
                bounds = dict.fromkeys(vector, factor) if other is None else _times(factor, other)
                vector = {k: v for k, v in vector.items() if k in bounds and holds(v, bounds[k])}
        return vector

    def _factor(self) -> float:
        """Return the number that a comparison is with, or by which a query that follows is multiplied."""
        if not self._left[0][0].isdigit():
            return 1.0
        number = float(self._next())
        self._accept("*")
        return number

    def _at_end(self) -> bool:
        return not self._left or self._left[0] in {")", "and", "or", "unless"}

    def _term(self) -> _Vector:
        name = self._next()
        if name == "(":
            vector = self._either()
        elif name in _AGGREGATES:
            self._expect("by")
            names = self._names()
            self._expect("(")
            groups: dict[_Labels, list[float]] = {}
            for labels, value in self._either().items():
                groups.setdefault(_by(labels, names), []).append(value)
            vector = {labels: float(_AGGREGATES[name](values)) for labels, values in groups.items()}
        elif name == "absent":
            self._expect("(")
            vector = {} if self._either() else {frozenset(): 1.0}
        elif name in _FUNCTIONS:
            self._expect("(")
            vector = self._over_range(name)
        else:
            return self._selected(name)[1]
        self._expect(")")
        return vector

    def _over_range(self, function: str) -> _Vector:
        before, now = self._selected(self._next())
        self._expect("[")
        self._next()
        self._expect("]")
        if function == "max_over_time":
            return {k: max(each[k] for each in (before, now) if k in each) for k in before | now}
        # Of a counter that was not there before, Prometheus sees no rise; one that fell began anew.
        return {k: v - (before[k] if before[k] <= v else 0.0) for k, v in now.items() if k in before}

    def _selected(self, name: str) -> tuple[_Vector, _Vector]:
        wanted: dict[str, str] = {}
        if self._accept("{"):
            while not self._accept("}"):
                label, sign, value = self._next(), self._next(), self._next()[1:-1]
                wanted[label] = value if sign == "=~" else re.escape(value)
                self._accept(",")
        return _select(self._before, name, wanted), _select(self._now, name, wanted)

    def _names(self) -> set[str]:
        self._expect("(")
        names = set()
        while not self._accept(")"):
            names.add(self._next())
            self._accept(",")
        return names

    def _next(self) -> str:
        return self._left.pop(0)

    def _accept(self, token: str) -> bool:
        if self._left and self._left[0] == token:
            self._next()
            return True
        return False

    def _expect(self, token: str) -> None:
        assert self._accept(token), (token, self._left)


def _tokens(text: str) -> list[str]:
    tokens = _TOKEN.findall(text)
    assert "".join(tokens) == re.sub(r"\s", "", text), f"more of PromQL than is known here: {text}"
    return tokens


def _by(labels: _Labels, names: set[str] | None) -> _Labels:
    return labels if names is None else frozenset(each for each in labels if each[0] in names)


def _times(factor: float, vector: _Vector) -> _Vector:
    return {labels: factor * value for labels, value in vector.items()}


def _select(samples: Samples, name: str, wanted: Mapping[str, str]) -> _Vector:
    return {
        frozenset(each for each in labels if each[1]): float(value)
        for (of, labels), value in samples.items()
        if of == name and all(re.fullmatch(wanted[n], dict(labels).get(n, "")) for n in wanted)
    }
