"""The cache that everything is opened through."""

import pytest

from dualtoken_jax.data.cache import Cache


def test_a_cache_keeps_what_fits_and_makes_everything_once():
    made = []
    cache = Cache(10, size_of=int)
    get = lambda value: cache.get(value, lambda: made.append(value) or value)  # noqa: E731
    assert [get(v) for v in (4, 5, 4, 3, 5, 4)] == [4, 5, 4, 3, 5, 4]
    assert made == [4, 5, 3, 5, 4]  # 3 drives out 5, used longest ago; 5 drives out 4, and 4 drives out 3
    assert [get(v) for v in (11, 11, 4)] == [11, 11, 4]  # too large, and kept as long as nothing else comes
    assert made[5:] == [11, 4]


def test_a_cache_tries_again_after_an_error():
    cache, answers = Cache(1), iter([OSError("gone"), 7])

    def make():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(OSError, match="gone"):
        cache.get("a", make)
    assert [cache.get("a", make), cache.get("a", make)] == [7, 7]
