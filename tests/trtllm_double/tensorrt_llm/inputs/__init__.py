"""In 1.2 the number of a salt is found here."""

from tensorrt_llm.flavor import NEW

if not NEW:
    from tensorrt_llm.runtime.hashing import get_cache_salt_id

    __all__ = ["get_cache_salt_id"]
