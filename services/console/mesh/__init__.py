"""The mesh on one machine: which processes it has, and what keeps them running."""
