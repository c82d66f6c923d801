import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trainer.stored_checkpoint import write_checkpoint
from trainer.reshard import fill
from trainer.state_parts import Box, Part
from trainer.stored_state import CheckpointError, StoredState

ROWS, COLUMNS = 13, 12


@st.composite
def cuts(draw, length):
    """Borders of consecutive pieces."""
    inside = draw(st.sets(st.integers(1, length - 1), max_size=4))
    return [0, *sorted(inside), length]


@st.composite
def grids(draw):
    """Boxes that make up a table; columns may be cut otherwise in each stripe of rows."""
    rows = draw(cuts(ROWS))
    boxes = []
    for top, bottom in itertools.pairwise(rows):
        columns = draw(cuts(COLUMNS))
        for left, right in itertools.pairwise(columns):
            boxes.append(Box((top, left), (bottom - top, right - left)))
    return boxes


def stored(tmp_path_factory, boxes, values, per_row):
    """A checkpoint whose boxes hold `values` (ROWS, COLUMNS); constant in each box by row."""
    chunks = []
    for rank, box in enumerate(boxes):
        part = values[box.inside(Box.whole(values.shape))]
        chunks.append((rank % 3, box.offsets, box.sizes, part[:, 0] if per_row else part))
    folder = tmp_path_factory.mktemp("stored") / "step_0000000001"
    path = write_checkpoint(folder, {"table/t/state/sum": ((ROWS, COLUMNS), per_row, chunks)})
    return StoredState(path)


def filled(source, boxes, per_row):
    """What each target box gets, (box, values)."""
    found = []
    for box in boxes:
        sizes = box.sizes[:1] if per_row else box.sizes
        memory = torch.full(sizes, float("nan"))
        part = Part("table/t/state/sum", (ROWS, COLUMNS), box, memory, per_row=per_row)
        fill(part, source.tensors[part.name], source)
        found.append((box, memory))
    return found


def expanded(boxes, generator):
    """(ROWS, COLUMNS), in each box one random value a row."""
    values = torch.empty(ROWS, COLUMNS)
    for box in boxes:
        at = box.inside(Box.whole(values.shape))
        values[at] = torch.rand(box.sizes[0], 1, generator=generator)
    return values


@settings(max_examples=60, deadline=None)
@given(source=grids(), target=grids(), seed=st.integers(0, 1000))
def test_elements_are_moved_bit_for_bit(tmp_path_factory, source, target, seed):
    values = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    checkpoint = stored(tmp_path_factory, source, values, per_row=False)
    for box, memory in filled(checkpoint, target, per_row=False):
        assert torch.equal(memory, values[box.inside(Box.whole(values.shape))])


@settings(max_examples=60, deadline=None)
@given(source=grids(), target=grids(), seed=st.integers(0, 1000))
def test_row_wise_state_is_the_mean_over_the_targets_columns(
    tmp_path_factory, source, target, seed
):
    values = expanded(source, torch.Generator().manual_seed(seed))
    checkpoint = stored(tmp_path_factory, source, values, per_row=True)
    for box, memory in filled(checkpoint, target, per_row=True):
        expected = values[box.inside(Box.whole(values.shape))].double().mean(dim=1)
        torch.testing.assert_close(memory.double(), expected, atol=0, rtol=1e-7)
    for box, memory in filled(checkpoint, source, per_row=True):
        assert torch.equal(memory, values[box.inside(Box.whole(values.shape))][:, 0])


@settings(max_examples=30, deadline=None)
@given(target=grids(), seed=st.integers(0, 1000))
def test_splitting_then_joining_gives_back_what_was_there(tmp_path_factory, target, seed):
    one = [Box((0, 0), (ROWS, COLUMNS))]
    values = expanded(one, torch.Generator().manual_seed(seed))
    split = stored(tmp_path_factory, one, values, per_row=True)
    middle = torch.empty(ROWS, COLUMNS)
    for box, memory in filled(split, target, per_row=True):
        middle[box.inside(Box.whole(middle.shape))] = memory[:, None]
    [(_, back)] = filled(stored(tmp_path_factory, target, middle, per_row=True), one, per_row=True)
    assert torch.equal(back, values[:, 0])


def test_joined_shards_hold_what_the_wide_shard_would_have_collected(tmp_path_factory):
    """Row-wise Adagrad on the same gradients: two narrow shards joined equal one wide one."""
    gradients = torch.randn(5, ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    narrow = [Box((0, 0), (ROWS, 4)), Box((0, 4), (ROWS, 8))]
    values = torch.empty(ROWS, COLUMNS)
    for box in narrow:
        at = box.inside(Box.whole(values.shape))
        values[at] = (gradients[:, at[0], at[1]] ** 2).mean(dim=2).sum(dim=0)[:, None]
    wide = (gradients**2).mean(dim=2).sum(dim=0)
    source = stored(tmp_path_factory, narrow, values, per_row=True)
    [(_, joined)] = filled(source, [Box((0, 0), (ROWS, COLUMNS))], per_row=True)
    torch.testing.assert_close(joined, wide, atol=0, rtol=1e-6)


def test_split_shards_take_the_same_next_step(tmp_path_factory):
    whole = [Box((0, 0), (ROWS, COLUMNS))]
    values = expanded(whole, torch.Generator().manual_seed(0))
    source = stored(tmp_path_factory, whole, values, per_row=True)
    for _, memory in filled(source, [Box((0, c), (ROWS, 4)) for c in (0, 4, 8)], per_row=True):
        assert torch.equal(memory, values[:, 0])


def test_large_boxes_are_read_in_blocks_of_rows(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("trainer.reshard._BLOCK_BYTES", 3 * COLUMNS * 4)
    values = torch.rand(ROWS, COLUMNS)
    box = Box((0, 0), (ROWS, COLUMNS))
    source = stored(tmp_path_factory, [box], values, per_row=False)
    read = StoredState.read
    sizes = []

    def noted(*arguments):
        sizes.append(len(value := read(*arguments)))
        return value

    monkeypatch.setattr(StoredState, "read", noted)
    [(_, found)] = filled(source, [box], per_row=False)
    assert torch.equal(found, values)
    assert sizes == [3, 3, 3, 3, 1]


def test_gap_is_refused(tmp_path_factory):
    values = torch.rand(ROWS, COLUMNS)
    boxes = [Box((0, 0), (ROWS, 5)), Box((0, 6), (ROWS, COLUMNS - 6))]
    source = stored(tmp_path_factory, boxes, values, per_row=False)
    with pytest.raises(CheckpointError, match="has a gap"):
        filled(source, [Box((3, 2), (1, 5))], per_row=False)
    assert torch.equal(filled(source, [Box((3, 0), (1, 5))], per_row=False)[0][1], values[3:4, :5])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part("table/t/state/sum", (4, 4), Box((0, 0), (4, 4)), torch.zeros(4, 4)), "the model's"),
        (
            Part(
                "table/t/state/sum",
                (ROWS, COLUMNS),
                Box((0, 0), (ROWS, COLUMNS)),
                torch.zeros(ROWS),
                per_row=True,
            ),
            "a value for each element, the model's a value for each row",
        ),
    ],
)
def test_other_shape_or_kind_is_refused(tmp_path_factory, part, message):
    source = stored(
        tmp_path_factory, [Box((0, 0), (ROWS, COLUMNS))], torch.rand(ROWS, COLUMNS), per_row=False
    )
    with pytest.raises(CheckpointError, match=message):
        fill(part, source.tensors[part.name], source)


def test_state_is_rounded_to_the_models_dtype_and_weights_are_not(tmp_path_factory):
    values = torch.rand(ROWS, COLUMNS)
    box = Box((0, 0), (ROWS, COLUMNS))
    source = stored(tmp_path_factory, [box], values, per_row=False)
    half = torch.zeros(ROWS, COLUMNS, dtype=torch.float16)
    state = Part("table/t/state/sum", (ROWS, COLUMNS), box, half)
    fill(state, source.tensors[state.name], source)
    assert torch.equal(half, values.half())
    weight = Part("table/t/weight", (ROWS, COLUMNS), box, half)
    with pytest.raises(CheckpointError, match=r"is F32, the model's is F16"):
        fill(weight, source.tensors["table/t/state/sum"], source)
