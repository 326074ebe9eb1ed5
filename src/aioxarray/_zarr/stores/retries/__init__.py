"""Retries: which errors may pass, and when a request is made again."""
