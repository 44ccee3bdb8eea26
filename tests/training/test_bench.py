import sys

import pytest

from bench import gpu


@pytest.mark.parametrize("steps", [4, gpu.WARM])
def test_steps_that_are_all_warm_up_are_refused(monkeypatch, capsys, steps):
    monkeypatch.setattr(sys, "argv", ["gpu", "--shapes", "tiny", "--steps", str(steps)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2 and f"the first {gpu.WARM} are not counted" in capsys.readouterr().err
