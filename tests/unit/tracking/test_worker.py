"""The thread of jobs that training does not wait for."""

import logging
import threading

from alexnet_dist.tracking.worker import Worker

SOON = 60  # seconds


def test_jobs_run_in_order_on_one_thread():
    done, names = [], set()
    worker = Worker("pictures", capacity=100)
    for number in range(50):
        assert worker.do(lambda number=number: (done.append(number), names.add(threading.current_thread().name)))
    assert worker.finish(SOON)
    assert done == [*range(50)]
    assert names == {"pictures"}


def test_a_full_queue_refuses_a_job_or_makes_its_caller_wait():
    begun, go_on, done = threading.Event(), threading.Event(), []
    worker = Worker("slow", capacity=1)
    worker.do(lambda: (begun.set(), go_on.wait(SOON)))
    assert begun.wait(SOON)
    assert worker.do(lambda: done.append("second"))
    assert not worker.do(lambda: done.append("refused"))
    patient = threading.Thread(target=worker.do, args=(lambda: done.append("third"),), kwargs={"wait": True})
    patient.start()
    assert not done
    go_on.set()
    patient.join(SOON)
    assert worker.finish(SOON)
    assert done == ["second", "third"]


def test_a_job_that_fails_is_reported_and_the_next_one_runs(caplog):
    done, worker = [], Worker("pictures", capacity=9)
    with caplog.at_level(logging.WARNING):
        worker.do(lambda: 1 / 0)
        worker.do(lambda: done.append("next"))
        assert worker.finish(SOON)
    assert done == ["next"]
    assert "left out: division by zero" in caplog.text


def test_a_job_that_hangs_is_left_behind():
    go_on = threading.Event()
    worker = Worker("hangs", capacity=1)
    worker.do(lambda: go_on.wait(SOON))
    try:
        assert not worker.finish(0.05)
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "hangs")
    finally:
        go_on.set()
