"""One parser of sizes for the command line and the recipe."""

import pytest

from mmtune.runtime.sizes import parse_size


def test_sizes_are_numbers_of_bytes():
    assert (parse_size("256MB"), parse_size("1.5 kib"), parse_size(77)) == (256_000_000, 1536, 77)
    assert parse_size(0, minimum=0) == parse_size("0 GB", minimum=0) == 0


@pytest.mark.parametrize("bad", ["0", "big", "-1MB", "3 XB", "", "1.2.3MB"])
def test_what_is_no_size_is_one_line(bad):
    with pytest.raises(ValueError, match="not a size.*write for example 256MB or 1GiB"):
        parse_size(bad)
