"""Small plots as SVG, to stand inside a page: matplotlib draws, the page's style gives the colours.

matplotlib rather than a drawing library of our own: ticks, units and layout are its business, it is kept by
many, and `docs/power.svg` needs it anyway. What it writes is made fit for a page here: no fixed size, no
metadata, names of its own for each plot, and colours as variables of the page, for light and dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

from nvmx_fuzz.files import MissingLibraryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]

_SVG: Final = "http://www.w3.org/2000/svg"
_XLINK: Final = "http://www.w3.org/1999/xlink"
_INCHES: Final = (4.4, 2.3)
_FONT_POINTS: Final = 9.5

# matplotlib wants numbers for colours; each stands for a variable of the page.
_VARIABLES: Final = {"#010101": "--ink", "#020202": "--curve", "#030303": "--line"}
_INK, _CURVE, _LINE = _VARIABLES
_UNITS: Final = (
    (2 * 86400.0, 86400.0, "days"),
    (2 * 3600.0, 3600.0, "hours"),
    (300.0, 60.0, "minutes"),
)


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which that many seconds are easy to read: its length, and its name."""
    for least, length, name in _UNITS:
        if seconds >= least:
            return length, name
    return 1.0, "seconds"


def curve(name: str, sessions: Sequence[Points], *, is_rate: bool = False) -> str:
    """Values over seconds of fuzzing, one line a campaign; *name* is unique on the page."""
    end = max((points[-1][0] for points in sessions if points), default=1.0)
    length, unit = time_unit(end)

    def draw(axes: "Axes") -> None:
        for points in sessions:
            xs = [seconds / length for seconds, _value in points]
            ys = [value for _seconds, value in points]
            axes.plot(
                xs,
                ys,
                color=_CURVE,
                linewidth=1.6,
                drawstyle="default" if is_rate else "steps-post",
            )
        axes.set_xlim(0, end / length or 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(unit)

    return _plot(name, draw)


def bars(name: str, counts: Mapping[int, int], label: str) -> str:
    """How often each number occurs."""

    def draw(axes: "Axes") -> None:
        axes.bar(list(counts), list(counts.values()), width=0.85, color=_CURVE, linewidth=0)
        axes.set_xlabel(label)

    return _plot(name, draw)


def _plot(name: str, draw: Any) -> str:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - of the extra "report"
        from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.ticker import MaxNLocator, StrMethodFormatter  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingLibraryError("matplotlib") from None
    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "nvmx-fuzz", "font.size": _FONT_POINTS,
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _LINE,
        "xtick.color": _INK, "ytick.color": _INK, "grid.color": _LINE, "axes.grid": True,
        "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlelocation": "left",
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=_INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        written = io.BytesIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _for_a_page(name, written.getvalue())


def _for_a_page(name: str, svg: bytes) -> str:
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("class", "plot")
    root.set("role", "img")
    title = ET.Element(f"{{{_SVG}}}title")
    title.text = name
    root.insert(0, title)
    prefix = re.sub(r"\W+", "-", name)
    for element in root.iter():
        _rename(element, prefix)
        style = element.get("style")
        if style:
            element.set("style", _with_variables(style))
        elif element.tag == f"{{{_SVG}}}text":
            element.set("style", f"fill: var({_VARIABLES[_INK]})")
    return ET.tostring(root, encoding="unicode")


def _rename(element: ET.Element, prefix: str) -> None:
    """Names are unique in a page, and what refers to them follows."""
    if "id" in element.attrib:
        element.set("id", f"{prefix}-{element.get('id')}")
    link = f"{{{_XLINK}}}href"
    if element.get(link, "").startswith("#"):
        element.set("href", f"#{prefix}-{element.attrib.pop(link)[1:]}")
    clip = element.get("clip-path", "")
    if clip.startswith("url(#"):
        element.set("clip-path", clip.replace("url(#", f"url(#{prefix}-"))


def _with_variables(style: str) -> str:
    for colour, variable in _VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return style
