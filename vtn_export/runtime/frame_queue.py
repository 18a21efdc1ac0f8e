"""A bounded queue between a camera that does not wait and a model that takes its time; a policy for what is late."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Literal, TypeVar, get_args

from vtn_export.errors import UsageError

Policy = Literal["drop-oldest", "drop-newest", "block"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
Item = TypeVar("Item")


def check_policy(policy: str) -> None:
    """Raises UsageError for a policy that does not exist."""
    if policy not in POLICIES:
        raise UsageError(f"policy: got {policy!r}, expected one of {', '.join(POLICIES)}")


class FrameQueue(Generic[Item]):
    """At most `size` items wait. When one more comes, `drop-oldest` gives up the one that waited longest,
    `drop-newest` the one that comes, `block` lets the giver wait. One thread gives, one takes.
    """

    def __init__(self, size: int, policy: Policy, changed: threading.Condition | None = None) -> None:
        """changed: what guards the queue; a condition of the caller's, where other state changes with it."""
        self.size, self.policy = size, policy
        self.dropped = 0
        self.ended = False
        self._items: deque[Item] = deque()
        self._changed = changed or threading.Condition()

    def refuses(self) -> bool:
        """Whether an item would be dropped that is not made yet; it is counted then, and need not be made."""
        with self._changed:
            if self.policy != "drop-newest" or len(self._items) < self.size:
                return False
            self.dropped += 1
            return True

    def put(self, item: Item) -> bool:
        """False: this item was dropped, or the queue has ended."""
        with self._changed:
            if self.policy == "block":
                self._changed.wait_for(lambda: len(self._items) < self.size or self.ended)
            if self.ended:
                return False
            if len(self._items) == self.size:
                self.dropped += 1
                if self.policy == "drop-newest":
                    return False
                self._items.popleft()
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, timeout: float | None = None) -> Item | None:
        """The item that waited longest; None: nothing came within `timeout` seconds, or nothing will any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self.ended, timeout)
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def __len__(self) -> int:
        return len(self._items)

    def end(self) -> None:
        """No more items, waiting ones stay; whoever waits in `put` or `get` goes on."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget waiting items and an end."""
        with self._changed:
            self._items.clear()
            self.ended = False
            self._changed.notify_all()
