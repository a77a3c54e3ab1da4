"""Find the local copy of an artifact on the Hugging Face hub: `hub:ORG/NAME` or `hub:ORG/NAME@REVISION`."""

from pathlib import Path

from mmtune.errors import ModelError

PREFIX = "hub:"


def hub_directory(spec: str) -> Path:
    """Download the files of `hub:ORG/NAME[@REVISION]` into the cache of huggingface_hub, and return their directory.

    Offline (HF_HUB_OFFLINE=1), they must be in the cache. Raises ModelError if that is impossible.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = spec.removeprefix(PREFIX).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise ModelError(f"{spec}: write hub:ORG/NAME or hub:ORG/NAME@REVISION")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except Exception as e:  # the hub's client raises many unrelated exception types
        first = (str(e).strip() or type(e).__name__).split("\n", 1)[0]
        raise ModelError(
            f"{spec}: cannot be downloaded from the hub ({first}); check the name, the network and HF_TOKEN"
        ) from None
