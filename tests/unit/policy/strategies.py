"""Hypothesis strategies for clients, lists and configurations, small enough that they often meet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from relayd.model import Names
from relayd.settings import AllowMode, HostEntry

from .configurations import host


def _v4(number: int) -> IPv4Address:
    return IPv4Address(number)


near4 = st.sampled_from([0, 0x0A000000, 0x7F000001, 0xC0000200, 0xC6336400, 0xFFFFFF00]).flatmap(
    lambda base: st.integers(0, 15).map(lambda offset: _v4(base + offset))
)
near6 = st.sampled_from([0, 0x2001 << 112, 0x20010DB8 << 96, 0xFE80 << 112, 0xFFFF << 32]).flatmap(
    lambda base: st.integers(0, 15).map(lambda offset: IPv6Address(base + offset))
)
addresses = near4 | near6 | st.integers(0, 2**32 - 1).map(_v4) | st.integers(0, 2**128 - 1).map(IPv6Address)
networks = st.tuples(near4, st.integers(0, 32)).map(lambda pair: IPv4Network(pair, strict=False)) | st.tuples(
    near6, st.integers(0, 128)
).map(lambda pair: IPv6Network(pair, strict=False))

labels = st.sampled_from(["a", "b", "corp", "example"])
host_names = st.lists(labels, min_size=1, max_size=4).map(".".join)
entries = networks.map(lambda network: HostEntry(str(network), network)) | st.tuples(
    st.sampled_from(["", "*."]), host_names
).map(lambda pair: host("".join(pair)))
host_lists = st.lists(entries, max_size=8).map(tuple)
names = st.builds(
    Names,
    st.lists(host_names, max_size=2).map(tuple),
    st.lists(host_names, max_size=2).map(tuple),
    st.booleans(),
)
choices = st.tuples(st.sampled_from(AllowMode), host_lists)
