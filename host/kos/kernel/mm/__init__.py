"""The kernel's memory management, as calls."""
