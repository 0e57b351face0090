"""Times one case on ONNX Runtime or on a session of TensorFlow 1, with two threads.

Usage: peers.py DIR CASE ort|tf SECONDS. DIR has feeds.safetensors and weights.safetensors; the second result is
written to result.safetensors there, as Convoke orders it. Prints {"median_us": ..}, or {} if the peer does not
have the case.
"""

import json
import statistics
import sys
import time

import numpy as np
from safetensors.numpy import load_file, save_file


def measure(run, seconds):
    """The median time in microseconds, and the second result."""
    run()
    second = run()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < seconds:
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6, second


def load_feeds(directory):
    feeds = load_file(f"{directory}/feeds.safetensors")
    whole = {"y", "indices"}
    return {name: x.astype(np.int32) if name in whole else x for name, x in feeds.items()}


def main():
    directory, case, peer, seconds = sys.argv[1:]
    if peer == "ort":
        import onnx_cases as cases
    else:
        import tf_cases as cases
    run = cases.prepare(case, load_feeds(directory), load_file(f"{directory}/weights.safetensors"))
    if run is None:
        print("{}")
        return
    median, result = measure(run, float(seconds))
    result = np.asarray(cases.in_order(case, result), dtype=np.float32)
    result = np.atleast_1d(np.ascontiguousarray(result))
    save_file({"result": result}, f"{directory}/result.safetensors")
    print(json.dumps({"median_us": median}))


if __name__ == "__main__":
    main()
