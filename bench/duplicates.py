"""Near-duplicates by `curation/minhash.py` beside the same by datasketch: planted copies, found and verified.

    python bench/duplicates.py --rows 1000000 --datasketch-rows 20000

Texts of 60 made-up words; a tenth of them are copies of one that is no copy itself, with one to seven words changed, so
that the Jaccard similarity of these pairs lies on both sides of 0.8 and close to it.

Recall is over the planted pairs whose Jaccard similarity, computed on Python's sets, is 0.8 or more, and whose older
text was kept: of these, the share whose younger text was dropped. Those from 0.8 to 0.85, where MinHash is least sure,
are counted by themselves. A pair whose older text was itself dropped says nothing, and is left out. Precision is the
share of the dropped texts whose similarity to the text that stands for them is 0.8 or more.

Both take the same shingles of five characters, 125 permutations in 25 bands, and
verify every pair that is proposed. Seconds are wall clock, and of the processor in brackets; the ratio is of the
processor's, since others may work on the machine. datasketch is timed on fewer rows, at whose rate it goes on.
"""

import argparse
import resource
import time

import numpy as np
import polars as pl
from datasketch import MinHash, MinHashLSH

from curation.minhash import BANDS, ROWS_PER_BAND, copies
from curation.shingles import shingled

WORDS, JACCARD, SIZE = 60, 0.8, 5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--datasketch-rows", type=int, default=20_000)
    chosen = options.parse_args()
    texts, parents = planted(chosen.rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    groups = pl.repeat("g", len(texts), eager=True)
    wall, processor = time.perf_counter(), time.process_time()
    found = copies(texts, groups, JACCARD, SIZE)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rate = len(texts) / processor
    print(
        f"{len(texts):,} rows of {WORDS} words, {len(parents):,} planted; {texts.estimated_size() / 1e9:.2f} GB of text"
    )
    print(f"ours: {wall:.1f} s ({processor:.1f} s), {rate:,.0f} rows a second; peak {before:.2f} to {peak:.2f} GB")
    check(texts, parents, found)

    some = texts[: chosen.datasketch_rows]
    processor = time.process_time()
    n = by_datasketch(some)
    theirs = len(some) / (time.process_time() - processor)
    mine = found.filter(pl.col("copy") < len(some)).height
    print(f"datasketch: {theirs:,.0f} rows a second on {len(some):,} rows, {n:,} copies (ours there {mine:,})")
    print(f"ours is {rate / theirs:.1f} times as fast")


def planted(rows: int) -> tuple[pl.Series, dict[int, int]]:
    """The texts, and for each copy among them the row that it was made of."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(20_000)], dtype=object)
    out, parents = [], {}
    originals = np.arange(50_000)[np.arange(50_000) % 10 != 1]
    for start in range(0, rows, 50_000):
        n = min(50_000, rows - start)
        chosen = rng.integers(0, len(vocabulary), (n, WORDS))
        for copy in range(1, n, 10):
            parent = int(originals[rng.integers(0, np.searchsorted(originals, copy))])
            chosen[copy] = chosen[parent]
            places = rng.choice(WORDS, rng.integers(1, 8), replace=False)
            chosen[copy, places] = rng.integers(0, len(vocabulary), len(places))
            parents[start + copy] = start + parent
        out += [" ".join(words) for words in vocabulary[chosen]]
    return pl.Series(out), parents


def check(texts: pl.Series, parents: dict[int, int], found: pl.DataFrame, most: int = 20_000) -> None:
    """Recall of the planted pairs at or over the threshold, and how many of those found are, by Python sets."""
    told = dict(found.select("copy", "kept").iter_rows())
    pairs = [(c, jaccard(texts[c], texts[p])) for c, p in list(parents.items())[:most] if p not in told]
    for low, high in ((JACCARD, 1.01), (JACCARD, JACCARD + 0.05)):
        caught = [c in told for c, alike in pairs if low <= alike < high]
        print(f"recall {sum(caught)} of {len(caught)} planted at {low} to {min(high, 1):.2f}")
    under = sum(alike < JACCARD for _, alike in pairs)
    right = sum(jaccard(texts[c], texts[k]) >= JACCARD for c, k in list(told.items())[:most])
    print(f"precision {right} of {min(len(told), most)} found; {under} planted lie under {JACCARD}")


def jaccard(a: str, b: str) -> float:
    a, b = ({t[i : i + SIZE] for i in range(len(t) - SIZE + 1)} for t in (a, b))
    return len(a & b) / len(a | b)


def by_datasketch(texts: pl.Series) -> int:
    """The number of copies, found one text after another: signed, looked up, verified, and kept where none is near."""
    index = MinHashLSH(num_perm=BANDS * ROWS_PER_BAND, params=(BANDS, ROWS_PER_BAND))
    sets, n, count = {}, 0, 0
    for chunk in shingled(texts, SIZE):
        for start, end in zip(chunk.offsets[:-1], chunk.offsets[1:], strict=True):
            hashes = np.unique(chunk.hashes[start:end])
            signature = MinHash(num_perm=BANDS * ROWS_PER_BAND, hashfunc=int)
            signature.update_batch((hashes >> np.uint64(32)).tolist())  # it takes hashes of 32 bits
            near = False
            for other in index.query(signature):
                shared = len(np.intersect1d(hashes, sets[other], assume_unique=True))
                near = near or shared / (len(hashes) + len(sets[other]) - shared) >= JACCARD
            if near:
                count += 1
            else:
                index.insert(n, signature)
                sets[n] = hashes
            n += 1
    return count


if __name__ == "__main__":
    main()
