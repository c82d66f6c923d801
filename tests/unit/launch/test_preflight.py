import pytest

from launch.preflight import Note, diagnose

STAGES = ["start", "connect to the others", "all_reduce", "all_to_all"]


@pytest.fixture(autouse=True)
def two_ranks_a_node(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")


def notes_of(rank, *, upto, inside=False, error=""):
    """Notes of a rank that left all stages before `upto`, and entered that one if `inside`."""
    place = {"rank": rank, "local_rank": rank % 2, "host": f"n{rank // 2}"}
    notes = []
    for stage in STAGES[: STAGES.index(upto)]:
        notes.append(Note(**place, stage=stage, entered=True))
        if stage != STAGES[0]:
            notes.append(Note(**place, stage=stage, entered=False, seconds=0.1))
    if inside:
        notes.append(Note(**place, stage=upto, entered=True, error=error))
    return notes


def test_a_rank_that_never_starts_is_named_with_the_host_of_its_neighbour():
    notes = [note for rank in (0, 1, 2) for note in notes_of(rank, upto=STAGES[1], inside=True)]
    message = diagnose(notes, 4, STAGES)
    assert "rank 3 (host n1, local rank 1) did not start; 3 of 4 ranks did" in message


def test_a_node_of_which_no_rank_starts_is_named_by_number():
    notes = [note for rank in (0, 1) for note in notes_of(rank, upto=STAGES[1], inside=True)]
    message = diagnose(notes, 4, STAGES)
    assert "rank 2 (node 1, of which no rank answers, local rank 0), rank 3 (node 1" in message


def test_a_rank_that_does_not_enter_what_others_wait_in_is_named():
    notes = [note for rank in (0, 1, 3) for note in notes_of(rank, upto="all_to_all", inside=True)]
    notes += notes_of(2, upto="all_to_all")
    message = diagnose(notes, 4, STAGES)
    assert "rank 2 (host n1, local rank 0) hangs before all_to_all" in message
    assert "Look at its log" in message
    assert "rank 1" not in message


def test_ranks_that_do_not_reach_each_other_are_told_where_to_look():
    notes = [note for rank in range(4) for note in notes_of(rank, upto=STAGES[1], inside=True)]
    message = diagnose(notes, 4, STAGES)
    assert "4 of 4 ranks do not finish connect to the others" in message
    assert "GLOO_SOCKET_IFNAME" in message


def test_what_went_wrong_on_a_rank_is_in_the_message():
    notes = notes_of(0, upto="all_reduce", inside=True)
    notes += notes_of(1, upto="all_reduce", inside=True, error="RuntimeError: sum is 5")
    message = diagnose(notes, 2, STAGES)
    assert "rank 1 (host n0, local rank 1): RuntimeError: sum is 5" in message
