"""NIDs, sources and LNet's configuration: what is written is read back, and nothing else is taken."""

import string

from hypothesis import given
from hypothesis import strategies as st

from module_utils import lustre

_LABEL = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
NETWORKS = st.builds(
    lambda kind, number: f"{kind}{number or ''}", st.sampled_from(["tcp", "o2ib", "kfi"]), st.integers(0, 99)
)
ADDRESSES = st.ip_addresses(v=4).map(str) | _LABEL.filter(lambda text: not text.isdigit())
NIDS = st.builds(lustre.Nid, ADDRESSES, NETWORKS)
SOURCES = st.builds(
    lustre.Source,
    st.lists(NIDS, min_size=1, max_size=6, unique=True).map(lambda nids: tuple((nid,) for nid in nids))
    | st.lists(NIDS, min_size=1, max_size=4, unique=True).map(lambda nids: (tuple(nids),)),
    st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8),
    st.just("") | _LABEL.map(lambda name: f"/{name}"),
)
INTERFACES = st.from_regex(r"[a-z][a-z0-9.]{0,9}", fullmatch=True)


@st.composite
def configurations(draw):
    """Configurations of LNet that `lustre.read` can give."""
    names = draw(st.lists(NETWORKS, min_size=1, max_size=4, unique=True))
    tunables = st.dictionaries(st.sampled_from(lustre.TUNABLES), st.integers(0, 9999), max_size=4)
    networks = tuple(
        lustre.Network(
            name,
            tuple(draw(st.lists(INTERFACES, min_size=1, max_size=3, unique=True))),
            tuple(sorted(draw(tunables).items())),
        )
        for name in names
    )
    number = st.none() | st.integers(1, 255)
    routes = draw(
        st.lists(
            st.builds(
                lambda net, address, hop, priority: lustre.Route(net, f"{address}@{names[0]}", hop, priority),
                NETWORKS.filter(lambda name: name not in names),
                st.ip_addresses(v=4),
                number,
                number,
            ),
            max_size=3,
            unique_by=lambda route: route[:2],
        )
    )
    return lustre.Lnet(networks, tuple(routes))


@given(NIDS)
def test_a_nid_is_read_as_it_is_written(nid):
    assert lustre.nid(str(nid)) == nid


@given(SOURCES)
def test_a_source_is_read_as_it_is_written(source):
    assert lustre.source(str(source)) == source and lustre.is_source(str(source))


@given(st.text(string.printable, max_size=60))
def test_any_text_is_a_source_or_refused_by_name(text):
    try:
        source = lustre.source(text)
    except lustre.LustreError as error:
        assert str(error)
    else:
        assert lustre.source(str(source)) == source


@given(configurations())
def test_a_configuration_that_is_written_is_read_back_equal(lnet):
    again = lustre.parse(lustre.render(lnet))
    assert again == lnet and lustre.differences(lnet, again) == []


@given(configurations(), configurations())
def test_no_difference_is_found_only_between_what_is_the_same_where_it_matters(one, other):
    if not lustre.differences(one, other):
        assert {(net.net, frozenset(net.interfaces)) for net in one.networks} == {
            (net.net, frozenset(net.interfaces)) for net in other.networks
        }
        assert {way[:2] for way in one.routes} == {way[:2] for way in other.routes}


@given(st.text("net: -\n\t[]{}\"'#a0(),", max_size=80))
def test_the_reader_of_yaml_takes_or_refuses(text):
    try:
        assert isinstance(lustre.yaml(text), dict)
    except lustre.LustreError as error:
        assert str(error)
