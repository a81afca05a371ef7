"""Examples of each event class are made from its annotations, so that a new class is tested without a new line."""

import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from hypothesis import strategies as st

from events.types import Event

EVENTS: tuple[type[Event], ...] = get_args(Event)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
#: One NaN is as good as another: its sign and payload are not kept where it is spelt out.
FLOATS = st.floats().map(lambda value: math.nan if math.isnan(value) else value)
FREE_FORM = st.dictionaries(TEXT, TEXT | INTEGERS | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))


def event_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Any instance of a struct class."""
    fields = {field.name: any_of(field.type) for field in msgspec.structs.fields(cls)}
    return st.builds(cls, **fields)


def any_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that may stand in an event."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (UnionType, Union):
        return st.one_of([any_of(argument) for argument in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        assert arguments[1] is ..., annotation
        return st.lists(any_of(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        assert arguments == (str, Any), annotation
        return FREE_FORM
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return event_of(annotation)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXT,
        int: INTEGERS,
        float: FLOATS,
        bool: st.booleans(),
        NoneType: st.none(),
    }
    return plain[annotation]


def any_event() -> st.SearchStrategy[Event]:
    """Any event of any class."""
    return st.sampled_from(EVENTS).flatmap(event_of)


def example(annotation: Any) -> Any:
    """One plain value of a type that may stand in an event, with every optional part present."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (UnionType, Union):
        return example(arguments[0])
    if origin is Literal:
        return arguments[-1]
    if origin is tuple:
        return (example(arguments[0]),)
    if origin is dict:
        return {"queue_depth": 1.5}
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation(**{field.name: example(field.type) for field in msgspec.structs.fields(annotation)})
    return {str: "ash", int: 7, float: 0.1, bool: True}[annotation]
