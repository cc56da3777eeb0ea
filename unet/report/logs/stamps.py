"""Times as the vendors' tools print them, in seconds since 1970."""

from __future__ import annotations

import datetime
import re

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# Tue Aug  2 20:16:52 UTC 2022; hl-smi cuts the year to 202
UNIX = re.compile(r"(\w{3}) +(\w{3}) +(\d{1,2}) +(\d\d):(\d\d):(\d\d)(?: +([A-Z]\w*))?(?: +(\d{1,4}))?$")
# Tue 02 Aug 2022 08:16:52 PM UTC
LONG = re.compile(r"(\w{3}),? +(\d{1,2}) +(\w{3}) +(\d{4}) +(\d\d):(\d\d):(\d\d)(?: +([AP]M))?(?: +([A-Z]\w*))?$")
# 2022/08/02 20:16:52.123
PLAIN = re.compile(r"(\d{4})[/-](\d\d)[/-](\d\d)[ T](\d\d):(\d\d):(\d\d)(\.\d+)?(Z)?$")


def seconds_of(text: str) -> tuple[float, str] | None:
    """(seconds, "UTC" or "local") of a stamp; None where it is none. A local time is taken as if it were in UTC, since
    no tool says its zone."""
    text = text.strip()
    try:
        if found := PLAIN.match(text):
            year, month, day, hour, minute, second = map(int, found.groups()[:6])
            return _moment(year, month, day, hour, minute, second) + float(found[7] or 0), _clock(found[8])
        if found := UNIX.match(text):
            day, month = int(found[3]), _month(found[2])
            year = _year(found[8] or "", month, day, found[1])
            return _moment(year, month, day, *map(int, found.groups()[3:6])), _clock(found[7])
        if found := LONG.match(text):
            hour = int(found[5]) % 12 + (12 if found[8] == "PM" else 0) if found[8] else int(found[5])
            stamp = _moment(int(found[4]), _month(found[3]), int(found[2]), hour, int(found[6]), int(found[7]))
            return stamp, _clock(found[9])
    except ValueError:
        return None
    return None


def _moment(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float:
    return datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.timezone.utc).timestamp()


def _clock(zone: str | None) -> str:
    return "UTC" if zone in ("UTC", "GMT", "Z") else "local"


def _month(word: str) -> int:
    return MONTHS.index(word.lower()) + 1


def _year(digits: str, month: int, day: int, weekday: str) -> int:
    """The year of a stamp whose year was cut: the first of those that begin so whose day of the week is right."""
    if len(digits) == 4:
        return int(digits)
    wanted = DAYS.index(weekday.lower())
    first = int((digits or "20").ljust(4, "0"))
    for year in range(first, first + 10 ** (4 - len(digits or "20"))):
        if datetime.date(year, month, day).weekday() == wanted:
            return year
    raise ValueError("no such day")
