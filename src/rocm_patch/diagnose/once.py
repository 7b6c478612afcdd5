"""A property that is computed once for each object.

Before Python 3.12 `functools.cached_property` takes a lock each time it computes; a case has a dozen of them, and a batch many cases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801  # used like `property`
    """The value of a method without arguments, kept in the object's own dictionary; two threads may compute it twice."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function = function
        self.name = function.__name__
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        """Called the first time only: what stands in an object's dictionary goes before a descriptor that cannot be set."""
        value = instance.__dict__[self.name] = self.function(instance)
        return value
