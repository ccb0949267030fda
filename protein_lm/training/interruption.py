"""What happens on Ctrl-C: the run saves and ends after its step. A second Ctrl-C ends the process at once."""

import signal
import threading
import time
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what schedulers of clusters send


class StopRequest:
    """While entered, notes SIGINT and SIGTERM instead of dying of them."""

    def __init__(self, *, grace_seconds: float = 0.0) -> None:
        """Further signals within `grace_seconds` of the first count as one: launchers pass on what all processes got."""
        self.signal: signal.Signals | None = None
        self._grace_seconds, self._since = grace_seconds, 0.0
        self._before: dict[signal.Signals, object] = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._since >= self._grace_seconds:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
