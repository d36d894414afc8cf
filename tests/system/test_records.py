"""Dataclasses from JSON documents: what is accepted, and how a wrong key is named."""

import doctest
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_onnx.system import records
from siglip_onnx.system.lru_cache import LRUCache
from siglip_onnx.system.records import read_record


@dataclass(frozen=True)
class Point:
    x: float
    name: str | None = None

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError(f"x is {self.x}, expected at least 0")


@dataclass(frozen=True)
class Drawing:
    title: str = field(metadata={"aliases": ("headline",)})
    points: tuple[Point, ...]
    layers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    hidden: bool = False


WHOLE = {"title": "a", "points": [{"x": 1}, {"x": 2.5, "name": "b"}], "layers": {"top": [1, 2]}, "extra": {"y": [None]}}


def test_nested_records_with_defaults_and_aliases() -> None:
    expected = Drawing("a", (Point(1.0), Point(2.5, "b")), {"top": [1, 2]}, {"y": [None]})
    assert read_record(Drawing, WHOLE) == expected
    renamed = {"headline" if key == "title" else key: value for key, value in WHOLE.items()}
    assert read_record(Drawing, renamed) == expected
    assert read_record(Drawing, WHOLE | {"headline": "old"}) == expected
    assert isinstance(read_record(Point, {"x": 1}).x, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": 3}, "title is 3, expected a string"),
        ({"hidden": 0}, "hidden is 0, expected true or false"),
        ({"points": {}}, "points is an object, expected a list"),
        ({"points": [{"x": True}]}, "points[0].x is true, expected a number"),
        ({"points": [{"x": 10**400}]}, "points[0].x is a whole number too large for a float"),
        ({"points": [{"x": -1}]}, "points[0]: x is -1.0, expected at least 0"),
        ({"points": [{"name": "b"}]}, "points[0].x is missing"),
        ({"points": [{"x": 1, "z": 2}]}, "unknown key points[0].z"),
        ({"points": [3]}, "points[0] is 3, expected an object"),
        ({"layers": {"top": [1.5]}}, "layers.top[0] is 1.5, expected a whole number"),
        ({"layers": None}, "layers is null, expected an object"),
        ({"title": ["x"] * 100}, "title is a list, expected a string"),
        ({"title": "x", "hidden": "y" * 100}, f'hidden is "{"y" * 59}..., expected true or false'),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        read_record(Drawing, WHOLE | change)
    assert str(caught.value) == message


def test_documents_that_are_not_objects_and_unknown_keys() -> None:
    with pytest.raises(ValueError, match="the document is a list, expected an object"):
        read_record(Drawing, [])
    with pytest.raises(ValueError, match="unknown key color"):
        read_record(Drawing, WHOLE | {"color": 1})
    assert read_record(Drawing, WHOLE | {"color": 1}, ignore_unknown=True) == read_record(Drawing, WHOLE)


POINTS = st.builds(Point, st.floats(0, 1e300), st.none() | st.text())
DRAWINGS = st.builds(
    Drawing,
    st.text(),
    st.lists(POINTS).map(tuple),
    st.dictionaries(st.text(), st.lists(st.integers())),
    st.dictionaries(st.text(), st.none() | st.booleans()),
    st.booleans(),
)


@given(DRAWINGS)
def test_json_round_trip(drawing: Drawing) -> None:
    assert read_record(Drawing, json.loads(json.dumps(asdict(drawing)))) == drawing


def test_examples_in_the_docstring() -> None:
    assert doctest.testmod(records).failed == 0


def test_lru_cache_evicts_what_was_not_used_longest() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    for key, value in (("a", 1), ("b", 2)):
        cache.put(key, value)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]
    cache.put("a", 4)  # replaces the value and counts as use
    cache.put("d", 5)
    assert [cache.get(key) for key in "acd"] == [4, None, 5]
