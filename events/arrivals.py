"""Followers of a log sleep until something is appended; polling would cost a core and still be late."""

import asyncio


class Arrivals:
    """Wakes the tasks that wait for the next event. All of it happens on one thread, so nothing falls in between."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    def announce(self) -> None:
        """Wake everybody who waits."""
        for future in self.waiting:
            if not future.done():
                future.set_result(None)
        self.waiting.clear()

    async def next(self) -> None:
        """Return at the next announcement."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        try:
            await future
        finally:
            if future in self.waiting:
                self.waiting.remove(future)
