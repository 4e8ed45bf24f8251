"""Data: WebDataset shards, the order they are read in, and the uint8 minibatches that come out.

WDS_SECURE stands before webdataset is imported anywhere: it refuses shells in addresses and code in samples.
"""

import os

from distgan import Failed

os.environ["WDS_SECURE"] = "1"


class Damaged(Failed):
    """Bytes of a shard are not what was written. Names the shard, and the key and offset where there is one."""
