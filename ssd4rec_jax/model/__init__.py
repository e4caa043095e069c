"""The SSD4Rec network as Flax NNX modules."""
