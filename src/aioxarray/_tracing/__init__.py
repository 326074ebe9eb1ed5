"""Traces: tables, texts, a page and a file of what was recorded."""
