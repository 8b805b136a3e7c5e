"""Lengths as people write them."""

from __future__ import annotations

import pytest

from ropex.sizes import format_size, parse_size, parse_sizes

K, M = 1024, 1024**2


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("0", 0),
        ("1", 1),
        ("4096", 4096),
        ("4k", 4 * K),
        ("4K", 4 * K),
        ("32k", 32 * K),
        ("1M", M),
        ("1m", M),
        (" 8k\n", 8 * K),
        ("007", 7),
    ],
)
def test_size_is_read(text: str, tokens: int) -> None:
    assert parse_size(text) == tokens


@pytest.mark.parametrize(
    "text",
    ["", " ", "k", "4 k", "4kk", "4g", "4kb", "-4", "+4", "4.5", "1e3", "0x10", "1_000", "1,5"],
)
def test_what_is_not_a_size_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a length; write 4096, 32k or 1M") as refused:
        parse_size(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1000, "1000"),
        (K, "1k"),
        (K + 1, "1025"),
        (1536, "1536"),
        (3 * K, "3k"),
        (M - K, "1023k"),
        (M, "1M"),
        (M + K, "1025k"),
        (3 * M, "3M"),
    ],
)
def test_size_is_written_short(tokens: int, text: str) -> None:
    assert format_size(tokens) == text


@pytest.mark.parametrize("unit", [1, 2, 1000, K, K + 1, 3 * K, M, M + 1])
def test_written_size_reads_back(unit: int) -> None:
    for times in range(1, 40):
        assert parse_size(format_size(unit * times)) == unit * times


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("256", (256,)),
        ("256,1k,4k", (256, K, 4 * K)),
        ("4k, 1k,1024", (K, 4 * K)),
        ("256..4k", (256, 512, K, 2 * K, 4 * K)),
        ("3..20", (3, 6, 12)),
        ("8..8", (8,)),
        ("1k..4k:1k", (K, 2 * K, 3 * K, 4 * K)),
        ("1..10:4", (1, 5, 9)),
        ("4..5:8", (4,)),
        ("6..24,8..9:1,7", (6, 7, 8, 9, 12, 24)),
    ],
)
def test_list_of_sizes_is_read_sorted_and_once_each(text: str, lengths: tuple[int, ...]) -> None:
    assert parse_sizes(text) == lengths


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "4,",
        "4..",
        "..4",
        "8..4",
        "0..4",
        "0..4:1",
        "4..8:",
        "4..8:0",
        "4:8",
        "4...8",
        "4..8..16",
        "4-8",
        "4..8:1:1",
        "many",
    ],
)
def test_what_is_not_a_list_of_sizes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is (not a|no) length|is not a range|has no step"):
        parse_sizes(text)
