"""Nothing from data reaches the terminal raw."""

from mmtune.cli.printable import printable


def test_control_characters_are_shown_as_escapes():
    assert printable("a\x1b[2J\r\nb\u202e\u2028c\x9b") == "a\\x1b[2J\\r\\nb\\u202e\\u2028c\\x9b"
    assert printable("a\x1bb\nc\td", lines=True) == "a\\x1bb\nc\td"
    for harmless in ("plain", "Größe 靴 👩\u200d🔬", "می\u200cخواهم"):
        assert printable(harmless) == harmless
