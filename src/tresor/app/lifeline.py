"""A pipe that tells a child when its parent is gone, however that came about.

The parent holds the writing end and never writes; the kernel closes it when the parent ends, `kill -9` included.
"""

import asyncio
import os
from collections.abc import Callable

__all__ = ["make_lifeline", "when_cut"]


def make_lifeline() -> tuple[int, int]:
    """Return the child's end, to be inherited, and the parent's end, to be kept open."""
    child_end, parent_end = os.pipe()
    os.set_inheritable(child_end, True)
    return child_end, parent_end


def when_cut(child_end: int, action: Callable[[], None]) -> None:
    """Call `action` in the running loop once the parent is gone."""
    loop = asyncio.get_running_loop()

    def cut() -> None:
        loop.remove_reader(child_end)
        action()

    loop.add_reader(child_end, cut)
