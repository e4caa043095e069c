"""A trained model in forms that other programs use, and the released model's checkpoints as runs."""
