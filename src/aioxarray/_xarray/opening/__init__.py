"""Opening: backend engines, prefetched metadata, multi-file datasets and notes on errors."""
