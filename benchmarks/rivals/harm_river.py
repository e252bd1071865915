"""ADWIN and Page-Hinkley of river on the streams of benchmarks/harm.py: JSON in, JSON out."""

from __future__ import annotations

import json
import sys

from harm_streams import Scene
from river.drift import ADWIN, PageHinkley


def make(name: str, setting: float | None) -> ADWIN | PageHinkley:
    """Return a detector at its defaults, or with the one setting that moves its false alarms."""
    if name == "ADWIN":
        return ADWIN() if setting is None else ADWIN(delta=setting)
    if setting is None:
        return PageHinkley(mode="up")
    return PageHinkley(mode="up", threshold=setting)


def first_alarm(name: str, setting: float | None, scene: Scene, seed: int) -> int | None:
    """Return the label at which a rise is said, None if none is; the reference's losses come first, unheard."""
    reference, losses = scene.draw(seed)
    detector = make(name, setting)
    for loss in reference.tolist():
        detector.update(loss)
    for place, loss in enumerate(losses.tolist()):
        before = detector.estimation if name == "ADWIN" else 0.0
        detector.update(loss)
        # ADWIN tells of a fall too, which is no harm
        if detector.drift_detected and (name != "ADWIN" or detector.estimation > before):
            return place
    return None


def main() -> None:
    """Read one task a line, and write its alarms."""
    for line in sys.stdin:
        task = json.loads(line)
        scene = Scene(**task["scene"])
        alarms = [first_alarm(task["name"], task["setting"], scene, seed) for seed in task["seeds"]]
        print(json.dumps(alarms), flush=True)


if __name__ == "__main__":
    main()
