"""Numbers with units, as people read them."""


def number(value: float) -> str:
    """Three digits, or all there are before the point."""
    return f"{value:.1f}" if 0 < value < 99.95 and value != int(value) else f"{value:,.0f}"


def duration(seconds: float | None) -> tuple[str, str]:
    """A readable number and its unit."""
    if seconds is None:
        return "–", ""
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return (f"{milliseconds:.1f}" if milliseconds < 9.95 else f"{milliseconds:.0f}"), "ms"
    return (f"{seconds:.2f}" if seconds < 9.995 else f"{seconds:.0f}"), "s"


def spoken(seconds: float) -> str:
    """The two largest units of a time."""
    minutes, hours, days = (int(seconds // unit) for unit in (60, 3600, 86400))
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


def size_in_bytes(size: float) -> str:
    for unit in ("kB", "MB"):
        size /= 1024
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 99.95 else f"{size:.0f} {unit}"
    return f"{size / 1024:.1f} GB"
