#!/usr/bin/env python3
"""Reads the events files of an entry of the store with TensorBoard itself.

    python -m venv VENV && VENV/bin/pip install tensorboard
    replicate run dijs --watch tensorboard
    VENV/bin/python tests/peers/read_events.py store/KEY-mini-dijs-s0

Prints what TensorBoard found, and compares it with what the run wrote besides:
every tick of metrics.csv and every grid-*.png must be there, and nothing else.
Of the scalars, fd, recall and classes must be equal to the digits of
metrics.csv. The others cannot be: an event has the value of the last step of a
tick, metrics.csv the mean over the tick; of these only the steps are compared.
A run that was begun with another --watch lacks its first ticks, which is an
error here. Exit code 1 if anything is missing or differs.
"""

import csv
import math
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EQUAL = ("fd", "recall", "classes")
# Of the scalars that metrics.csv lacks.
RATE = "images_per_second"


def points(events):
    """Step to event; where a killed run repeated a tick, the repetition."""
    return {event.step: event for event in events}


def steps_wrong(tag, found, expected):
    missing, extra = sorted(expected - found), sorted(found - expected)
    yield from (f"{tag}: no event at {step} images" for step in missing)
    yield from (f"{tag}: an event at {step} images, where nothing was written" for step in extra)


def main(directory):
    with open(directory / "metrics.csv", newline="") as file:
        rows = {int(row["images"]): row for row in csv.DictReader(file)}
    columns = [name for name in next(iter(rows.values())) if name != "images"]
    grids = {int(path.stem.removeprefix("grid-")): path for path in directory.glob("grid-*.png")}
    files = sorted(directory.glob("events.out.tfevents.*"))
    print(f"{len(files)} events files, {len(rows)} lines in metrics.csv, {len(grids)} grids")
    wrong = [] if rows and files else ["there is nothing to compare"]

    # 0: keep all events instead of a sample of them.
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    tags = accumulator.Tags()

    expected = {
        name: {images for images, row in rows.items() if row[name] != ""} for name in columns
    }
    expected[RATE] = {images for images in rows if images > 0}
    for tag in sorted(set(expected) | set(tags["scalars"])):
        events = accumulator.Scalars(tag) if tag in tags["scalars"] else []
        found = points(events)
        wrong += steps_wrong(tag, set(found), expected.get(tag, set()))
        wrong += [f"{tag}: {e.value} at {e.step} images" for e in events if not math.isfinite(e.value)]
        if events:
            print(f"scalar {tag:18} {len(events):4} events, the last {events[-1].value:.6g}"
                  f" at {events[-1].step} images")
        for step in sorted(set(found) & set(rows)) if tag in EQUAL else []:
            written, shown = rows[step][tag], found[step].value
            # Half of the last of four digits, and what a 32-bit float loses.
            if written and not abs(float(written) - shown) <= 5.01e-5 + 1e-7 * abs(shown):
                wrong.append(f"{tag}: {shown:.6f} at {step} images, metrics.csv has {written}")
    wrong += [f"metrics.csv has no column {tag}" for tag in EQUAL if tag not in columns]

    for tag in sorted({"grid"} | set(tags["images"])):
        events = accumulator.Images(tag) if tag in tags["images"] else []
        found = points(events)
        wrong += steps_wrong(tag, set(found), set(grids) if tag == "grid" else set())
        if events:
            sizes = sorted({f"{e.width} x {e.height}" for e in events})
            print(f"image  {tag:18} {len(events):4} events, {', '.join(sizes)} pixels")
        for step in sorted(set(found) & set(grids)):
            image, png = found[step], grids[step].read_bytes()
            if image.encoded_image_string != png:
                wrong.append(f"{tag}: not the bytes of {grids[step].name}")
            # The header of a PNG file has its width and height as big-endian words.
            if (image.width, image.height) != tuple(int.from_bytes(png[at:at + 4]) for at in (16, 20)):
                wrong.append(f"{tag}: {image.width} x {image.height} is not the size of {grids[step].name}")

    for line in wrong:
        print(f"wrong: {line}")
    print("TensorBoard has what the run wrote" if not wrong else f"{len(wrong)} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
