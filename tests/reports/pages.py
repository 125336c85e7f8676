"""What must hold of every page and picture: it is well formed, and asks nobody for anything."""

import re
from xml.etree import ElementTree as ET

NAMESPACE = "http://www.w3.org/2000/svg"
HOSTILE = "\"'><script>alert(1)</script><img src=http://evil.example/x>&amp;\\{{7*7}}"
_REQUEST = re.compile(
    r"https?:|//[a-z]|\burl\((?!#)|@import|\bsrc\s*=|\bhref\s*=\s*[\"'](?!#)", re.IGNORECASE
)


def parsed(page: str) -> ET.Element:
    """The page as a tree, which every page is: all that opens is closed, all is escaped."""
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n").encode())


def check(page: str) -> ET.Element:
    """Check a page; returns its tree."""
    tree = parsed(page)
    markup = ET.fromstring(ET.tostring(tree))
    for element in markup.iter():
        name = element.tag.rpartition("}")[2]
        assert name not in {"script", "img", "iframe", "link", "object", "embed", "form"}, name
        if name != "style":
            element.text = None
        element.tail = None
        assert not any(attribute.startswith("on") for attribute in element.attrib)
    rest = ET.tostring(markup).decode().replace(NAMESPACE, "")
    assert not _REQUEST.search(rest), _REQUEST.search(rest)
    return tree


def text_of(tree: ET.Element) -> str:
    """All words of a page, with single blanks."""
    return " ".join(" ".join(tree.itertext()).split())
