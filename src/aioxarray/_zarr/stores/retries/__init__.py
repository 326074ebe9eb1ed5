"""Requests that fail or are not answered: which errors may pass, and when one is made again."""
