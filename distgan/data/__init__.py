"""Reading datasets: WebDataset shards, the order they are read in, and uint8 minibatches.

WDS_SECURE is set before webdataset is imported anywhere: it refuses shell commands in URLs and code in samples.
"""

import os

os.environ["WDS_SECURE"] = "1"
