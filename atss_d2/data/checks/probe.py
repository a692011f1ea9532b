"""Looks at one image file: its header, size, mode and rotation, and whether it is whole."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from typing import BinaryIO, NamedTuple

from PIL import Image

_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height
_TAIL = 4096  # bytes at the end of a file that are read and hashed
_EXIF_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


class Probe(NamedTuple):
    """What is known of an image file.

    Args:
        problem: Code of the reason why it cannot be used, see ``KINDS``; "" if it can.
        width: Width in pixels as training reads the image, with EXIF rotation applied; 0 if there
            is a problem. Likewise ``height``.
        height: See ``width``.
        mode: Pillow's mode, such as "RGB", "L" (gray) or "I;16"; "+t" is appended if a palette or
            gray image has transparency.
        orientation: The EXIF orientation; 1 if it has none.
        num_bytes: Size of the file.
        digest: Hash of size and last bytes of the file: different for different content, almost
            always.
        is_decoded: Whether all pixels were decoded.
    """

    problem: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    orientation: int = 1
    num_bytes: int = 0
    digest: int = 0
    is_decoded: bool = False


def probe(path: str, *, full: bool = False) -> Probe:
    """Looks at a file. It never raises.

    Args:
        path: The file.
        full: Decode all pixels. Otherwise only files that seem to be cut off are decoded.
    """
    try:
        status = os.stat(path)
    except PermissionError:
        return Probe("image_forbidden")
    except (OSError, ValueError):  # also names that are too long, or contain a null byte
        return Probe("image_missing")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        return Probe("image_no_file")
    if not status.st_size:
        return Probe("image_empty")
    try:
        with open(path, "rb") as file:
            return _probe(file, status.st_size, full)
    except PermissionError:
        return Probe("image_forbidden")
    except OSError:  # of the disk
        return Probe("image_unreadable", num_bytes=status.st_size)


def _probe(file: BinaryIO, num_bytes: int, full: bool) -> Probe:
    head = file.read(512)
    file.seek(max(num_bytes - _TAIL, 0))
    tail = file.read(_TAIL)
    known = {"num_bytes": num_bytes, "digest": _digest(tail, num_bytes)}
    file.seek(0)
    try:
        with Image.open(file) as image:
            is_whole = _IS_WHOLE.get(image.format, lambda *_: True)(image, file, tail, num_bytes)
            width, height = image.size
            mode = image.mode + ("+t" if "transparency" in image.info else "")
            is_decoded = full or not is_whole
            try:
                if is_decoded:
                    file.seek(0)
                    with Image.open(file) as whole:
                        whole.load()
                orientation = _orientation(image, is_whole)
            except Exception:  # decoders raise any type
                problem = "image_unreadable" if is_whole else "image_truncated"
                return Probe(problem, is_decoded=True, **known)
            if is_whole is None:  # Pillow decodes zeros without complaint
                return Probe("image_truncated", is_decoded=True, **known)
    except Image.DecompressionBombError:
        return Probe("image_bomb", **known)
    except Exception:  # Pillow's codecs raise OSError, SyntaxError, struct.error and others
        return Probe(_not_an_image(head, tail, num_bytes), **known)
    if orientation in _TURNED:
        width, height = height, width
    return Probe("", width, height, mode, orientation, is_decoded=is_decoded, **known)


def _digest(tail: bytes, num_bytes: int) -> int:
    content = hashlib.blake2b(tail + num_bytes.to_bytes(8, "little"), digest_size=8)
    return int.from_bytes(content.digest(), "little", signed=True)


def _not_an_image(head: bytes, tail: bytes, num_bytes: int) -> str:
    is_cut = (
        (head.startswith(b"\xff\xd8\xff") and not tail.endswith(b"\xff\xd9"))
        or (head.startswith(b"\x89PNG") and b"IEND" not in tail)
        or (head[8:12] == b"WEBP" and int.from_bytes(head[4:8], "little") + 8 > num_bytes)
    )
    if is_cut:
        return "image_truncated"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "image_lfs"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"{", b"<error")):
        return "image_html"
    return "image_unreadable"


def _orientation(image: Image.Image, is_whole: bool | None) -> int:
    """Returns the EXIF orientation as the readers of images see it."""
    is_late = image.format == "PNG" and is_whole == _EXIF_IS_LATE
    if not is_late and image.format != "TIFF" and not any(k in image.info for k in _EXIF_KEYS):
        return 1
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged EXIF data raises any type; the pixels are fine
        return 1
    return orientation if orientation in range(1, 9) else 1


# Whether a file is whole, by format: True; False if it seems to be cut off, so that decoding must
# decide; None if it certainly is although Pillow decodes it.


def _is_whole_jpeg(image: Image.Image, file: BinaryIO, tail: bytes, num_bytes: int) -> bool | None:
    stripped = tail.rstrip(b"\0\r\n ")
    if not stripped and num_bytes > _TAIL:  # padding of a camera, or an unfinished download
        file.seek(0)
        return True if file.read().rstrip(b"\0").endswith(b"\xff\xd9") else None
    return stripped.endswith(b"\xff\xd9")


_EXIF_IS_LATE = 2  # true, and EXIF data come after the pixels, which Pillow must decode to see them
_PNG_CHUNK = re.compile(rb"[A-Za-z]{4}")
_PNG_EXIF = (b"Raw profile type exif", b"XML:com.adobe.xmp")


def _is_whole_png(image: Image.Image, file: BinaryIO, tail: bytes, num_bytes: int) -> int:
    place, is_late, is_after_pixels = 8, False, False
    while place + 12 <= num_bytes:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        if not _PNG_CHUNK.fullmatch(name):
            return False
        if is_after_pixels and name in (b"eXIf", b"zTXt", b"tEXt", b"iTXt"):
            is_late |= name == b"eXIf" or file.read(21).startswith(_PNG_EXIF)
        is_after_pixels |= name == b"IDAT"
        place += length + 12
        if name == b"IEND":
            return _EXIF_IS_LATE if is_late else True
    return False


def _is_whole_webp(image: Image.Image, file: BinaryIO, tail: bytes, num_bytes: int) -> bool:
    file.seek(4)
    return int.from_bytes(file.read(4), "little") + 8 <= num_bytes


def _is_whole_bmp(image: Image.Image, file: BinaryIO, tail: bytes, num_bytes: int) -> bool:
    file.seek(2)
    return int.from_bytes(file.read(4), "little") <= num_bytes


def _is_whole_gif(image: Image.Image, file: BinaryIO, tail: bytes, num_bytes: int) -> bool:
    return tail.rstrip(b"\0").endswith(b";")


def _is_whole_tiff(image: Image.Image, file: BinaryIO, tail: bytes, num_bytes: int) -> bool:
    tags = image.tag_v2
    ends = [
        start + length
        for starts, lengths in ((273, 279), (324, 325))  # of strips, of tiles
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()))
    ]
    return max(ends, default=0) <= num_bytes


def _is_whole_ppm(image: Image.Image, file: BinaryIO, tail: bytes, num_bytes: int) -> bool:
    file.seek(0)
    if file.read(2) not in (b"P5", b"P6"):  # text, or one bit a pixel
        return False
    return num_bytes > image.width * image.height * len(image.getbands())


_IS_WHOLE = {
    "JPEG": _is_whole_jpeg,
    "MPO": _is_whole_jpeg,
    "PNG": _is_whole_png,
    "WEBP": _is_whole_webp,
    "BMP": _is_whole_bmp,
    "GIF": _is_whole_gif,
    "TIFF": _is_whole_tiff,
    "PPM": _is_whole_ppm,
}
