"""vLLM, in a child process and, where need be, in an environment of its own."""
