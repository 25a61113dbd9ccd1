#!/bin/sh
# Asks a running server (`seqrec serve RUN`) with curl: sh examples/serve_client.sh [URL]
set -eu
url=${1:-http://127.0.0.1:8000}
ask() { curl --fail-with-body -sS -H 'Content-Type: application/json' ${SEQREC_TOKEN:+-H "Authorization: Bearer $SEQREC_TOKEN"} "$@"; echo; }

ask "$url/v1/items?k=3"
ask "$url/v1/recommend" -d '{"history": ["i7", "i8"], "k": 5}'
ask "$url/v1/recommend/batch" -d '{"requests": [{"history": ["i7"]}, {"user": "u1"}]}'
ask "$url/v1/events" -d '{"user": "u1", "item": "i9", "event_id": "shell-1"}'
ask "$url/v1/recommend" -d '{"user": "u1", "k": 5, "explain": true}'
