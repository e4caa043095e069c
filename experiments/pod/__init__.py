"""What a train step will cost on a TPU pod, from its compiled program, without the pod."""
