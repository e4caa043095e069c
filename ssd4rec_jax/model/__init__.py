"""The networks: SSD4Rec as Flax NNX modules, and the registry in which another network takes its place."""
