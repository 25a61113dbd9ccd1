"""Serves a run: the HTTP app, the event store, micro-batching and the web page."""
