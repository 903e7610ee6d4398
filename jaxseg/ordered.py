"""Work on threads whose results come in order."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_order(tasks: Iterable[Callable[[], T]], pool: ThreadPoolExecutor, ahead: int) -> Iterator[T]:
    """Runs each task on the pool and yields what it returns, in the order of the tasks.

    Args:
      tasks: taken lazily, so that no more than `ahead` wait, run or hold a result.
      pool: the threads; whoever made it closes it.
      ahead: at least 1; that many tasks are begun before the first result is asked for.

    Raises:
      Whatever a task raised, when its turn comes.
    """
    begun = collections.deque()
    for task in tasks:
        begun.append(pool.submit(task))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()
