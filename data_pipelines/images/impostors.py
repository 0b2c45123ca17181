"""Files that are not what their name says, called by what they are."""

_BY_START = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file: run `git lfs pull`"),
    (b"\x1f\x8b", "compressed by gzip: unpack it with `gunzip`"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it with `unzstd`"),
    (b"\xfd7zXZ\x00", "compressed by xz: unpack it with `unxz`"),
    (b"BZh", "compressed by bzip2: unpack it with `bunzip2`"),
    (b"\x04\x22\x4d\x18", "compressed by lz4: unpack it with `unlz4`"),
    (b"\x5d\x00\x00", "compressed by lzma: unpack it with `unlzma`"),
    (b"\x1f\x9d", "compressed by compress: unpack it with `gunzip`"),
    (b"LZIP", "compressed by lzip: unpack it with `lunzip`"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"07070", "a cpio archive: write its files as a tar"),
    (b"\xc7\x71", "a cpio archive: write its files as a tar"),
    (b"!<arch>", "an ar archive: write its files as a tar"),
    (b"xar!", "a xar archive: unpack it"),
    (b"WARC/", "a web archive (WARC): write its images as files"),
    (b"#!", "a script"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89HDF", "an HDF5 file"),
    (b"ARROW1", "an Arrow file"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"II+\x00", "a TIFF image"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF file"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1", b"heim", b"heis")
_TAR_MAGIC_AT = 257


def what_it_is(head: bytes) -> str | None:
    """What a file is that begins with these bytes (512 are enough); None if unknown."""
    for start, name in _BY_START:
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"avif", b"avis"):
            return "an AVIF image"
        return "a HEIF image" if head[8:12] in _HEIF_BRANDS else "a video"
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return "a tar archive"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, as a failed download leaves: download it again"
    if text.startswith((b"<svg", b"<?xml")):
        return "an SVG image" if b"<svg" in text else "an XML text, such as an error of a store"
    if text.startswith((b"{", b"[")):
        return "JSON text"
    if head and not any(head):
        return "nothing but zeros, as an interrupted download leaves: download it again"
    return None


def name_impostor(head: bytes) -> str:
    """` (it is ...)` for messages; empty where the kind of file is unknown."""
    found = what_it_is(head)
    return f" (it is {found})" if found else ""
