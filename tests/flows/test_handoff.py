import os
import pickle
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from flows.handoff import handed_off, living, used_memory
from storage.store import StoreError
from synthesis.vllm_process import process_groups

GIB = 1 << 30
ENGINE = """
import sys, time
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
pipe.recv()
pipe.send(("ready", {}))
time.sleep(600)
"""


@pytest.fixture
def group():
    """A process group of two, whose first has died: the other one has another parent now."""
    first = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; exec sleep 61"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    second = int(first.stdout.readline())
    first.kill()
    first.wait()
    yield first.pid, second
    if psutil.pid_exists(second):
        os.kill(second, signal.SIGKILL)


def cards(*used):
    """NVML as it would tell of one card, asked again and again; the last answer stays."""
    told = list(used)
    return SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        nvmlDeviceGetHandleByIndex=int,
        nvmlDeviceGetHandleByUUID=str,
        nvmlDeviceGetMemoryInfo=lambda card: SimpleNamespace(used=told.pop(0) if len(told) > 1 else told[0]),
    )


def test_a_training_waits_for_what_an_engine_started_even_if_its_parent_died(group):
    number, second = group
    assert [p.pid for p in living({number})] == [second]
    assert second not in [p.pid for p in psutil.Process().children(recursive=True)]
    with pytest.raises(StoreError, match=rf"1 engine processes have not ended after 0 s: {second} \(sleep 60\)"):
        handed_off(patience=0.2, groups={number})
    os.kill(second, signal.SIGKILL)
    assert handed_off(patience=20, groups={number}).processes == 0


def test_a_process_that_only_has_the_name_of_an_engine_is_none():
    named = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "/data/vllm/spawn_main"])
    try:
        assert handed_off(patience=0.2).processes == 0
    finally:
        named.kill()
        named.wait()


def test_an_engine_that_starts_a_process_tells_its_group():
    from synthesis.vllm_process import VllmProcess

    before = process_groups()
    with pytest.raises((AttributeError, pickle.PicklingError)):  # the process is there, and cannot be told its settings
        VllmProcess({"model": lambda: "none"}).start()
    [number] = process_groups() - before
    assert living({number}) == []


def test_a_training_waits_until_the_cards_memory_is_what_it_was_before_the_engine(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert used_memory(cards(7 * GIB)) == {"1": 7 * GIB}
    before = {"1": 2 * GIB}
    found = handed_off(patience=20, groups=set(), before=before, nvml=cards(70 * GIB, 40 * GIB, 2 * GIB + 100))
    assert found.gpu_bytes == 100
    with pytest.raises(StoreError, match=r"GPU 1 has 68\.0 GiB more in use than before the engine started"):
        handed_off(patience=0.2, groups=set(), before=before, nvml=cards(70 * GIB))
    assert handed_off(patience=0.2, groups=set(), before={}, nvml=cards(70 * GIB)).gpu_bytes is None


def test_a_card_whose_memory_nvml_does_not_count_is_not_waited_for(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    shared = cards(7 * GIB)
    count = shared.nvmlDeviceGetMemoryInfo

    def told(card):
        if card == 0:  # as where CPU and GPU share one memory
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return count(card)

    shared.nvmlDeviceGetMemoryInfo = told
    assert used_memory(shared) == {"1": 7 * GIB}
    before = {"0": 0, "1": 7 * GIB}
    assert handed_off(patience=0.2, groups=set(), before=before, nvml=shared).gpu_bytes == 0


def test_a_training_waits_for_a_live_engine_and_forgets_its_group_once_it_is_over():
    from synthesis.vllm_process import VllmProcess

    engine = VllmProcess({}, ("-c", ENGINE))
    engine.start()
    try:
        [number] = [g for g in process_groups() if living({g})]
        with pytest.raises(StoreError, match=rf"1 engine processes have not ended after 0 s: {engine.pid} "):
            handed_off(patience=0.2)
        assert number in process_groups()
    finally:
        engine.stop()
    assert handed_off(patience=20).processes == 0
    assert number not in process_groups()  # its number may become another's
