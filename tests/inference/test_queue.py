"""Who waits how long: owners in turn, limits of requests and tokens, and of time."""

import asyncio
import random
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from inference.engine import client as client_module
from inference.engine import sequence
from inference.engine.client import QueueLimits
from inference.errors import EngineOverloaded, QueueTimeout
from inference.request import FinishReason
from tests.inference.memory_runner import check_blocks, make_core, make_request, naive
from tests.inference.test_client import core, engine, gate, read, thread_engine, wait_until

__all__ = ["core", "engine", "gate", "thread_engine"]  # fixtures


def order_of_ends(core) -> list[str]:
    ends = []
    while core.has_work:
        for request_id, delta in core.step():
            if delta.finish_reason:
                ends.append(request_id)
        check_blocks(core)
    return ends


class TestOwnersTakeTurns:
    def test_one_with_many_requests_holds_up_nobody(self):
        core = make_core(max_num_seqs=1)
        for i in range(6):
            core.add(make_request(f"many{i}", [1, i], 2, owner="many"))
        core.step()  # the first of them is running
        for i in range(2):
            core.add(make_request(f"few{i}", [2, i], 2, owner="few"))

        ends = order_of_ends(core)
        assert ends == ["many0", "few0", "many1", "few1", "many2", "many3", "many4", "many5"]

    def test_nobody_gains_from_having_been_away(self):
        core = make_core(max_num_seqs=1)
        for i in range(4):
            core.add(make_request(f"a{i}", [1, i], 1, owner="a"))
        while len(core.scheduler.waiting) > 2:
            core.step()
        for i in range(3):
            core.add(make_request(f"b{i}", [2, i], 1, owner="b"))

        # of a's, two are over; those of b are not put before all that are left
        assert order_of_ends(core)[-4:] == ["a2", "b1", "a3", "b2"]

    @pytest.mark.parametrize("owner", ["", "one"])
    def test_alone_it_is_first_come_first_served(self, owner):
        core = make_core(max_num_seqs=1)
        for i in range(5):
            core.add(make_request(str(i), [1, i], 2, owner=owner))
        assert order_of_ends(core) == list("01234")

    def test_what_was_preempted_goes_before_what_never_ran(self):
        core = make_core(num_blocks=17, block_size=4)
        for i in range(4):
            core.add(make_request(f"old{i}", [i + 1] * 9, 30, owner="old"))
        while not core.stats().num_preemptions:
            core.step()
        preempted = {seq.request.request_id for seq in core.scheduler.waiting}
        core.add(make_request("new", [90], 2, owner="new"))

        ranks = [seq.request.request_id for seq in core.scheduler.waiting]
        assert set(ranks[:-1]) == preempted and ranks[-1] == "new"
        assert len(order_of_ends(core)) == 5

    def test_answers_do_not_depend_on_it_and_owners_that_are_gone_are_forgotten(self):
        rng, core = random.Random(1), make_core(num_blocks=40, max_num_seqs=3)
        expected, answers = {}, {}
        for i in range(60):
            prompt = [rng.randrange(1, 97) for _ in range(rng.randrange(1, 12))]
            expected[str(i)] = naive(prompt, 5)
            core.add(make_request(str(i), prompt, 5, owner=str(rng.randrange(20))))
            for _ in range(rng.randrange(3)):
                take_over(core.step(), answers)
        while core.has_work:
            take_over(core.step(), answers)

        assert answers == expected
        assert len(core.scheduler._next_turns) <= 20
        for i in range(30):
            core.add(make_request(f"later{i}", [1], 1, owner="last"))
        order_of_ends(core)
        assert set(core.scheduler._next_turns) == {"last"}


def take_over(outputs, answers) -> None:
    for request_id, delta in outputs:
        answers.setdefault(request_id, []).extend(delta.token_ids)


class TestTime:
    @pytest.fixture
    def clock(self, monkeypatch):
        """Seconds that have passed; the test moves them."""
        seconds = [100.0]
        monkeypatch.setattr(sequence, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
        return seconds

    def test_who_waits_too_long_fails_and_who_has_begun_does_not(self, clock):
        core = make_core(num_blocks=17, block_size=4, max_num_seqs=2)
        for i in range(4):
            core.add(make_request(str(i), [i + 1] * 9, 40, queue_timeout_s=7))
        while not core.stats().num_preemptions:  # one of the two that have begun waits again
            core.step()
        clock[0] += 8
        outputs = dict(core.step())

        refused = {name for name, item in outputs.items() if isinstance(item, QueueTimeout)}
        assert refused == {"2", "3"}
        assert "waited 8 s" in str(outputs["2"]) and outputs["2"].retry_after_s == 8
        assert sorted(order_of_ends(core)) == ["0", "1"]
        assert core.pool.num_free == core.pool.num_blocks - 1

    def test_an_answer_that_takes_too_long_is_cut_after_its_next_token(self, clock):
        core = make_core()
        core.add(make_request("cut", [1, 2], 40, timeout_s=5))
        core.step()
        clock[0] += 4
        [(_, delta)] = core.step()
        assert delta.finish_reason is None
        clock[0] += 2
        [(_, delta)] = core.step()

        assert delta.finish_reason is FinishReason.TIMEOUT
        assert not core.has_work

    def test_without_limits_all_have_time(self, clock):
        core = make_core(max_num_seqs=1)
        for i in range(2):
            core.add(make_request(str(i), [1, i], 3))
        clock[0] += 1e9
        assert order_of_ends(core) == ["0", "1"]


class TestTheQueueIsBounded:
    async def test_in_tokens_of_prompts_that_have_not_begun(self, thread_engine, engine, gate):
        gate.clear()
        thread_engine.limits = engine.limits = QueueLimits(100, 40)
        first = [engine.generate(make_request(str(i), [1 + i] * 20, 9)) for i in range(2)]
        wait_until(lambda: engine.backlog.num_queued_tokens == 40)
        with pytest.raises(EngineOverloaded):
            engine.check_capacity()
        gate.set()
        await asyncio.gather(*map(read, first))

        wait_until(lambda: engine.backlog == (0, 0, 0))
        engine.check_capacity()

    async def test_in_requests_that_are_only_being_prepared(self, thread_engine):
        places = [thread_engine.admit() for _ in range(6)]
        with pytest.raises(EngineOverloaded):
            thread_engine.admit()
        for place in places:
            place.leave()
            place.leave()
        thread_engine.check_capacity(6)

    async def test_but_never_for_an_owner_of_whom_nothing_waits(self, engine, gate):
        gate.clear()
        many = [engine.generate(make_request(f"{i}", [1, i], 2, owner="many")) for i in range(6)]
        wait_until(lambda: engine.backlog.num_unfinished == 6)
        for owner in ("many", ""):
            with pytest.raises(EngineOverloaded):
                engine.check_capacity(1, owner)
        few = engine.generate(make_request("few", [2], 2, owner="few"))
        with pytest.raises(EngineOverloaded):
            engine.check_capacity(1, "few")
        gate.set()

        answers = await asyncio.gather(*map(read, [*many, few]))
        assert answers == [*(naive([1, i], 2) for i in range(6)), naive([2], 2)]

    async def test_a_refusal_comes_as_it_is_and_says_when_to_come_back(self, core, engine):
        core.scheduler.limits = replace(core.scheduler.limits, max_num_seqs=1)
        forward = core._runner.forward
        core._runner.forward = lambda inputs: time.sleep(0.02) or forward(inputs)
        running = engine.generate(make_request("running", [1], 60))
        await anext(running)
        late = engine.generate(make_request("late", [2], 2, queue_timeout_s=0.6))

        with pytest.raises(QueueTimeout, match="waited 1 s") as caught:
            await read(late)
        assert caught.value.retry_after_s == 1
        running.abort()

    async def test_the_guess_is_what_so_many_took_before(self, thread_engine, gate, monkeypatch):
        seconds = [50.0]
        clock = SimpleNamespace(monotonic=lambda: seconds[0])
        monkeypatch.setattr(client_module, "time", clock)
        for i in range(4):
            await read(thread_engine.generate(make_request(f"done{i}", [1], 1)))
        gate.clear()
        waiting = [thread_engine.generate(make_request(str(i), [1], 1)) for i in range(6)]
        assert thread_engine.backlog.wait_s == 0
        seconds[0] += 3
        assert thread_engine.backlog.wait_s == 3  # none has ended: as long again
        thread_engine.abort("5")
        assert thread_engine.backlog.wait_s == 15  # one in 3 seconds, and 5 wait
        gate.set()
        await asyncio.gather(*map(read, waiting[:5]))
