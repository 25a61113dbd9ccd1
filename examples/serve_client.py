"""Asks a running server (`seqrec serve RUN`) with Python's standard library: python examples/serve_client.py [URL]."""

import json
import os
import sys
from typing import Any
from urllib.request import Request, urlopen

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
TOKEN = os.environ.get("SEQREC_TOKEN")


def ask(path: str, body: Any = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {TOKEN}"} if TOKEN else {})
    content = None if body is None else json.dumps(body).encode()
    with urlopen(Request(URL + path, content, headers), timeout=10) as answer:
        return json.load(answer)


popular = [item["id"] for item in ask("/v1/items?k=3")["items"]]
for item in ask("/v1/recommend", {"history": popular[:2], "k": 5})["items"]:
    print(item["id"], item["title"] or "", round(item["score"], 2))

# A recorded event changes the next recommendation at once. The event_id makes it safe to send it again.
ask("/v1/events", {"user": "example", "item": popular[2], "event_id": "example-1"})
found = ask("/v1/recommend", {"user": "example", "k": 5})
print(found["used"], found["model_version"])
