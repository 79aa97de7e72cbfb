"""In 1.3 the number of a salt is found here."""

from tensorrt_llm.flavor import NEW

if not NEW:
    raise ImportError("No module named 'tensorrt_llm.runtime.kv_cache_hash'")

from tensorrt_llm.runtime.hashing import get_cache_salt_id

__all__ = ["get_cache_salt_id"]
