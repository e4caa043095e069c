"""Reading a compiled program: its operations, collectives, memory."""
