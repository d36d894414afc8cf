from __future__ import annotations

from siglip_onnx.system.lru_cache import LRUCache


def test_lru_cache_evicts_what_was_not_used_longest() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    for key, value in (("a", 1), ("b", 2)):
        cache.put(key, value)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]
    cache.put("a", 4)  # replaces the value and counts as use
    cache.put("d", 5)
    assert [cache.get(key) for key in "acd"] == [4, None, 5]
