"""Reads what pollvisor-bench wrote, with HdrHistogram's own package: readers.py SCHEMA FOLDER."""
import base64
import datetime
import json
import pathlib
import sys

import jsonschema
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

schema, folder = map(pathlib.Path, sys.argv[1:])
document = json.loads((folder / "out.json").read_text())
schema = json.loads(schema.read_text())
jsonschema.Draft202012Validator.check_schema(schema)
jsonschema.Draft202012Validator(schema).validate(document)


def name(path):
    load = path["load"]
    tail = "" if load["kind"] == "closed" else f"-open_{load['per_second']:.0f}_{load['schedule']}"
    return f"{path['path']}-{path['vectors']}{tail}"


expected = {}
for path in document["paths"]:
    stages = dict(path["stages"], uncorrected=path.get("uncorrected"), gaps=path.get("gaps"))
    expected.update({(name(path), key): stage for key, stage in stages.items() if stage})

reader = HistogramLogReader(str(folder / "out.hlog"), HdrHistogram(1, 10_000_000_000, 3))
began = datetime.datetime.fromisoformat(document["began"].replace("Z", "+00:00")).timestamp()
seen = set()
while histogram := reader.get_next_interval_histogram():
    key = tuple(histogram.get_tag().split(":"))
    stage = expected[key]
    assert key not in seen, key
    seen.add(key)
    assert histogram.get_total_count() == stage["count"], key
    for percentile, field in [(50, "p50_ns"), (90, "p90_ns"), (99, "p99_ns"), (99.9, "p999_ns"), (100, "max_ns")]:
        value = histogram.get_value_at_percentile(percentile)
        # Both are exact to the histogram's three digits, and may round to either side of them.
        assert abs(value - stage[field]) <= 1 + stage[field] / 500, (key, percentile, value, stage[field])
    assert abs(histogram.get_start_time_stamp() - began * 1000) < 1, histogram.get_start_time_stamp()
    length = histogram.get_end_time_stamp() - histogram.get_start_time_stamp()
    assert abs(length - document["seconds"] * 1000) < 2, length
    encoded = HdrHistogram.decode(stage["histogram"])
    assert encoded.get_total_count() == stage["count"], key

    # The text that the plotter reads, against the same histogram.
    lines = (folder / "hgrm" / f"{key[0]}-{key[1]}.hgrm").read_text().splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"], lines[0]
    rows = [list(map(float, line.split())) for line in lines[2:] if not line.startswith("#")]
    for value, share, *_ in rows:
        # Where a percentile falls on a sample exactly, rounding may take the next one.
        most = min(100, (share + 1 / stage["count"]) * 100)
        least, most = (histogram.get_value_at_percentile(at) / 1000 for at in (share * 100, most))
        assert least * 0.998 - 0.002 <= value <= most * 1.002 + 0.002, (key, share, value, least, most)
    assert rows[-1][1:] == [1.0, stage["count"]], (key, rows[-1])
assert seen == set(expected), set(expected) - seen
assert abs(reader.get_start_time_sec() - began) < 0.001, reader.get_start_time_sec()
assert base64.b64decode(next(iter(expected.values()))["histogram"])[:4] == b"\x1c\x84\x93\x14", "the V2 deflate cookie"
print(f"{len(seen)} histograms agree; the JSON is as its schema says")
