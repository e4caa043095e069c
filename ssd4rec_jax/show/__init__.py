"""What people see: text on its way out, the terminal of a run, frames in the library that they use."""
