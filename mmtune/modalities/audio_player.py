"""Convert sounds to small files that browsers can play, for pages with hundreds of sounds."""

import io

from mmtune.modalities.sound import Sound

MAX_SECONDS, MAX_BYTES = 5, 24_000
FLAC_RATES = (8000, 24000)  # lowest rate that browsers play; highest rate used, which is enough for a small player
MP3_RATES = (8000, 11025, 12000, 16000)  # rates that MP3 supports


def small_player(sound: Sound) -> tuple[str, bytes, str]:
    """Convert the first MAX_SECONDS of a sound to a file of at most about MAX_BYTES.

    Returns the subtype of its media type, the content of the file, and a note for the listener about what was changed ("" if
    nothing was).
    """
    import soundfile

    start = Sound(sound.samples[: sound.rate * MAX_SECONDS], sound.rate)
    cut = f"; plays the first {MAX_SECONDS} s" if sound.seconds > MAX_SECONDS else ""
    low, high = FLAC_RATES
    played, out = start.resampled(min(max(sound.rate, low), high)), io.BytesIO()
    soundfile.write(out, played.samples.clip(-1, 1), played.rate, format="FLAC", subtype="PCM_16")
    if len(out.getvalue()) <= MAX_BYTES:
        return "flac", out.getvalue(), cut
    # The lossless file is too large. It is preferred where possible, because sounds can differ in fine details such as crackle.
    played = start.resampled(max([r for r in MP3_RATES if r <= sound.rate], default=low))
    out = io.BytesIO()
    soundfile.write(out, played.samples.clip(-1, 1), played.rate, format="MP3", subtype="MPEG_LAYER_III")
    coarse = f"{cut or '; plays'} as MP3" + (f", up to {played.rate / 2000:.3g} kHz" if played.rate < sound.rate else "")
    return "mpeg", out.getvalue(), coarse
