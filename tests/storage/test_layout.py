import shutil
from pathlib import Path

import pytest

from storage.manifest import LAYOUT, read_layout
from storage.schema import ROW
from storage.store import Store, StoreError
from tests.rows import rows

OLD = Path(__file__).parents[1] / "data" / "store-layout-1"  # written by the first Thresher that had a store


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(OLD, tmp_path / "old")


def test_a_store_of_the_first_layout_is_read_and_goes_on(old):
    assert read_layout(old) == 1
    store = Store(old)
    said = store.read(store.resolve("old"))
    assert said["drop_reason"].to_list() == [None, "clear-filter: doubtful"]
    assert said["messages"][1][1]["content"] == "7"
    store.put_part("a" * 20, rows(("2+2?", "4")), ROW)
    assert read_layout(old) == LAYOUT


def test_a_store_of_a_newer_layout_is_refused_by_name(old):
    (old / "store.json").write_text('{"layout": 99}')
    with pytest.raises(StoreError, match=r"old has layout 99.*a newer one wrote it"):
        Store(old)


@pytest.mark.parametrize("content", ["", "{}", '{"layout": "x"}', "[]", "\x00"])
def test_a_store_that_does_not_say_its_layout_right_is_refused(old, content):
    (old / "store.json").write_text(content)
    with pytest.raises(StoreError, match="does not say the store's layout"):
        Store(old)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param('"kind"', '"colour": 1, "kind"', "'colour'.*a newer one wrote it", id="newer-field"),
        pytest.param('"kind"', '"kind', "is broken", id="no-json"),
        pytest.param('"step": "import",', "", "is broken", id="field-lost"),
        pytest.param('"rows": 2', '"rows": 2, "colour": 1', "is broken", id="part-of-another-shape"),
    ],
)
def test_a_manifest_that_cannot_be_read_right_is_refused_by_name(old, before, after, told):
    path = old / "datasets" / "import-0123456789ab" / "manifest.json"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(StoreError, match=f"import-0123456789ab.*{told}"):
        Store(old).manifest("import-0123456789ab")
