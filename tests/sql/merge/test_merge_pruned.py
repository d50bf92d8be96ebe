"""What was merged goes with the commands that it was made of."""

from __future__ import annotations

import pytest
from support import merging
from support.database import Database

_PLANNED = "SELECT array_agg(DISTINCT seq ORDER BY seq) FROM inturn.merge_plan WHERE key = 'a'"


@pytest.mark.parametrize("forget", [False, True], ids=["cut", "forgotten"])
def test_a_merge_goes_with_its_commands_and_verify_stays_clean(database: Database, forget: bool) -> None:
    merging.open_orders(database)
    merging.append(database, "a", "insert", "update", "note", "insert", "delete")
    database.execute("CALL inturn.apply()")
    assert database.value(_PLANNED) == [1, 2, 4, 5]
    if forget:
        database.execute("SELECT inturn.set_topic('orders', retain => '1 us', forget_idle_after => '1 us')")
    database.execute("CALL inturn.prune('orders', older_than => '0')")
    assert merging.violations(database) == []
    assert database.value(_PLANNED) is None
    assert database.value("SELECT count(*) FROM inturn.key_sequence") == (0 if forget else 1)
    assert database.value("SELECT count(*) FROM inturn.command_log") == 0
