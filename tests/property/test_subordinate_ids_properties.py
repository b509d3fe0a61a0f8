"""Whatever stands in the files: what is new overlaps nothing, and what was there is there."""

from hypothesis import given
from hypothesis import strategies as st

from module_utils.subordinate_ids import File, SubordinateIDError, parse, plan

owners = st.sampled_from(["alice", "bob", "carol", "1000", "1001"])
lines = st.one_of(
    st.builds(
        "{}{}:{}:{}".format,
        st.sampled_from(["", "", "", "!"]),
        owners,
        st.integers(0, 3000),
        st.integers(0, 300),
    ),
    st.text("# :abc!\x0c\r\t1", max_size=8),
)
texts = st.lists(lines, max_size=6).map("\n".join)
users = st.lists(owners, unique=True, max_size=5)


@given(texts, texts, users, st.lists(st.integers(0, 3000), max_size=3), st.booleans())
def test_nothing_new_overlaps_and_nothing_foreign_is_lost(subuid, subgid, wanted, reserved, replace):
    files = (File("subuid", subuid, tuple(reserved)), File("subgid", subgid))
    options = {"start": 100, "count": 100, "replace": replace}
    try:
        result = plan(wanted, files, **options)
    except SubordinateIDError as error:
        assert str(error)
        return
    for file, text in zip(files, result.texts, strict=True):
        before = {(r.owner, r.start, r.count, r.disabled) for r in parse(file.text)}
        after = {(r.owner, r.start, r.count, r.disabled) for r in parse(text)}
        assert all(any(r[0] == user and r[2] >= 100 and not r[3] for r in after) for user in wanted)
        for owner, start, count, _ in after - before:
            assert owner in wanted and count == 100 and start >= 100
            assert not any(start <= number < start + count for number in file.reserved)
            for other in after - {(owner, start, count, False)}:
                assert other[1] >= start + count or other[1] + other[2] <= start or not other[2]
        gone = before - after
        assert not gone if not replace else all(r[0] in wanted for r in gone)
        kept = [line for line in file.text.split("\n") if line.lstrip("!").split(":")[0] not in wanted]
        assert text.split("\n")[: len(kept)] == kept or replace or text.startswith(file.text)
    # The second time there is nothing to do.
    again = plan(wanted, (File("u", result.texts[0], tuple(reserved)), File("g", result.texts[1])), **options)
    assert again.texts == result.texts and not again.assigned
