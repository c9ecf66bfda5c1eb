"""Answers on their way from the engine to their reader."""

from __future__ import annotations

import asyncio

import pytest

from questtrain.inference.engine.answers import Answers
from questtrain.inference.engine.requests import Delta, TokenInfo


def info(token: int) -> TokenInfo:
    return TokenInfo(token, "x", b"x", -1.0)


def test_what_piles_up_is_joined_by_request() -> None:
    async def read() -> None:
        answers = Answers([7, 9], lambda request: None)
        answers.put(Delta(7, "a", 1, (info(1),), (info(5),)), began=0.0)
        answers.put(Delta(9, "z", 1), began=0.0)
        answers.put(Delta(7, "b", 2, (info(2), info(3)), finish="stop"), began=0.0)
        assert await answers.next() == {
            0: Delta(7, "ab", 3, (info(1), info(2), info(3)), (info(5),), "stop"),
            1: Delta(9, "z", 1),
        }
        assert answers.open == [9]
        asyncio.get_running_loop().call_later(
            0.01, answers.put, Delta(9, "", 0, finish="length"), 0.0
        )
        assert list(await answers.next()) == [1]
        assert await answers.next() == {}
        assert answers.times[0].generated == 3

    asyncio.run(read())


def test_an_error_comes_after_what_has_arrived_and_cancels_the_rest() -> None:
    async def read() -> None:
        cancelled: list[int] = []
        answers = Answers([1, 2, 3], cancelled.append)
        answers.put(Delta(1, "a", 1, finish="stop"), began=0.0)
        answers.put(Delta(2, "b", 1), began=0.0)
        answers.fail(ValueError("first"))
        answers.fail(ValueError("second"))
        answers.close()
        assert cancelled == [2, 3]
        assert [delta.text for delta in (await answers.next()).values()] == ["a", "b"]
        with pytest.raises(ValueError, match="first"):
            await answers.next()

    asyncio.run(read())


def test_a_reader_that_waits_is_woken_by_an_error() -> None:
    async def read() -> None:
        answers = Answers([1], lambda request: None)
        asyncio.get_running_loop().call_later(0.01, answers.fail, ValueError("over"))
        with pytest.raises(ValueError, match="over"):
            await asyncio.wait_for(answers.next(), 5)

    asyncio.run(read())
