"""The processes of a run: launch, collectives, BatchNorm over all of them."""
