"""The order in which groups of tests are given to workers: the longest first, so that all end together."""

from collections import Counter
from collections.abc import Iterable

import pytest

# As the whole suite reports; the groups of single cells are shorter.
LONGEST = (
    *("test_devices", "test_precision", "test_cpu", "test_newton", "test_outside_jit", "test_pallas", "test_orbax"),
    *("test_convert", "test_linear_scan", "test_estimators_in_fit", "test_training", "test_seq2seq"),
)


def longest_first(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items, group by group: first those of `LONGEST`, then those of many tests; the order within a group stays."""
    items = list(items)
    groups = [group_of(item) for item in items]
    sizes, ranks = Counter(groups), {group: rank for rank, group in enumerate(LONGEST)}
    first = {group: number for number, group in reversed(list(enumerate(groups)))}
    place = {group: (ranks.get(group, len(ranks)), -sizes[group], first[group]) for group in sizes}
    return sorted(items, key=lambda item: place[group_of(item)])


def group_of(item: pytest.Item) -> str:
    """The name of the group of which one worker runs all tests."""
    marker = item.get_closest_marker("xdist_group")
    return marker.args[0] if marker else item.path.stem
