"""Where data comes from: packings, folders, archives, addresses, data sets; and how its bytes are told."""

import gzip
import json
import zipfile
from pathlib import Path

import fsspec
import pytest

from storage import streams
from storage.copies import Copies
from storage.importing import import_files
from storage.reading import Batch, raw_file, read_batches
from storage.store import Store, StoreError

FILES = Path(__file__).parent / "files"
GOOD = {"instruction": "Add.", "input": "2+2", "output": "4"}
LINE = json.dumps(GOOD) + "\n"


def imported(folder: Path, *given: Path | str, **options):
    store = Store(folder / "store")
    made = import_files(store, list(given), "pool", **options)
    return made, store.read(made.dataset), *(store.read_side(made.dataset, t) for t in ("origin", "rejects"))


def test_a_zip_archive_is_the_data_in_it(tmp_path):
    made, rows, origin, _ = imported(tmp_path, FILES / "alpaca.zip")
    assert made.formats == {"alpaca.zip/data/alpaca.jsonl": "alpaca"}
    assert rows.height == 4
    assert set(origin["file"]) == {"alpaca.zip/data/alpaca.jsonl"}


def test_what_an_archive_holds_besides_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for name in ("a.jsonl", "README.md", "deep/LICENSE", "__MACOSX/a.jsonl"):
            archive.writestr(name, LINE)
    made, *_ = imported(tmp_path, tmp_path / "raw.zip")
    assert list(made.formats) == ["raw.zip/a.jsonl"]
    assert made.left_out == ["raw.zip/README.md", "raw.zip/deep/LICENSE"]


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "BOMB_FROM", 1 << 20)
    for name in ("bomb.jsonl", "bomb.parquet"):
        with zipfile.ZipFile(tmp_path / "raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jsonl", LINE)
            archive.writestr(name, b" " * (1 << 21))
        with pytest.raises(StoreError, match=f"raw.zip/{name} unpacks to more than 250 times its size"):
            imported(tmp_path, tmp_path / "raw.zip")


def test_a_member_that_says_that_it_is_smaller_than_it_is_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "BOMB_FROM", 1 << 20)
    with zipfile.ZipFile(tmp_path / "raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", LINE.encode() + b" " * (1 << 21))
    content = (tmp_path / "raw.zip").read_bytes()
    true, said = (n.to_bytes(4, "little") for n in (len(LINE) + (1 << 21), len(LINE) + 100))
    (tmp_path / "raw.zip").write_bytes(content.replace(true, said))
    with pytest.raises(StoreError, match=r"raw.zip/a.jsonl has no usable row"):
        imported(tmp_path, tmp_path / "raw.zip")


@pytest.mark.parametrize("content", ["{}", "[]", "1", "{", '{"_data_files": [{"name": "x"}]}', '{"_data_files": 3}'])
def test_a_state_json_of_something_else_is_a_file_like_others(tmp_path, content):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "state.json").write_text(content)
    (tmp_path / "in" / "a.jsonl").write_text(LINE)
    with pytest.raises(StoreError, match=r"state.json has no usable row"):
        imported(tmp_path, tmp_path / "in")


def test_a_saved_data_set_without_one_of_its_files_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
    with pytest.raises(StoreError, match=r"in lacks data-0.arrow, which its state.json names"):
        imported(tmp_path, tmp_path / "in")


def test_a_folder_is_the_data_in_it_and_says_what_it_leaves_out(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "deep/a.jsonl", "README.md", ".hidden.jsonl"):
        (tmp_path / "in" / name).write_text(LINE)
    made, rows, origin, _ = imported(tmp_path, tmp_path / "in")
    assert origin["file"].to_list() == ["b.jsonl", "deep/a.jsonl"]
    assert made.left_out == ["README.md"]
    assert rows["id"].n_unique() == 2


def test_an_address_is_read_like_a_file_and_found_again(tmp_path):
    with fsspec.open("memory://bucket/raw.jsonl.gz", "wb") as file:
        file.write(gzip.compress(LINE.encode() * 3))
    made, rows, origin, _ = imported(tmp_path, "memory://bucket/raw.jsonl.gz")
    assert (rows.height, origin["file"][0]) == (3, "raw.jsonl.gz")
    assert imported(tmp_path, "memory://bucket/raw.jsonl.gz")[0] == made
    assert imported(tmp_path, "memory://bucket")[1].height == 3


def test_a_question_mark_is_part_of_a_name_where_names_are_no_addresses(tmp_path):
    for version in (1, 2):
        with fsspec.open(f"memory://versions/raw?{version}.jsonl", "wb") as file:
            file.write(LINE.encode())
    origin = imported(tmp_path, "memory://versions")[2]
    assert origin["file"].to_list() == ["raw?1.jsonl", "raw?2.jsonl"]


@pytest.mark.parametrize(
    "given, message",
    [
        ("memory://bucket/gone.jsonl", "there is nothing at memory://bucket/gone.jsonl"),
        ("nosuch://bucket/raw.jsonl", "cannot be opened: .*nosuch"),
        ("gone.jsonl", "there is no file gone.jsonl"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, given, message):
    with pytest.raises(StoreError, match=message):
        imported(tmp_path, given)


def test_a_data_set_of_the_hub_that_cannot_be_reached_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        StoreError, match=r"hf:nobody/nothing@train cannot be read: .*save_to_disk\(FOLDER\).*import the folder"
    ):
        imported(tmp_path, "hf:nobody/nothing@train")


@pytest.mark.real
def test_what_the_datasets_library_saved_or_names_is_read(tmp_path):
    import datasets

    records = [GOOD | {"input": str(n)} for n in range(5)]
    saved = datasets.Dataset.from_list(records)
    saved.save_to_disk(tmp_path / "saved", num_shards=2)
    made, rows, _origin, _ = imported(tmp_path, tmp_path / "saved")
    assert made.formats == dict.fromkeys(("data-00000-of-00002.arrow", "data-00001-of-00002.arrow"), "alpaca")
    assert [m[0]["content"] for m in rows["messages"].to_list()] == [f"Add.\n{n}" for n in range(5)]

    datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(tmp_path / "splits")
    with pytest.raises(StoreError, match="holds the splits test, train; name the one to import"):
        imported(tmp_path, tmp_path / "splits")
    assert imported(tmp_path, tmp_path / "splits" / "test")[1].height == 1

    (tmp_path / "clone").mkdir()
    for split in ("train", "test"):
        (tmp_path / "clone" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(StoreError, match="has the splits train, test; name one"):
        imported(tmp_path, f"hf:{tmp_path}/clone")
    with pytest.raises(StoreError, match="has no split 'dev'"):
        imported(tmp_path, f"hf:{tmp_path}/clone@dev")
    assert imported(tmp_path, f"hf:{tmp_path}/clone@test")[1].height == 5


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_another_unicode_is_read_and_says_so(tmp_path, encoding):
    (tmp_path / "raw.jsonl").write_bytes(
        (json.dumps(GOOD | {"output": "Ñandú"}, ensure_ascii=False) + "\r\n").encode(encoding)
    )
    _made, rows, origin, rejects = imported(tmp_path, tmp_path / "raw.jsonl")
    assert rows["messages"][0][1]["content"] == "Ñandú"
    assert rejects.height == 0
    assert (origin["note"][0] is None) == (encoding == "utf-8-sig")


@pytest.mark.parametrize(
    "encoding, said, noted",
    [
        ("shift_jis", "日本語のテキストを読むことができます。これは二つ目の文です。", "decoded as cp932"),
        ("cp1251", "Это предложение написано по-русски, и его нужно прочитать верно.", "decoded as cp1251"),  # noqa: RUF001
        ("gb18030", "这是一个用中文写的句子。今天天气很好。我们去公园。", "decoded as"),
        ("latin-1", "café", "decoded as Latin-1"),
    ],
)
def test_an_encoding_is_guessed_for_the_file_and_named_in_each_row(tmp_path, encoding, said, noted):
    lines = [
        json.dumps(GOOD | {"output": f"{said} {n}"}, ensure_ascii=False) for n in range(20 if len(said) > 9 else 1)
    ]
    (tmp_path / "raw.jsonl").write_bytes(LINE.encode() + "\n".join(lines).encode(encoding))
    made, rows, origin, _ = imported(tmp_path, tmp_path / "raw.jsonl")
    assert [m[1]["content"] for m in rows["messages"].to_list()][1:] == [f"{said} {n}" for n in range(len(lines))]
    assert origin["note"][0] is None
    assert all(note.startswith(noted) for note in origin["note"][1:])
    assert sum(made.notes.values()) == len(lines)


def test_columns_are_mapped_and_the_rest_is_kept(tmp_path):
    (tmp_path / "raw.csv").write_text('question;answer;score\n"2+2;\n3+3";4;0.5\nshort\n')
    _made, rows, origin, rejects = imported(
        tmp_path, tmp_path / "raw.csv", columns={"instruction": "question", "output": "answer"}
    )
    assert [(m["role"], m["content"]) for m in rows["messages"][0]] == [("user", "2+2;\n3+3"), ("assistant", "4")]
    assert origin["columns"].to_list() == ['{"score": "0.5"}']
    assert rejects.select("line", "reason").rows() == [(4, "1 cells, but the header has 3")]
    with pytest.raises(StoreError, match="messages has no field 'output'; it has messages"):
        imported(tmp_path, tmp_path / "raw.csv", columns={"output": "answer"}, format="messages")


def test_numbers_of_any_length_stay_as_they_are(tmp_path):
    (tmp_path / "raw.jsonl").write_text(
        '{"instruction": "A", "output": "4", "id": 123456789012345678901234567890, "x": 1e999}\n'
    )
    _, _, origin, _ = imported(tmp_path, tmp_path / "raw.jsonl")
    assert json.loads(origin["columns"][0]) == {"id": 123456789012345678901234567890, "x": "1e999"}


def test_an_array_on_one_line_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PIECE", 1000)
    records = [GOOD | {"input": f"}}, {{ {n} \\", "history": [["a", "b"]]} for n in range(300)]
    text = json.dumps(records)
    assert "\n" not in text
    broken = text.replace('"input": "}, { 150 ', '"input": }, { 150 ')
    (tmp_path / "raw.json").write_text(text)
    (tmp_path / "broken.json").write_text(broken)
    _, rows, _, rejects = imported(tmp_path, tmp_path / "raw.json")
    assert (rows.height, rejects.height) == (300, 0)
    _made, rows, _, rejects = imported(tmp_path, tmp_path / "broken.json")
    assert 290 <= rows.height < 300
    assert rejects.height >= 1


def test_objects_over_many_lines_are_read_without_an_array(tmp_path):
    (tmp_path / "raw.json").write_text("\n".join(json.dumps(GOOD | {"input": str(n)}, indent=2) for n in range(3)))
    made, _rows, origin, _ = imported(tmp_path, tmp_path / "raw.json")
    assert made.kinds == {"raw.json": "JSON objects"}
    assert origin["line"].to_list() == [1, 6, 11]


@pytest.mark.parametrize("name", ["alpaca.jsonl.gz", "alpaca.jsonl.bz2", "alpaca.jsonl.xz", "alpaca.jsonl.zst"])
def test_a_packed_file_that_is_cut_off_says_so(tmp_path, name):
    (tmp_path / "cut.jsonl").write_bytes((FILES / name).read_bytes()[:-40])
    found = [
        r for b in read_batches(raw_file(tmp_path / "cut.jsonl"), "raw", "alpaca", 1000, Copies()) for r in _reasons(b)
    ]
    assert found[-1].startswith("the compressed file is cut off or damaged")


def _reasons(batch: Batch) -> list[str]:
    return batch.rejects["reason"].to_pylist()


def test_a_bomb_is_read_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "BOMB_FROM", 1 << 22)
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb") as file:
        file.write(LINE.encode())
        for _ in range(32):
            file.write(b" " * (1 << 20))
    _made, rows, _, rejects = imported(tmp_path, tmp_path / "bomb.jsonl.gz")
    assert rows.height == 1
    assert "unpacks to more than 250 times its size" in rejects["reason"][-1]


def test_an_archive_that_is_broken_is_named(tmp_path):
    content = (FILES / "alpaca.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[:300])
    with pytest.raises(StoreError, match=r"cut.zip is a zip archive that cannot be read"):
        imported(tmp_path, tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    with pytest.raises(StoreError, match="no usable row"):
        imported(tmp_path, tmp_path / "none.zip")


def test_a_giant_line_is_a_reject_and_its_neighbours_are_rows(tmp_path):
    with (tmp_path / "raw.jsonl").open("w") as file:
        file.write(LINE)
        file.write('{"instruction": "A", "output": "' + "4" * (50 << 20) + '"}\n')
        file.write(LINE)
    _, _rows, origin, rejects = imported(tmp_path, tmp_path / "raw.jsonl")
    assert origin["line"].to_list() == [1, 3]
    assert rejects.select("line", "reason").rows() == [(2, "line of 52,428,834 bytes is over the limit of 16,777,216")]
