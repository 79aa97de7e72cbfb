"""`headrace drill`: a controlled load test that drives a tier down its degradation ladder, rung by rung."""
