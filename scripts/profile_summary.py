#!/usr/bin/env python3
"""Where the time of a profile goes: what `baleen train --profile FILE` or `baleen bench --profile FILE` wrote.

    python3 scripts/profile_summary.py FILE [--top 12]

For every range of the timeline (step, rollout, prefill, decode, learn, reference, optimizer, ...): how often it is
there, its wall-clock time, and the share of it in which a GPU was busy, counted once where kernels overlap. Then
kernels and copies by their GPU time, and CPU operations by the time spent in them and in nothing they call. The file
may be compressed with gzip. Times are those under the profiler, which slows down what the CPU does between kernels.
"""
import argparse
import bisect
import collections
import gzip
import json

ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
NAME_WIDTH = 86


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--top", type=int, default=12, help="rows of each table")
    return parser.parse_args()


def read(path):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and "dur" in event]


def busy(events):
    """Disjoint stretches in which a GPU works, in order, and the time worked before each."""
    starts, ends, before = [], [], [0.0]
    for event in sorted(events, key=lambda event: event["ts"]):
        start, end = event["ts"], event["ts"] + event["dur"]
        if ends and start <= ends[-1]:
            before[-1] += max(0.0, end - ends[-1])
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
            before.append(before[-1] + end - start)
    return starts, ends, before


def worked(stretches, start, end):
    """Time of `stretches` between `start` and `end`."""

    def until(time):
        starts, ends, before = stretches
        index = bisect.bisect_right(starts, time) - 1
        if index < 0:
            return 0.0
        return before[index] + min(time, ends[index]) - starts[index]

    return until(end) - until(start)


def self_times(operations):
    """Time in each operation and in nothing it calls, by name."""
    total, count = collections.Counter(), collections.Counter()
    threads = collections.defaultdict(list)
    for event in operations:
        threads[event["pid"], event["tid"]].append(event)
    for events in threads.values():
        open_ones = []
        for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
            while open_ones and event["ts"] >= open_ones[-1]["ts"] + open_ones[-1]["dur"]:
                open_ones.pop()
            if open_ones:
                total[open_ones[-1]["name"]] -= event["dur"]
            total[event["name"]] += event["dur"]
            count[event["name"]] += 1
            open_ones.append(event)
    return total, count


def table(title, total, count, top):
    everything = sum(total.values())
    print(f"\n{title}: {everything / 1e3:.1f} ms, {sum(count.values())} events")
    print(f"{'ms':>10}{'share':>8}{'count':>9}{'us each':>10}  name")
    for name, time in total.most_common(top):
        share = f"{100 * time / max(everything, 1e-9):.1f} %"
        print(f"{time / 1e3:>10.1f}{share:>8}{count[name]:>9}{time / count[name]:>10.1f}  {name[:NAME_WIDTH]}")


def main():
    given = arguments()
    events = read(given.file)
    on_gpu = [event for event in events if event.get("cat") in ON_GPU]
    stretches = busy(on_gpu)
    ranges = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "user_annotation":
            ranges[event["name"]].append(event)
    print(f"{'range':<14}{'count':>7}{'ms':>12}{'GPU busy, ms':>14}{'share':>8}")
    for name, found in sorted(ranges.items(), key=lambda item: -sum(event["dur"] for event in item[1])):
        time = sum(event["dur"] for event in found)
        work = sum(worked(stretches, event["ts"], event["ts"] + event["dur"]) for event in found)
        share = f"{100 * work / max(time, 1e-9):.1f} %"
        print(f"{name:<14}{len(found):>7}{time / 1e3:>12.1f}{work / 1e3:>14.1f}{share:>8}")
    total, count = collections.Counter(), collections.Counter()
    for event in on_gpu:
        total[event["name"]] += event["dur"]
        count[event["name"]] += 1
    if on_gpu:
        table("on the GPU", total, count, given.top)
    for category, title in (("cpu_op", "CPU operations"), ("cuda_runtime", "calls of the CUDA runtime")):
        chosen = [event for event in events if event.get("cat") == category]
        if chosen:
            table(title, *self_times(chosen), given.top)


if __name__ == "__main__":
    main()
