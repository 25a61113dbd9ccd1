"""Logs in, tables out: every file format that is read or written."""
