"""The engine itself."""
