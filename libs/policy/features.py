"""The names of what can be allowed to tenants one by one, or switched off for all. Pure."""

ASKED = ("chat", "grammar", "log_probs", "tools", "session")
"""What a request asks for: a tenant may be held to some of these (Tenant.features)."""
EXTRAS = ("hedging", "shadows", "cascades", "canaries")
"""What routes do."""
SWITCHED = (*ASKED, *EXTRAS)
"""What a kill switch of the kind FEATURE may name."""
