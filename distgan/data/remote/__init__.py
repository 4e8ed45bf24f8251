"""Datasets on a server: shards fetched ahead into a cache folder."""
