"""Answers on disk, by the content of their request: no request is paid for twice, and an interrupted run goes on."""

import hashlib
import json
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.pairs.chat_endpoint import Answer
from mmtune.runtime.files import write_bytes


class AnswerCache:
    """Answers in a directory. A damaged file counts as missing.

    root: the directory; it may be shared by several commands and processes
    address: the endpoint, because two endpoints may call different models by one name
    """

    def __init__(self, root: Path, address: str):
        self.root, self.address = root, address

    def _file(self, body: JsonObject) -> Path:
        key = hashlib.sha256(json.dumps([self.address, body], sort_keys=True).encode()).hexdigest()
        return self.root / key[:2] / f"{key}.json"

    def get(self, body: JsonObject) -> Answer | None:
        """The answer to a request, or None."""
        try:
            document = json.loads(self._file(body).read_bytes())
            return Answer(str(document["answer"]), document["prompt_tokens"], document["completion_tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, body: JsonObject, answer: Answer) -> None:
        """Keep an answer. Neither the request nor the key is written."""
        document = {"answer": answer.text, "prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        write_bytes(self._file(body), json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
