"""TLSA records and the certificates that they vouch for."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

import pytest
from cryptography import x509

from relayd.delivery.tlsa import fault, usable
from relayd.model import Tlsa
from tests.lab.ca import LabCA
from tests.lab.tlsa import record

HOST = "mx.dest.example"
NOW = time.time()


class Chains:
    """A root, a CA below it, and hosts below that."""

    def __init__(self, directory: Path) -> None:
        self.root_ca = LabCA(directory / "root", "root")
        self.middle_ca = LabCA(directory / "middle", "middle", issuer=self.root_ca)
        self.root, self.middle = map(_loaded, (self.root_ca, self.middle_ca))
        self.host = self.leaf(HOST)
        self.stranger = LabCA(directory / "stranger", "stranger").leaf(HOST).certificate

    def leaf(self, *names: str, days: int = 90) -> x509.Certificate:
        return self.middle_ca.leaf(*names, days=days).certificate

    @property
    def sent(self) -> list[x509.Certificate]:
        return [self.host, self.middle, self.root]


def _loaded(ca: LabCA) -> x509.Certificate:
    return x509.load_pem_x509_certificate(ca.path.read_bytes())


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Chains:
    return Chains(tmp_path_factory.mktemp("chains"))


def tlsa(usage: int, selector: int, matching: int, certificate: x509.Certificate) -> Tlsa:
    return Tlsa(usage, selector, matching, record(selector, matching, certificate))


class TestUsable:
    @pytest.mark.parametrize(("selector", "matching"), list(product((0, 1), (0, 1, 2))))
    def test_what_smtp_uses(self, chains: Chains, selector: int, matching: int) -> None:
        for usage in range(5):
            one = tlsa(usage, selector, matching, chains.host)
            assert usable([one]) == ((one,) if usage in (2, 3) else ())

    @pytest.mark.parametrize(
        "one",
        [
            Tlsa(3, 2, 1, b"x" * 32),
            Tlsa(3, 1, 3, b"x" * 32),
            Tlsa(3, 1, 1, b"x" * 31),
            Tlsa(3, 1, 2, b"x" * 32),
            Tlsa(3, 0, 0, b"no certificate"),
            Tlsa(2, 0, 0, b""),
            Tlsa(3, 1, 0, b""),
        ],
    )
    def test_what_says_nothing(self, one: Tlsa) -> None:
        assert usable([one]) == ()


class TestTheHostsOwn:
    @pytest.mark.parametrize(("selector", "matching"), list(product((0, 1), (0, 1, 2))))
    def test_each_form(self, chains: Chains, selector: int, matching: int) -> None:
        assert fault([tlsa(3, selector, matching, chains.host)], chains.sent, [HOST], NOW) == ""
        assert fault([tlsa(3, selector, matching, chains.host)], [chains.host], [HOST], NOW) == ""
        assert "matches no TLSA" in fault([tlsa(3, selector, matching, chains.stranger)], chains.sent, [HOST], NOW)

    def test_names_and_dates_do_not_matter(self, chains: Chains) -> None:
        """RFC 7672 3.1.1"""
        old = chains.leaf("other.example", days=-1)
        assert fault([tlsa(3, 1, 1, old)], [old], [HOST], NOW) == ""

    def test_a_ca_of_the_chain_is_not_it(self, chains: Chains) -> None:
        assert fault([tlsa(3, 1, 1, chains.middle)], chains.sent, [HOST], NOW)

    def test_one_of_several(self, chains: Chains) -> None:
        """A key that is about to be replaced, or was."""
        assert fault([tlsa(3, 1, 1, chains.stranger), tlsa(3, 1, 1, chains.host)], chains.sent, [HOST], NOW) == ""

    def test_the_weaker_digest_does_not_count_beside_the_stronger(self, chains: Chains) -> None:
        """RFC 7671 9"""
        right, wrong = tlsa(3, 1, 1, chains.host), tlsa(3, 1, 2, chains.stranger)
        assert fault([right, wrong], chains.sent, [HOST], NOW)
        assert fault([right, tlsa(3, 0, 2, chains.stranger)], chains.sent, [HOST], NOW) == ""  # another selector
        assert fault([tlsa(3, 1, 0, chains.host), wrong], chains.sent, [HOST], NOW) == ""  # whole ones always count

    def test_nothing_shown(self, chains: Chains) -> None:
        assert fault([tlsa(3, 1, 1, chains.host)], [], [HOST], NOW) == "no certificate was shown"


class TestACa:
    @pytest.mark.parametrize(("selector", "matching"), list(product((0, 1), (0, 1, 2))))
    @pytest.mark.parametrize("which", ["root", "middle"])
    def test_each_form(self, chains: Chains, which: str, selector: int, matching: int) -> None:
        anchor = getattr(chains, which)
        assert fault([tlsa(2, selector, matching, anchor)], chains.sent, [HOST], NOW) == ""

    def test_that_is_not_sent_must_stand_whole_in_the_record(self, chains: Chains) -> None:
        sent = [chains.host, chains.middle]
        assert fault([tlsa(2, 0, 0, chains.root)], sent, [HOST], NOW) == ""
        assert fault([tlsa(2, 0, 1, chains.root)], sent, [HOST], NOW)

    def test_a_name_of_the_certificate(self, chains: Chains) -> None:
        """RFC 7672 3.2.2: the host's, or the domain's that mail goes to."""
        records = [tlsa(2, 0, 1, chains.middle)]
        other = chains.leaf("dest.example")
        assert "not for mx.dest.example" in fault(records, [other, chains.middle], [HOST], NOW)
        assert fault(records, [other, chains.middle], [HOST, "dest.example"], NOW) == ""
        wild = chains.leaf("*.dest.example")
        assert fault(records, [wild, chains.middle], [HOST], NOW) == ""

    def test_dates_matter(self, chains: Chains) -> None:
        old = chains.leaf(HOST, days=-1)
        assert "expired" in fault([tlsa(2, 0, 1, chains.middle)], [old, chains.middle], [HOST], NOW)

    def test_one_that_signed_nothing_here(self, chains: Chains) -> None:
        """Whoever sends the CA's certificate along with one of his own has not its signature."""
        assert fault([tlsa(2, 0, 1, chains.middle)], [chains.stranger, chains.middle], [HOST], NOW)

    def test_a_host_is_no_ca(self, chains: Chains, tmp_path: Path) -> None:
        leaf = chains.middle_ca.leaf("customer.example", filename="customer")
        forger = LabCA.of(tmp_path, leaf)
        forged = forger.leaf(HOST, filename="forged").certificate
        sent = [forged, leaf.certificate, chains.middle]
        assert fault([tlsa(2, 0, 1, chains.middle)], sent, [HOST], NOW)

    def test_the_own_certificate_is_no_ca(self, chains: Chains) -> None:
        assert fault([tlsa(2, 0, 1, chains.host)], chains.sent, [HOST], NOW)
