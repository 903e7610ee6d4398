"""The search for the largest batch that fits, on memory that is a known function of the images."""

import pytest

from jaxseg import planning, planning_search


class Fake:
    """Compiles to a program that needs `memory(images)`; counts how often."""

    def __init__(self, memory, usable, fixed=0):
        self.memory, self.usable, self.fixed, self.calls = memory, usable, fixed, []

    def __call__(self, batch):
        self.calls.append(batch)
        needed = self.memory(batch)
        return planning.Compiled(batch, needed, needed <= self.usable, {"state": self.fixed}, [])

    def search(self, first, unit=1):
        first = self(first)
        return planning_search.search(self, first, unit, self.usable)


def test_the_largest_batch_of_a_straight_line_is_compiled_once():
    fake = Fake(lambda n: 300 + 20 * n, usable=1000, fixed=300)
    found = fake.search(first=8)
    assert found == {"batch": 35, "sure": True, "compiled": {8: 460, 35: 1000}}
    assert fake.calls == [8, 35]
    assert Fake(lambda n: 300 + 20 * n, 1000, 300).search(8, unit=4)["batch"] == 32


@pytest.mark.parametrize("curve", [lambda n: 10 * n**1.3, lambda n: 90 * n**0.8, lambda n: 45 * n])
@pytest.mark.parametrize("first", [1, 8, 64])
def test_the_largest_batch_of_a_curve_is_found_or_the_search_says_it_is_not_sure(curve, first):
    fake = Fake(lambda n: int(100 + curve(n)), usable=1000)
    found = fake.search(first)
    best = max(n for n in range(200) if 100 + int(curve(n)) <= 1000)
    assert found["batch"] <= best and len(fake.calls) <= 1 + planning_search.TRIES
    assert found["batch"] == best or not found["sure"]
    assert found["batch"] >= 0.9 * best


def test_where_not_even_one_image_fits_the_search_ends():
    fake = Fake(lambda n: 1000 + 10 * n, usable=1000)
    found = fake.search(first=4)
    assert (found["batch"], found["sure"]) == (0, True) and fake.calls[-1] == 1
