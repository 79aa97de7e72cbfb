"""What requests are about: a small embedding model and a linear classifier, in process.

examples ─▶ training: texts become vectors (embedder), vectors become a classifier ─▶ stored: one small file
a text   ─▶ intents: a cache, else one thread with a short queue ─▶ model: its vector, then its intent, or ""
"""
