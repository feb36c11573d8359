"""Real media, made and read without codecs.

Owns the WAV, PNG and vectors the simulator answers with, and how long an audio file
and how many pages a document has. Knows no wire format and no knob.

Invariants: everything made is a function of its arguments alone, and playable or
viewable; a length is read from the file's own headers, never guessed from its size.
"""

import base64
import binascii
import hashlib
import io
import math
import struct
import wave
import zlib
from array import array
from functools import lru_cache
from typing import Literal

import pypdf
import pypdf.errors
import tinytag

SAMPLE_RATE = 24_000
CHARACTER_SAMPLES = 1_440  # 60 ms
_AMPLITUDE = 9_000
_FADE_SAMPLES = 120  # Without it every tone begins and ends with a click.


@lru_cache(maxsize=512)
def _tone(pitch: int, samples: int) -> bytes:
    """One tone on a scale of semitones from A3; pitch -1 is silence."""
    if pitch < 0:
        return bytes(2 * samples)
    step = 2 * math.pi * 220.0 * 2 ** (pitch / 12) / SAMPLE_RATE
    wave_form = array("h")
    for index in range(samples):
        fade = min(1.0, index / _FADE_SAMPLES, (samples - index) / _FADE_SAMPLES)
        wave_form.append(round(_AMPLITUDE * fade * math.sin(step * index)))
    return wave_form.tobytes()


def speech_pcm(text: str, speed: float = 1.0) -> bytes:
    """pcm16 mono 24 kHz: a tone of 60 ms / `speed` for each character, silence for spaces."""
    samples = max(1, round(CHARACTER_SAMPLES / speed))
    return b"".join(
        _tone(-1 if character.isspace() else ord(character) % 25, samples) for character in text
    )


def resampled(pcm: bytes, rate: int) -> bytes:
    """pcm16 mono 24 kHz at another rate, by the nearest sample before."""
    if rate == SAMPLE_RATE:
        return pcm
    samples = array("h", pcm)
    count = len(samples) * rate // SAMPLE_RATE
    return array("h", (samples[i * SAMPLE_RATE // rate] for i in range(count))).tobytes()


def g711(pcm: bytes, law: Literal["ulaw", "alaw"]) -> bytes:
    """pcm16 mono in one byte a sample."""
    encode = _ulaw if law == "ulaw" else _alaw
    return bytes(encode(sample) for sample in array("h", pcm))


def _ulaw(sample: int) -> int:
    biased = min(abs(sample), 32_635) + 132
    exponent = biased.bit_length() - 8
    sign = 0x80 if sample < 0 else 0
    return ~(sign | exponent << 4 | biased >> (exponent + 3) & 0x0F) & 0xFF


def _alaw(sample: int) -> int:
    level = (~sample if sample < 0 else sample) >> 4
    if level > 15:
        exponent = level.bit_length() - 4
        level = (level >> (exponent - 1)) - 16 + (exponent << 4)
    return (level | (0 if sample < 0 else 0x80)) ^ 0x55


def wav(pcm: bytes) -> bytes:
    """A complete WAV file of pcm16 mono 24 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(pcm)
    return file.getvalue()


def audio_seconds(data: bytes) -> float | None:
    """The duration of an audio file, or None if it is none that can be read."""
    try:
        with wave.open(io.BytesIO(data)) as reader:
            frame_bytes = reader.getnchannels() * reader.getsampwidth()
            # A streamed WAV claims the largest length there is; it cannot have more
            # frames than there are bytes.
            frames = min(reader.getnframes(), len(data) // frame_bytes)
            return float(frames / reader.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError):
        pass
    try:
        seconds: float | None = tinytag.TinyTag.get(file_obj=io.BytesIO(data), tags=False).duration
    except tinytag.TinyTagException:
        return None
    return seconds


def pdf_pages(data: bytes) -> int | None:
    """The number of pages of a PDF, or None if it cannot be read."""
    try:
        return len(pypdf.PdfReader(io.BytesIO(data)).pages)
    except (pypdf.errors.PyPdfError, ValueError, KeyError, TypeError, RecursionError):
        return None


def data_url_bytes(url: str) -> bytes | None:
    """What a `data:` URL holds, or None if it is none or broken."""
    header, comma, payload = url.partition(",")
    if not comma or not header.startswith("data:") or not header.endswith(";base64"):
        return None
    return base64_bytes(payload)


def base64_bytes(payload: str) -> bytes | None:
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        return None


def png(seed: str, side: int = 16) -> bytes:
    """A square PNG of one colour that follows from `seed`."""
    pixel = hashlib.sha256(seed.encode("utf-8", "replace")).digest()[:3]
    rows = (b"\0" + pixel * side) * side

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def unit_vector(seed: bytes, dimensions: int) -> "array[float]":
    """A vector of length one, the same for the same seed, as float32."""
    raw = array("h", hashlib.shake_256(seed).digest(2 * dimensions))
    length = math.sqrt(sum(part * part for part in raw)) or 1.0
    return array("f", (part / length for part in raw))
