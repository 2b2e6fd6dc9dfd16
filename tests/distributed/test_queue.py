"""Which share is asked by whom, and what is given up."""

from cot_reward.distributed.queue import Queue


def test_shares_are_handed_out_once():
    queue = Queue([1, 2, 3], workers=[1, 2], attempts=3)
    assert [queue.take(1), queue.take(2), queue.take(1), queue.take(2)] == [1, 2, 3, None]
    for share in (1, 2, 3):
        assert queue.open
        queue.finished(share, 1)
    assert not queue.open
    assert queue.left == 0


def test_a_worker_may_die_any_number_of_times_while_responses_come():
    queue = Queue([1], workers=[1, 2], attempts=2)
    for _ in range(50):
        assert queue.take(1) == 1
        queue.failed(1, 1, grew=True, why="killed")
    assert queue.workers == {1, 2}
    assert not queue.given_up


def test_a_share_that_failed_goes_to_another_worker():
    queue = Queue([1, 2], workers=[1, 2], attempts=3)
    assert queue.take(1) == 1
    queue.failed(1, 1, grew=False, why="the server was out")
    assert queue.take(1) == 2
    assert queue.take(2) == 1
    queue.failed(1, 2, grew=False, why="the server was out")
    # The other one takes it when it is free.
    assert queue.take(2) is None
    queue.finished(2, 1)
    assert queue.take(1) == 1
    queue.failed(1, 1, grew=False, why="the server is still out")
    assert queue.given_up == {1: "the server is still out"}
    assert not queue.open
    assert queue.left == 1


def test_a_worker_that_brings_nothing_further_is_given_up_alone():
    queue = Queue([1, 2, 3, 4], workers=[1, 2], attempts=3)
    for share in (1, 2, 3):
        assert queue.take(1) == share
        queue.failed(share, 1, grew=False, why="no GPU")
    assert queue.workers == {2}
    assert not queue.given_up
    for _ in range(4):
        queue.finished(queue.take(2), 2)
    assert not queue.open


def test_the_last_worker_tries_again_what_it_has_failed_at():
    queue = Queue([1], workers=[1, 2], attempts=2)
    queue.worker_failed(2)
    queue.worker_failed(2)
    assert queue.take(1) == 1
    queue.failed(1, 1, grew=False, why="why")
    assert queue.take(1) == 1
    queue.failed(1, 1, grew=True, why="why")
    assert queue.take(1) == 1
    queue.finished(1, 1)
    assert not queue.open
