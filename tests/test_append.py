"""append, by SQL."""

from support.database import Database


def test_seq_counts_from_one_in_every_key(witness: Database) -> None:
    append = "SELECT inturn.append('orders', %s, 'insert')"
    assert [witness.value(append, [key]) for key in ("a", "b", "a")] == [1, 1, 2]
    a, b = witness.session(), witness.session()
    a.execute(append, ["a"])
    f = b.begin(append, ["a"])
    assert b.wait_blocked() == [a.pid]
    a.rollback()
    assert f.result() == [(3,)]
    b.commit()
    witness.execute("CALL inturn.apply()")
    assert witness.execute("select key,seq from app.witness where key='a' order by id") == [
        ("a", 1),
        ("a", 2),
        ("a", 3),
    ]
