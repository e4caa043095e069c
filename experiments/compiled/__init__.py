"""Reading a compiled program: its operations, its collectives and its memory traffic."""
