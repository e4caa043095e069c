"""The descriptors of stdin, stdout and stderr belong to nothing else."""
import os


def hold_standard_streams() -> None:
    """Open /dev/null for those that are closed, so that no file of a run gets the number to which others print."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
