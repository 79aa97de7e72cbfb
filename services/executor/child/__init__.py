"""A loaded model in a process of its own: its messages, its socket, and how it looks from the event loop."""
