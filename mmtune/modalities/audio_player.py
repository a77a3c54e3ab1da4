"""A sound as a small file that browsers play, for pages with hundreds of sounds."""

import io

from mmtune.modalities.sound import Sound

MAX_SECONDS, MAX_BYTES = 5, 24_000
FLAC_RATES = (8000, 24000)  # browsers play no rate below; in a small player nobody misses what lies above
MP3_RATES = (8000, 11025, 12000, 16000)  # rates that MP3 supports


def small_player(sound: Sound) -> tuple[str, bytes, str]:
    """(media subtype, file, note for the listener) of a sound's first MAX_SECONDS, at most about MAX_BYTES."""
    import soundfile

    start = Sound(sound.samples[: sound.rate * MAX_SECONDS], sound.rate)
    cut = f"; plays the first {MAX_SECONDS} s" if sound.seconds > MAX_SECONDS else ""
    low, high = FLAC_RATES
    played, out = start.resampled(min(max(sound.rate, low), high)), io.BytesIO()
    soundfile.write(out, played.samples.clip(-1, 1), played.rate, format="FLAC", subtype="PCM_16")
    if len(out.getvalue()) <= MAX_BYTES:
        return "flac", out.getvalue(), cut
    # Lossless where that is small: a fine crackle may be the difference between two sounds. Otherwise MP3, and the note says so.
    played = start.resampled(max([r for r in MP3_RATES if r <= sound.rate], default=low))
    out = io.BytesIO()
    soundfile.write(out, played.samples.clip(-1, 1), played.rate, format="MP3", subtype="MPEG_LAYER_III")
    coarse = f"{cut or '; plays'} as MP3" + (f", up to {played.rate / 2000:.3g} kHz" if played.rate < sound.rate else "")
    return "mpeg", out.getvalue(), coarse
