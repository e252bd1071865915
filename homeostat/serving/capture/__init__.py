"""Capture: the buffer on the hot path, and the process that writes requests and labels to SQLite."""
