"""ELAN's annotation documents (.eaf, format 3.0): a tier for each label, times in milliseconds."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from urllib.parse import quote
from xml.etree import ElementTree as Xml

from service.exports.marks import Mark, tiers, within

FORMAT = "3.0"
SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
TYPE = "default-lt"

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_eaf(marks: Sequence[Mark], made: datetime | None = None) -> str:
    """The document of one recording, whose marks are in the order of time; its medium is the file of that name."""
    file = PurePosixPath(marks[0].recording).name
    root = Xml.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "sayagain",
            "DATE": (made or datetime.now(UTC)).isoformat(timespec="seconds"),
            "FORMAT": FORMAT,
            "VERSION": FORMAT,
            f"{{{INSTANCE}}}noNamespaceSchemaLocation": SCHEMA,
        },
    )
    header = Xml.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    medium = {"MEDIA_URL": f"./{quote(file)}", "RELATIVE_MEDIA_URL": f"./{quote(file)}"}
    medium["MIME_TYPE"] = mimetypes.guess_type(file)[0] or "audio/*"
    Xml.SubElement(header, "MEDIA_DESCRIPTOR", medium)
    order = Xml.SubElement(root, "TIME_ORDER")
    slots: list[tuple[int, str]] = []
    annotations = 0
    for name, tier in tiers(within(marks)).items():
        parent = Xml.SubElement(root, "TIER", {"LINGUISTIC_TYPE_REF": TYPE, "TIER_ID": _plain(name)})
        for mark in tier:
            annotations += 1
            times = [round(1e3 * second) for second in (mark.start_s, mark.end_s)]
            ends = [f"ts{len(slots) + 1}", f"ts{len(slots) + 2}"]
            slots += zip(times, ends, strict=True)
            about = {"ANNOTATION_ID": f"a{annotations}", "TIME_SLOT_REF1": ends[0], "TIME_SLOT_REF2": ends[1]}
            annotation = Xml.SubElement(Xml.SubElement(parent, "ANNOTATION"), "ALIGNABLE_ANNOTATION", about)
            Xml.SubElement(annotation, "ANNOTATION_VALUE").text = _plain(mark.text)
    for time, slot in sorted(slots):
        Xml.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(time)})
    kind = {"GRAPHIC_REFERENCES": "false", "LINGUISTIC_TYPE_ID": TYPE, "TIME_ALIGNABLE": "true"}
    Xml.SubElement(root, "LINGUISTIC_TYPE", kind)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _plain(text: str) -> str:
    """Without what XML cannot hold."""
    return _NO_XML.sub("\ufffd", text)
