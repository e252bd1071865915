"""The shifts of "Failing Loudly" that are found in the first look: `python -m benchmarks.failing_loudly --help`.

Rabanser, Günnemann & Lipton 2019, on MNIST: Gaussian noise (standard deviation 1, 10 and 100 of 255), affine changes
(small, medium, large), adversarial images (here the fast gradient sign method on our own network), each in 10, 50 and
100 % of the images; digits 0 knocked out by 10, 50 and 100 %; and both: half of the images changed and knocked out, or
only zeros of which 10, 50 and 100 % are changed. Windows of 10 to 10,000 images are drawn from the test images; the
reference is 5,000 held-out ones. By turns on the same windows:

- homeostat: what `find_drift` decides on at its first look, default settings (1 % over a version's whole life), on the
  columns that it watches of images: summaries of the pixels, and the model's scores;
- BBSDs: the paper's best, Kolmogorov and Smirnov's test of each of the ten scores, 5 % by Bonferroni;
- Evidently's default, on the same columns as homeostat.

HOMEOSTAT_DATA names the folder of mnist.npz.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy.ndimage import affine_transform
from scipy.stats import ks_2samp
from sklearn.neural_network import MLPClassifier

from benchmarks.drift_alarms import evidently_default, ours
from benchmarks.projects import Rows
from homeostat.dataset import Array
from homeostat.monitoring.columns import watched_frame

Change = Callable[[Array, Array, np.random.Generator], Array]
"""(images [n, 28, 28, 1], their digits [n], rng) -> images."""
Shift = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]
"""The same, with the digits of those that are left."""
SIZES = (10, 20, 50, 100, 200, 500, 1_000, 10_000)
REFERENCE = 5_000
NOISE = {"small": 1.0, "medium": 10.0, "large": 100.0}
AFFINE = {
    "small": (10, 0.05, 0.1, 0.1, False, False),
    "medium": (40, 0.2, 0.2, 0.2, True, False),
    "large": (90, 0.4, 0.3, 0.4, True, True),
}
"""Degrees, share of the width, shear (radians) and zoom at most, and whether images are mirrored each way."""
FRACTIONS = (0.1, 0.5, 1.0)


class Network:
    """A network with one hidden layer of 128 units."""

    def __init__(self, x: Array, y: Array) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = MLPClassifier((128,), max_iter=15, random_state=0).fit(x.reshape(len(x), -1), y)

    def scores(self, x: Array) -> Array:
        found: Array = self.model.predict_proba(x.reshape(len(x), -1))
        return found

    def against(self, x: Array, y: Array, size: float = 0.3) -> Array:
        """Return images moved by the sign of the loss's gradient (Goodfellow et al. 2015)."""
        flat = x.reshape(len(x), -1)
        first, second = self.model.coefs_
        hidden = flat @ first + self.model.intercepts_[0]
        error = self.model.predict_proba(flat) - np.eye(10)[y]
        gradient = ((error @ second.T) * (hidden > 0)) @ first.T
        moved: Array = np.clip(flat + size * np.sign(gradient), 0, 1).reshape(x.shape)
        return moved


def affine(x: Array, how: tuple[float, float, float, float, bool, bool], rng: np.random.Generator) -> Array:
    """Return each image turned, moved, sheared, zoomed and mirrored at random, within limits."""
    degrees, share, shear, zoom, across, down = how
    out = np.empty_like(x)
    for i, image in enumerate(x[..., 0]):
        angle = np.deg2rad(rng.uniform(-degrees, degrees))
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = (
            turned
            @ np.array([[1, -np.sin(rng.uniform(-shear, shear))], [0, 1]])
            @ np.diag(rng.uniform(1 - zoom, 1 + zoom, 2))
        )
        middle = np.array([13.5, 13.5])
        offset = middle - matrix @ middle + rng.uniform(-share, share, 2) * 28
        made = affine_transform(image, matrix, offset, order=1, mode="nearest")
        made = made[:, ::-1] if across and rng.random() < 0.5 else made
        out[i, ..., 0] = made[::-1] if down and rng.random() < 0.5 else made
    return out


def shifts(network: Network) -> dict[str, Shift]:
    """Return name -> what changes images [n, 28, 28, 1] and their digits [n]."""

    def some(change: Change, fraction: float) -> Shift:
        def apply(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
            chosen = rng.permutation(len(x))[: int(np.ceil(fraction * len(x)))]
            made = x.copy()
            made[chosen] = change(x[chosen], y[chosen], rng)
            return made, y

        return apply

    def knocked(fraction: float) -> Shift:
        def apply(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
            kept = (y != 0) | (rng.random(len(y)) >= fraction)
            return x[kept], y[kept]

        return apply

    def noisy(size: float) -> Change:
        return lambda x, y, rng: np.clip(x + rng.normal(0, size / 255, x.shape), 0, 1).astype(x.dtype)

    def moved(how: str) -> Change:
        return lambda x, y, rng: affine(x, AFFINE[how], rng)

    def both(first: Shift, second: Shift) -> Shift:
        def apply(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
            return second(*first(x, y, rng), rng)

        return apply

    def zeros(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        return x[y == 0], y[y == 0]

    found: dict[str, Shift] = {"none": lambda x, y, rng: (x, y)}
    for fraction in FRACTIONS:
        percent = f"{fraction:.0%}"
        found |= {f"noise, {how}, {percent}": some(noisy(size), fraction) for how, size in NOISE.items()}
        found |= {f"affine, {how}, {percent}": some(moved(how), fraction) for how in AFFINE}
        found[f"adversarial, {percent}"] = some(lambda x, y, rng: network.against(x, y), fraction)
        found[f"knock-out, {percent}"] = knocked(fraction)
        found[f"affine and knock-out, {percent}"] = both(some(moved("medium"), 0.5), knocked(fraction))
        found[f"only zeros and affine, {percent}"] = both(zeros, some(moved("medium"), fraction))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    given = parser.parse_args()
    with np.load(Path(os.environ["HOMEOSTAT_DATA"]) / "mnist.npz") as mnist:
        x, y = mnist["x_train"][..., None].astype(np.float32) / 255, mnist["y_train"].astype(int)
        test, kinds = mnist["x_test"][..., None].astype(np.float32) / 255, mnist["y_test"].astype(int)
    network = Network(x[:20_000], y[:20_000])
    print(f"accuracy on the test images: {(network.scores(test).argmax(axis=1) == kinds).mean():.3f}", flush=True)

    def frame(images: Array) -> pd.DataFrame:
        return watched_frame(Rows(), "classification", {"x": images}, {}, {"output": network.scores(images)})

    names = ("homeostat", "BBSDs", "Evidently's default")
    hits: dict[tuple[str, int], dict[str, list[bool]]] = {}
    for seed in range(given.seeds):
        rng = np.random.default_rng(seed)
        held_out = x[50_000:][rng.permutation(10_000)[:REFERENCE]]
        reference, scores = frame(held_out), network.scores(held_out)
        default = evidently_default(reference)
        for place, (shift, apply) in enumerate(shifts(network).items()):
            drawn = np.random.default_rng((seed, place))
            order = drawn.permutation(len(test))
            images, _ = apply(test[order], kinds[order], drawn)
            for size in given.sizes:
                window = images[:size]
                current, now = frame(window), network.scores(window)
                p = min(ks_2samp(scores[:, k], now[:, k]).pvalue for k in range(10))
                found = (ours(reference, seed, joint=True)(current), p < 0.05 / 10, default(current))
                kept = hits.setdefault((shift.split(",")[0], size), {name: [] for name in names})
                for name, hit in zip(names, found, strict=True):
                    kept[name].append(bool(hit))
        print(f"seed {seed} done", flush=True)
    groups = list(dict.fromkeys(kind for kind, _ in hits))
    head = " | ".join(f"{size:,}" for size in given.sizes)
    for name in names:
        print(f"\n| {name} | {head} |\n|---|{'---:|' * len(given.sizes)}")
        for group in [*groups, "all shifts"]:
            of = [g for g in groups if g != "none"] if group == "all shifts" else [group]
            cells = [np.mean([hit for g in of for hit in hits[g, size][name]]) for size in given.sizes]
            print(f"| {group} | {' | '.join(f'{cell:.2f}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
