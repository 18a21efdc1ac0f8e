"""What one thread may use at a time, until it is closed; a second user and a late one are told so."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from vtn_export.errors import UsageError

Own = TypeVar("Own", bound="OneUser")


class OneUser(ABC):
    """A context manager with `close`; what it does goes into `with self._use():`."""

    def __init__(self, busy: str, closed: str) -> None:
        """busy, closed: what a second user, and a user after `close`, are told."""
        self._using = threading.Lock()
        self._told_busy, self._told_closed = busy, closed
        self._closed = False

    @abstractmethod
    def close(self) -> None:
        """Set `_closed`, and let go of everything. Closing again does nothing."""

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError(self._told_closed)

    @contextmanager
    def _use(self) -> Iterator[None]:
        """Raises UsageError at once where another thread is in it, or after `close`."""
        if not self._using.acquire(blocking=False):
            raise UsageError(self._told_busy)
        try:
            self._require_open()
            yield
        finally:
            self._using.release()
