"""Recommend after some items with a file that ``seqrec export RUN --onnx FILE --top-k 10`` wrote."""

import json
import sys

import numpy as np
import onnxruntime

file, *history = sys.argv[1:]
with open(f"{file}.ids.json", encoding="utf-8") as opened:
    ids = json.load(opened)["items"]
index = {str(item): place for place, item in enumerate(ids)}
items = np.array([[index.get(item, 0) for item in history]], dtype=np.int64)  # 0 for an unknown item
session = onnxruntime.InferenceSession(file)
given = {"items": items}
for one in session.get_inputs():  # some models know users or times as well
    if one.name == "users":
        given["users"] = np.array([-1])  # somebody unknown
    elif one.name == "timestamps":
        given["timestamps"] = np.arange(len(history))[None]  # give the real times in seconds if the log has times
best, scores = session.run(["top_items", "top_scores"], given)
for item, score in zip(best[0], scores[0], strict=True):
    print(ids[item], round(float(score), 4))
