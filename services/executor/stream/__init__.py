"""Every work a stream of its own: for engines that answer so, far away or in the same process (docs/engines.md)."""
