"""Workers are given the longest groups of tests first."""

from pathlib import Path

import order
import pytest

FOLDER = Path(__file__).parents[1]


class Item:
    """What `longest_first` looks at in a test."""

    def __init__(self, file: str, group: str | None = None):
        self.path, self.group = Path(file), group

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return pytest.mark.xdist_group(self.group).mark if name == "xdist_group" and self.group else None


def test_long_groups_come_first_and_then_those_of_many_tests():
    laws, grid = (Item(f"test_{name}.py", "gru") for name in ("laws", "grid"))
    cells = [Item("test_cells.py") for _ in range(3)]
    alone, second, first = (Item(f"{name}.py") for name in ("test_alone", order.LONGEST[1], order.LONGEST[0]))
    got = order.longest_first([alone, laws, cells[0], second, grid, *cells[1:], first])
    assert got == [first, second, *cells, laws, grid, alone]


@pytest.mark.parametrize("group", order.LONGEST)
def test_a_long_group_is_a_file(group):
    assert list(FOLDER.glob(f"*/{group}.py"))
