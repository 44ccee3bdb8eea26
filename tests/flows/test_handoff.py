import multiprocessing
import time

import pytest

from flows.handoff import engine_processes, gpu_memory, handed_off
from storage.store import StoreError


def test_a_training_waits_until_the_engines_processes_have_ended():
    before = len(engine_processes())
    engine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    engine.start()
    try:
        assert len(engine_processes()) == before + 1
        with pytest.raises(StoreError, match=rf"engine processes have not ended after 0 s: .*{engine.pid}"):
            handed_off(patience=0.2)
    finally:
        engine.kill()
        engine.join()
    assert handed_off(patience=5).processes == 0 and len(engine_processes()) == before


def test_memory_is_unknown_where_no_gpu_is_seen_and_a_number_where_one_is():
    import torch

    assert (gpu_memory() is None) or torch.cuda.is_available()
