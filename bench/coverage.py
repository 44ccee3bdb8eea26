"""How often intervals over seeds and rows hold the truth: ours, and the bootstrap that draws seeds and rows again.

    python -m bench.coverage

Prints, for spreads of seeds, rows and rest like those on SNIPS and for extremes, the share of 400 drawn results
whose 95 % interval holds the true mean, and its width.
"""

import numpy as np

from flows.statistics import estimate

DRAWS, REPEATS, ROWS = 400, 300, 300
SPREADS = {
    "as on SNIPS": (0.03, 0.3, 0.35),
    "seeds differ most": (0.05, 0.05, 0.2),
    "seeds differ a little": (0.035, 0.0, 0.35),
    "seeds do not differ": (0.0, 0.4, 0.3),
}


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'spread':<20} {'seeds':>5} {'ours':>7} {'width':>7} {'bootstrap':>10} {'width':>7}")
    for name, (by_seed, by_row, rest) in SPREADS.items():
        for seeds in (3, 5, 10):
            held, wide = np.zeros(2), np.zeros(2)
            for _ in range(DRAWS):
                x = by_seed * rng.standard_normal((seeds, 1)) + by_row * rng.standard_normal((1, ROWS))
                x = x + rest * rng.standard_normal((seeds, ROWS))
                found = estimate(x)
                for k, (low, high) in enumerate([(found.low, found.high), bootstrap(x, rng)]):
                    held[k] += low <= 0 <= high
                    wide[k] += high - low
            ours, other = zip(held / DRAWS, wide / DRAWS, strict=True)
            print(f"{name:<20} {seeds:>5} {ours[0]:>7.1%} {ours[1]:>7.3f} {other[0]:>10.1%} {other[1]:>7.3f}")


def bootstrap(x: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Percentiles of the mean over seeds and rows drawn with replacement."""
    seeds, rows = x.shape
    drawn = rng.integers(0, seeds, (REPEATS, seeds))
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), REPEATS)
    means = (x[drawn].mean(1) * counts).sum(1) / rows
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
