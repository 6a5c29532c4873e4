"""The micro-batcher."""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import pytest

from fate_gym.agents._batching import MicroBatcher
from fate_gym.errors import ContextOverflowError, ProviderError

Join: TypeAlias = Callable[[], Sequence[int]]


class Doubler:
    """Doubles numbers in batches and remembers their sizes; more than `room` numbers at once do not fit.

    A batch that runs waits for `gate`, so that a test decides what arrives meanwhile.
    """

    def __init__(self, *, room: int = 99, gate: threading.Event | None = None) -> None:
        self.room = room
        self.gate = gate
        self.running = threading.Event()
        self.sizes: list[int] = []

    def __call__(self, numbers: Sequence[int], _: Join) -> Iterable[tuple[int, int]]:
        self.sizes.append(len(numbers))
        self.running.set()
        if self.gate is not None:
            assert self.gate.wait(timeout=60)
        if len(numbers) > self.room:
            raise MemoryError
        return enumerate(2 * number for number in numbers)


def batcher(run: Any, **options: Any) -> MicroBatcher[Any, Any]:
    # A batch that is not full starts after `delay`: long enough for a busy machine to submit the rest of it.
    return MicroBatcher(run, **{"max_batch": 8, "too_large": MemoryError, "delay": 0.5, **options})


def test_requests_that_wait_run_together_and_keep_their_order() -> None:
    run = Doubler()
    made = batcher(run)

    async def main() -> list[int]:
        return await asyncio.gather(*(made.submit(number) for number in range(20)))

    assert asyncio.run(main()) == [2 * number for number in range(20)]
    assert run.sizes == [8, 8, 4]
    made.close()


def test_a_lone_request_does_not_wait_for_company() -> None:
    run = Doubler()
    made = batcher(run)

    async def main() -> int:
        return await asyncio.wait_for(made.submit(1), timeout=30)

    assert asyncio.run(main()) == 2
    assert run.sizes == [1]
    made.close()


def test_what_comes_later_joins_the_batch_as_far_as_there_is_room() -> None:
    begun = threading.Event()
    joined: list[list[int]] = []

    def run(numbers: Sequence[int], join: Join) -> Iterator[tuple[int, int]]:
        under_way = dict(enumerate(numbers))
        begun.set()
        while under_way:
            if len(joined) == 1:
                # What has joined is answered first.
                yield max(under_way), 2 * under_way.pop(max(under_way))
            if new := list(join()):
                under_way.update(enumerate(new, len(numbers) + sum(map(len, joined))))
                joined.append(new)
            elif len(joined) > 1:
                yield min(under_way), 2 * under_way.pop(min(under_way))

    made = batcher(run, max_batch=3)

    async def main() -> list[int]:
        first = asyncio.ensure_future(made.submit(0))
        await asyncio.to_thread(begun.wait, 60)
        return await asyncio.gather(first, *(made.submit(number) for number in range(1, 4)))

    assert asyncio.run(main()) == [0, 2, 4, 6]
    assert [*itertools.chain(*joined)] == [1, 2, 3]
    made.close()


def test_the_event_loop_runs_on_while_a_batch_does() -> None:
    run = Doubler(gate=threading.Event())
    made = batcher(run, delay=0)

    async def main() -> int:
        answer = asyncio.ensure_future(made.submit(1))
        await asyncio.to_thread(run.running.wait, 60)
        assert not answer.done()
        run.gate.set()  # By the loop itself, which a batch that blocked it could not do.
        return await answer

    assert asyncio.run(main()) == 2
    made.close()


def test_one_batcher_serves_one_event_loop_after_another() -> None:
    made = batcher(Doubler())
    assert [asyncio.run(made.submit(number)) for number in (1, 2)] == [2, 4]
    made.close()


def test_a_batch_that_does_not_fit_is_halved_and_the_size_grows_back() -> None:
    run = Doubler(room=3)
    made = batcher(run)

    async def main(count: int) -> list[int]:
        return await asyncio.gather(*(made.submit(number) for number in range(count)))

    assert asyncio.run(main(8)) == [2 * number for number in range(8)]
    assert run.sizes == [8, 4, 2, 2, 4, 2, 2]
    run.sizes, run.room = [], 99
    assert asyncio.run(main(30)) == [2 * number for number in range(30)]
    assert run.sizes[0] < 8
    assert max(run.sizes) == 8
    made.close()


def test_what_a_failed_batch_held_is_freed_before_the_next_try() -> None:
    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    def run(numbers: Sequence[int], _: Join) -> Iterable[tuple[int, int]]:
        assert all(reference() is None for reference in held)
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        if len(numbers) > 1:
            raise MemoryError
        return enumerate(numbers)

    made = batcher(run)

    async def main() -> list[int]:
        return await asyncio.gather(*(made.submit(number) for number in range(4)))

    assert asyncio.run(main()) == [0, 1, 2, 3]
    assert len(held) == 7
    made.close()


def test_a_request_that_fits_not_even_alone_overflows_and_the_others_are_answered() -> None:
    def run(numbers: Sequence[int], _: Join) -> Iterable[tuple[int, int]]:
        if 3 in numbers:
            raise MemoryError
        return enumerate(numbers)

    made = batcher(run)

    async def main() -> list[Any]:
        return await asyncio.gather(*(made.submit(number) for number in range(6)), return_exceptions=True)

    answers = asyncio.run(main())
    assert isinstance(answers.pop(3), ContextOverflowError)
    assert answers == [0, 1, 2, 4, 5]
    made.close()


def test_an_error_reaches_all_of_its_batch_and_the_next_batch_runs() -> None:
    def run(numbers: Sequence[int], _: Join) -> Iterable[tuple[int, int]]:
        if 0 in numbers:
            raise KeyError("broken")
        return enumerate(numbers)

    made = batcher(run)

    async def main(numbers: Sequence[int]) -> list[Any]:
        return await asyncio.gather(*(made.submit(number) for number in numbers), return_exceptions=True)

    assert all(isinstance(answer, KeyError) for answer in asyncio.run(main([0, 1])))
    assert asyncio.run(main([1, 2])) == [1, 2]
    made.close()


def test_a_request_whose_caller_has_gone_is_not_run() -> None:
    run = Doubler(gate=threading.Event())
    made = batcher(run, max_batch=1)

    async def main() -> int:
        first = asyncio.ensure_future(made.submit(1))
        await asyncio.to_thread(run.running.wait, 60)
        gone = asyncio.ensure_future(made.submit(2))
        last = asyncio.ensure_future(made.submit(3))
        await asyncio.sleep(0)  # Both are submitted now, and wait behind the first.
        gone.cancel()
        # Only when it has ended does the batcher, in its own thread, know that nobody waits for it.
        await asyncio.wait([gone])
        run.gate.set()
        assert await first == 2
        return await last

    assert asyncio.run(main()) == 6
    assert run.sizes == [1, 1]
    made.close()


def test_closing_answers_what_runs_and_turns_away_what_waits() -> None:
    run = Doubler(gate=threading.Event())
    before = set(threading.enumerate())
    made = batcher(run, max_batch=1)

    async def main() -> list[Any]:
        requests = [asyncio.ensure_future(made.submit(number)) for number in range(3)]
        await asyncio.to_thread(run.running.wait, 60)
        closing = asyncio.ensure_future(asyncio.to_thread(made.close))
        turned_away = await asyncio.gather(*requests[1:], return_exceptions=True)
        run.gate.set()
        await closing
        answers = [await requests[0], *turned_away]
        with pytest.raises(ProviderError, match="closed"):
            await made.submit(4)
        return answers

    first, *others = asyncio.run(main())
    assert first == 0
    assert [type(other) for other in others] == [ProviderError, ProviderError]
    assert "fate-gym-batcher" not in {thread.name for thread in set(threading.enumerate()) - before}
