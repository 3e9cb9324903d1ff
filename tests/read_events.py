"""Prints what TensorBoard's own reader finds in the event files of a folder, as JSON in one line.

usage: read_events.py FOLDER [--again]        {tag: [[step, wall time, value], ...], ...}

With --again it goes on reading once its standard input ends, and prints all that it knows then.
"""
import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, SCALARS

# 0: every event, not a sample of them.
events = EventAccumulator(sys.argv[1], size_guidance={SCALARS: 0})


def look():
    events.Reload()
    scalars = {
        tag: [[event.step, event.wall_time, event.value] for event in events.Scalars(tag)]
        for tag in events.Tags()[SCALARS]
    }
    print(json.dumps(scalars), flush=True)


look()
if "--again" in sys.argv:
    sys.stdin.read()
    look()
