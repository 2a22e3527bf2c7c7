"""river's detectors on streams of labels: arrays of an .npz in, the places of their alarms out, as JSON.

    python river_alarms.py STREAMS.npz DETECTOR OPTIONS

`streams` is (n, texts) of 0 and 1. A detector is made anew for each stream, and after an alarm.
"""

import json
import sys

import numpy as np
from river.drift import ADWIN, PageHinkley

MAKE = {"adwin": ADWIN, "page_hinkley": PageHinkley}


def alarms(stream: np.ndarray, name: str, options: dict[str, float]) -> list[int]:
    detector, found = MAKE[name](**options), []
    for place, value in enumerate(stream):
        detector.update(float(value))
        if detector.drift_detected:
            found.append(place)
            detector = MAKE[name](**options)
    return found


if __name__ == "__main__":
    path, name, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    streams = np.load(path)["streams"]
    print(json.dumps([alarms(stream, name, options) for stream in streams]))
