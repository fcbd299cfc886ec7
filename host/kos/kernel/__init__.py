"""The documented low-level interfaces of the kernel."""
