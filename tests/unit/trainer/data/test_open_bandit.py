import numpy as np
import pyarrow.parquet as pq
import pytest

from trainer.data import open_bandit
from trainer.data.dataset import Dataset
from trainer.data.open_bandit import CAMPAIGNS, SCHEMA_OPEN_BANDIT, write_open_bandit
from trainer.data.schema import GlobalTimeSplit
from trainer.data.static_features import static_dense, static_fields, without_static

NUM_ROWS = 60
NAMES = ["timestamp", "item_id", "position", "click", "propensity_score"]
NAMES += [f"user_feature_{number}" for number in range(4)]


def made_log(rng, num_items):
    """Rows as the file has them: an index without name, times to the microsecond."""
    seconds = np.sort(rng.integers(0, 6 * 86_400, NUM_ROWS))
    rows = []
    for at in range(NUM_ROWS):
        second = int(seconds[at])
        day, clock = second // 86_400, second % 86_400
        time = f"2019-11-{24 + day} {clock // 3600:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}"
        affinity = rng.integers(1, 4, num_items) * (rng.random(num_items) < 0.2)
        row = {
            "": str(at),
            "timestamp": f"{time}.{rng.integers(0, 10**6):06d}+00:00",
            "item_id": str(rng.integers(0, num_items)),
            "position": str(rng.integers(1, 4)),
            "click": str(int(rng.random() < 0.2)),
            "propensity_score": str(1 / num_items),
            **{f"user_feature_{number}": f"u{rng.integers(0, 3):031d}" for number in range(4)},
            **{f"user-item_affinity_{item}": str(float(n)) for item, n in enumerate(affinity)},
        }
        rows.append(row | {"seconds": second})
    return rows


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in rows[0] if name != "seconds"]
    lines = [",".join(row[name] for name in names) for row in rows]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")


def made_items(rng, num_items):
    return [
        {
            "": str(item),
            "item_id": str(item),
            "item_feature_0": str(rng.normal()),
            **{f"item_feature_{number}": f"i{rng.integers(0, 4)}" for number in range(1, 4)},
        }
        for item in range(num_items)
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folders of the wheel with small files: policy -> campaign -> rows."""
    folder, rng, logs = tmp_path_factory.mktemp("obd"), np.random.default_rng(0), {}
    for campaign, num_items in CAMPAIGNS.items():
        items = made_items(rng, num_items)
        for policy in ("random", "bts"):
            logs[policy, campaign] = made_log(rng, num_items)
            write_csv(folder / policy / campaign / f"{campaign}.csv", logs[policy, campaign])
            write_csv(folder / policy / campaign / "item_context.csv", items)
    return folder, logs


@pytest.fixture
def fetched(source, monkeypatch):
    monkeypatch.setattr(open_bandit, "wheel_members", lambda wheel: source[0])
    return source[1]


def test_the_log_keeps_its_contract_and_columns_hold_what_the_files_say(fetched, tmp_path):
    manifest = write_open_bandit(tmp_path / "log")
    assert (manifest.num_rows, manifest.num_items) == (6 * NUM_ROWS, 160)
    dataset = Dataset.open(tmp_path / "log", SCHEMA_OPEN_BANDIT)
    dataset.validate()
    dataset.split(GlobalTimeSplit())
    rows = pq.read_table(tmp_path / "log" / "interactions").to_pylist()
    assert {row["timestamp"] for row in rows} <= set(range(1_574_553_600, 1_575_158_400))
    first = {"all": 0, "men": 80, "women": 114}
    users = set()
    for policy, campaign in fetched:
        number = (list(CAMPAIGNS).index(campaign), ("random", "bts").index(policy))
        own = [row for row in rows if (row["campaign"], row["policy"]) == number]
        assert len(own) == NUM_ROWS
        for row, said in zip(own, fetched[policy, campaign], strict=True):
            assert row["timestamp"] == 1_574_553_600 + said["seconds"]
            assert row["hour"] == said["seconds"] // 3600 % 24
            item = int(said["item_id"])
            assert row["item_id"] == first[campaign] + item
            assert row["position"] == int(said["position"]) - 1
            assert row["click"] == int(said["click"])
            # The native cross feature is the shown item's; items with any are the history.
            affinity = [float(said[f"user-item_affinity_{n}"]) for n in range(CAMPAIGNS[campaign])]
            assert row["user_item_affinity"] == affinity[item]
            assert row["user_affinity"] == sum(affinity)
            liked = sorted((n, i) for i, n in enumerate(affinity) if n)[-10:]
            assert row["history"] == [first[campaign] + i for _, i in liked]
            users.add((row["user_id"], *(said[f"user_feature_{n}"] for n in range(4))))
    assert len(users) == len({user for user, *_ in users}) == len({one[1:] for one in users})


def test_roles_are_those_of_dig_s_table_1():
    names = [field.name for field in static_fields(SCHEMA_OPEN_BANDIT)]
    assert names == ["item_feature_1", "item_feature_2", "item_feature_3"]
    assert static_dense(SCHEMA_OPEN_BANDIT) == ("item_feature_0",)
    cross = [f.name for f in without_static(SCHEMA_OPEN_BANDIT).features if f.entity == "cross"]
    assert cross == ["user_item_affinity"]


def test_some_campaigns_and_policies(fetched, tmp_path):
    manifest = write_open_bandit(tmp_path / "log", campaigns=("women",), policies=("bts",))
    assert (manifest.num_rows, manifest.num_items) == (NUM_ROWS, 46)
    assert manifest.source["campaigns"] == "women"
    dataset = Dataset.open(tmp_path / "log", SCHEMA_OPEN_BANDIT)
    dataset.validate()
    with pytest.raises(ValueError, match="name at least one of each"):
        write_open_bandit(tmp_path / "log", campaigns=())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("click", "2", "all.csv, column 'click': expected 0 or 1, found '2'"),
        ("item_id", "80", "all.csv, column 'item_id': expected 0 to 79, found 80"),
        ("timestamp", "yesterday", "all.csv, column 'timestamp': expected times.*yesterday"),
        ("user-item_affinity_7", "much", "column 'user-item_affinity_7': expected numbers.*much"),
    ],
)
def test_other_values_are_named(name, value, message, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    log = made_log(rng, 80)
    log[5][name] = value
    write_csv(tmp_path / "random" / "all" / "all.csv", log)
    write_csv(tmp_path / "random" / "all" / "item_context.csv", made_items(rng, 80))
    monkeypatch.setattr(open_bandit, "wheel_members", lambda wheel: tmp_path)
    with pytest.raises(ValueError, match=message):
        write_open_bandit(tmp_path / "log", campaigns=("all",), policies=("random",))
    assert not (tmp_path / "log").exists()
