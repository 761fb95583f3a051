"""Time that passes only where somebody waits."""

__all__ = ["PassingTime"]


class PassingTime:
    """A clock that sleeping moves; seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds
