"""The modality "text": non-empty strings, stored as UTF-8, without white space at their ends."""

import codecs
import unicodedata
from typing import TYPE_CHECKING

from mmtune.contracts import Augmentation, Modality, Option
from mmtune.errors import RecipeError, Rejected
from mmtune.html.render import render_macro
from mmtune.modalities.perceptual_hash import TEXT_DISTANCE, text_hash
from mmtune.modalities.text_steps import DropWords

if TYPE_CHECKING:
    import PIL.Image

MAX_CHARS = 100_000  # default limit in datasets
THUMBNAIL_CHARS = 240
REQUEST_CHARS = 10_000  # default limit in HTTP requests


class Text(Modality):
    """The modality "text". Its signals are non-empty strings."""

    name = "text"
    extensions = ("txt",)
    columns = ("text", "caption", "title", "description")
    language = True
    inline = True
    json_fields = ("text", "caption")
    augmentations = {
        "drop_words": "mmtune.modalities.text_steps:DropWords",
        "templates": "mmtune.modalities.text_steps:Templates",
        "drop_attributes": "mmtune.modalities.text_steps:DropAttributes",
    }
    near_duplicate_distance = TEXT_DISTANCE
    options = {"max_chars": Option(int, MAX_CHARS, "reject texts longer than this")}
    request_limits = {"max_chars": REQUEST_CHARS}

    def decode(self, data: bytes) -> str:
        try:
            text = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as e:
            raise Rejected(f"not UTF-8 text ({e.reason} at byte {e.start})") from None
        if not text:
            raise Rejected("empty text")
        return text

    def check(self, data: bytes, max_chars: float = MAX_CHARS, **_: float) -> None:
        text = self.decode(data)
        if len(text) > max_chars:
            raise Rejected(f"too long: {len(text)} characters, limit {max_chars} (--max-chars)")
        if "\x00" in text:
            raise Rejected("not a text: it contains NUL characters")

    def coerce(self, value: object) -> str:
        if not isinstance(value, str):
            raise Rejected(f"a text must be a string; got {type(value).__name__}")
        return self.decode(value.encode("utf-8", "replace"))

    def examples(self) -> list[str]:
        return ["a bag", "a photo of a small red bag with white stitches", "a dog on a bench"]

    def accepts(self, value: object) -> bool:
        """Accept any string."""
        return isinstance(value, str)

    def reencode(self, data: bytes) -> tuple[bytes, str]:
        """Convert a text in UTF-16 (with a byte-order mark) or in Windows-1252 to UTF-8.

        Returns the bytes in UTF-8 and a note about the conversion. UTF-8, and bytes that are not a text in any of these
        encodings, are returned unchanged, with the note "".
        """
        try:
            data.decode("utf-8")
            return data, ""
        except UnicodeDecodeError:
            is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            text = data.decode("utf-16" if is_utf16 else "cp1252")
        except UnicodeDecodeError:
            return data, ""
        if any(
            unicodedata.category(c) == "Cc" and not c.isspace() for c in text
        ):  # control characters: binary data, not a text
            return data, ""
        return text.encode(), f"not in UTF-8, read as {'UTF-16' if is_utf16 else 'Windows-1252'}"

    def content_key(self, data: bytes) -> bytes:
        """Normalise the text to composed Unicode (NFC), so that composed and decomposed characters make no difference."""
        return unicodedata.normalize("NFC", self.decode(data)).encode()

    def near_duplicate_key(self, signal: str) -> int | None:
        return text_hash(signal)

    def augment(self, drop_words: float = 0.0, **unknown: object) -> Augmentation:
        """Create an augmentation of texts. Raises RecipeError for an unknown option.

        drop_words: probability with which each word is left out
        """
        if unknown:
            raise RecipeError(f"augment.text.{next(iter(unknown))}: unknown; known: drop_words")
        try:
            return DropWords(drop_words)
        except RecipeError as e:
            raise RecipeError(str(e).replace("probability", "augment.text.drop_words")) from None

    def to_html(self, data: bytes) -> str:
        return render_macro("values.html.j2", "caption", self.decode(data))

    def thumbnail_html(self, data: bytes, label: str = "") -> str:
        """Show the text; if it has more than THUMBNAIL_CHARS characters, only its beginning, up to the end of a word."""
        text = self.decode(data)
        shown = text if len(text) <= THUMBNAIL_CHARS else text[:THUMBNAIL_CHARS].rsplit(maxsplit=1)[0] + " ..."
        return render_macro("values.html.j2", "caption", shown, True)

    def chat_part(self, data: bytes) -> dict[str, object]:
        return {"type": "text", "text": self.decode(data)}

    def picture(self, data: bytes, side: int) -> "PIL.Image.Image":
        """Write the beginning of the text in black on white."""
        import textwrap

        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageFont

        size = max(side // 10, 8)
        font, columns, rows = (
            PIL.ImageFont.load_default(size),
            max(int(1.8 * side / size), 8),
            max(int(0.8 * side / size) - 1, 1),
        )
        lines = textwrap.wrap(self.decode(data), columns, max_lines=rows, placeholder=" ...")
        picture = PIL.Image.new("RGB", (side, side), "white")
        PIL.ImageDraw.Draw(picture).multiline_text((3, 3), "\n".join(lines), fill="black", font=font)
        return picture

    def media_type(self, data: bytes) -> str:
        return "text/plain; charset=utf-8"
