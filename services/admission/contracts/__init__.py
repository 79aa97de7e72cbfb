"""Contracts: what a request may cite, and admission then enforces (docs/contracts.md)."""
