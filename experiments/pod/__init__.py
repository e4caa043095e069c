"""The cost of a train step on a TPU pod, read from its compiled program, without the pod."""
