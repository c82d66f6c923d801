"""DIG's losses against the equations, and which of them moves which parameters."""

import numpy as np
import pytest
import torch

from tests.integration.tiny_dig import NUM_ITEMS, batches_of_ranks, dig_model, variant
from trainer.batch_parts import take_rows
from trainer.modules.catalogue_draws import drawn_rows
from trainer.modules.learned_tokens import ITEM_ROW

LOSSES = ("discriminative", "recall", "commit", "sem", "u2t")


@pytest.fixture
def batch():
    return batches_of_ranks(1, 24, 1)[0][0]


def naive_bce(logit, label):
    p = 1 / (1 + np.exp(-logit))
    return -np.log(p) if label else -np.log(1 - p)


@pytest.mark.parametrize("unclicked", [False, True])
@pytest.mark.parametrize("last_level_only", [False, True])
@pytest.mark.parametrize("scope", ["user", "batch"])
def test_losses_equal_the_equations(batch, scope, last_level_only, unclicked):
    config = variant(
        u2t_scope=scope, last_level_only=last_level_only, unclicked_negatives=unclicked
    )
    model = dig_model(config=config)
    model(batch)  # codebooks begin in the first step
    network = model.network
    books = network.quantizer.codebooks_LKD.clone()
    step = network.num_steps.clone()
    loss, outputs = model(batch)
    found = outputs.losses
    with torch.no_grad():
        pooled, items = model.sparse(batch)
        sid = network.sid_table(items)
        item_of = batch.items[ITEM_ROW].values()[batch.candidate_B].tolist()
        e = network.encoder(torch.arange(NUM_ITEMS))

        def walk(item):
            codes, left, commit = [], e[item], 0.0
            for book in books:
                code = int((left - book).norm(dim=1).argmin())
                commit += float((book[code] - left).square().sum())
                left = left - book[code]
                codes.append(code)
            return codes, commit, float(left.square().sum())

        network.num_steps.copy_(step)
        encoded = network.encode_items(batch)
        drawn = encoded.row_X[encoded.place_BN].tolist()
        rows = range(batch.batch_size)
        assert {len(items) for items in drawn} == {2}
        sampled = [*item_of, *(item for items in drawn for item in items)]
        commit = np.mean([walk(item)[1] for item in sampled])
        sem = np.mean([walk(item)[2] for item in sampled])
        assert found["commit"].item() == pytest.approx(commit, rel=1e-4)
        assert found["sem"].item() == pytest.approx(sem, rel=1e-4)

        codes = [walk(item)[0] for item in item_of]
        users = batch.pooled["user_id"].values().tolist()
        cross = network.cross(batch, pooled)
        request = network.request(batch, pooled, encoded)
        u2t = torch.zeros(len(rows), 3, network.cross_dim)
        for row in rows:
            for level in range(3):
                same = [
                    other
                    for other in rows
                    if codes[other][level] == codes[row][level]
                    and (scope == "batch" or users[other] == users[row])
                ]
                u2t[row, level] = cross[same].mean(0)

        def prefix(of, level):
            return sum(sid[i, of[i]] for i in range(level + 1))

        def predicted(row, of, level):
            inputs = torch.cat([request.user_BE[row], prefix(of, level)])
            return network.token_cross.levels[level](inputs)

        distance = np.mean(
            [
                float((predicted(row, codes[row], level) - u2t[row, level]).square().sum())
                for row in rows
                for level in range(3)
            ]
        )
        assert found["u2t"].item() == pytest.approx(distance, rel=1e-4)

        prefixes, features = [], []
        for row in rows:
            negatives = [(walk(item)[0], "said") for item in drawn[row]]
            samples = [(codes[row], "seen"), (codes[row], "said"), *negatives]
            for of, source in samples:
                for level in range(3):
                    prefixes.append(prefix(of, level))
                    of_levels = [
                        u2t[row, i] if source == "seen" else predicted(row, of, i)
                        for i in range(level + 1)
                    ]
                    features.append(sum(of_levels) / (level + 1))
        shape = (len(rows), 12, -1)
        logits = network.recall(
            request, torch.stack(prefixes).view(shape), torch.stack(features).view(shape)
        ).numpy()

        def own_sample(logit, label):
            return naive_bce(logit, label) if label or unclicked else 0.0

        levels = [2] if last_level_only else [0, 1, 2]
        labels = batch.labels_BN.numpy()
        recall = np.mean(
            [
                naive_bce(logits[row, level, task], labels[row, task])
                for row in rows
                for level in levels
                for task in range(2)
            ]
        ) + np.mean(
            [
                np.mean(
                    [
                        own_sample(logits[row, 3 + level, 0], labels[row, 0])
                        + sum(
                            naive_bce(logits[row, 3 * place + level, 0], 0)
                            for place in range(2, 2 + len(drawn[row]))
                        )
                        for level in levels
                    ]
                )
                for row in rows
            ]
        )
        assert found["recall"].item() == pytest.approx(recall, rel=1e-4)
        rank = network.rank(request, e[item_of].unsqueeze(1), cross.unsqueeze(1))[:, 0].numpy()
        ranked = np.mean([naive_bce(rank[r, t], labels[r, t]) for r in rows for t in range(2)])
        assert found["discriminative"].item() == pytest.approx(ranked, rel=1e-4)
    whole = ranked + recall + 0.25 * commit + 0.1 * sem + 0.1 * distance  # Eq. 8
    assert loss.item() == pytest.approx(whole, rel=1e-4)


TYPE_II = {"user_id", "hour", "e_u", "BN_u"}
EDGES = {
    # loss -> what it moves; docs/dig.md has the same table.
    "discriminative": {"encoder", *TYPE_II, "cross", "item_norm", "cross_norm", "mixer"},
    "recall": {"encoder", *TYPE_II, "sid", "sid_norm", "u2t_norm", "mixer"},
    "commit": {"encoder"},
    "sem": {"encoder"},
    "u2t": {"encoder", *TYPE_II, "sid", "token_cross"},
}


def moved(model, loss):
    """Groups of parameters that get a gradient other than zero."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    groups = set()
    for name, weight in model.named_parameters():
        if weight.grad is None or not weight.grad.any():
            continue
        top = name.split(".")[1]
        if name.startswith("sparse"):
            table = name.split(".")[-2]
            top = "sid" if table.startswith("sid_") else table
            top = "cross" if table == "affinity" else top
        elif top in ("tower", "heads", "attention"):
            top = "mixer"
        elif top == "request_encoder":
            top = "BN_u" if name.split(".")[2] == "norm" else "e_u"
        groups.add(top)
    return groups


def losses_of(model, batch):
    """Each loss of Eq. 8 with its graph."""
    pooled, items = model.sparse(batch)
    found = model.network(batch, pooled, items)
    return {
        "discriminative": torch.nn.functional.binary_cross_entropy_with_logits(
            found.logits_BN, batch.labels_BN
        ),
        **{name: found.losses[name] for name in LOSSES[1:]},
    }


def test_each_loss_moves_what_the_gradient_table_says(batch):
    model = dig_model()
    for name, loss in losses_of(model, batch).items():
        assert moved(model, loss) == EDGES[name], name


@pytest.mark.parametrize(
    ("loss", "through"),
    [
        ("discriminative", {"candidate", "history"}),
        ("recall", {"history"}),
        ("u2t", {"history"}),
        ("commit", {"candidate", "negative"}),
        ("sem", {"candidate", "negative"}),
    ],
)
def test_through_which_items_a_loss_reaches_the_encoder(batch, monkeypatch, loss, through):
    model = dig_model()
    network, seen = model.network, []
    encode = network.encode_items

    def kept(of):
        found = encode(of)
        found.e_XD.retain_grad()
        seen.append(found)
        return found

    monkeypatch.setattr(network, "encode_items", kept)
    losses_of(model, batch)[loss].backward()
    (encoded,) = seen
    row_X = encoded.row_X
    of_batch = batch.items[ITEM_ROW].values()
    rows = {
        "candidate": set(of_batch[batch.candidate_B].tolist()),
        "history": set(of_batch[batch.history_T].tolist()),
        "negative": set(row_X[encoded.place_BN].flatten().tolist()),
    }
    found = set(row_X[(encoded.e_XD.grad != 0).any(dim=1)].tolist())
    for part, own in rows.items():
        alone = own.difference(*(other for name, other in rows.items() if name != part))
        assert alone, part
        assert found & alone == (alone if part in through else set()), part


def test_codebooks_are_no_parameters_and_move_by_averages(batch):
    model = dig_model()
    names = [name for name, _ in model.named_parameters()]
    assert not any("quantizer" in name or "codebook" in name for name in names)
    model(batch)
    before = model.network.quantizer.codebooks_LKD.clone()
    with torch.no_grad():  # no gradient is needed for them to move
        model(batch)
    assert not torch.equal(before, model.network.quantizer.codebooks_LKD)


def test_without_the_retrieval_path_its_parameters_rest(batch):
    model = dig_model(config=variant(recall_weight=0.0))
    loss, outputs = model(batch)
    loss.backward()
    assert "recall" not in outputs.losses
    resting = ("sid_norm", "u2t_norm", "token_cross", "sparse.items")
    for name, weight in model.named_parameters():
        if any(part in name for part in resting):
            assert weight.grad is None or not weight.grad.any(), name


@pytest.mark.parametrize("kind", ["mean", "none"])
def test_without_mlp_u2t_nothing_is_distilled(batch, kind):
    model = dig_model(config=variant(retrieval_u2t=kind))
    model(batch)
    loss, outputs = model(batch)
    assert "u2t" not in outputs.losses
    assert not list(model.network.token_cross.parameters())
    losses = outputs.losses
    whole = losses["discriminative"] + losses["recall"]
    whole = whole + 0.25 * losses["commit"] + 0.1 * losses["sem"]
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)


def test_means_of_codes_are_those_of_the_log(batch):
    model = dig_model(config=variant(retrieval_u2t="mean"))
    model(batch)
    network = model.network
    with torch.no_grad():
        cross = network.cross(batch, model.sparse(batch)[0])
    item_of = batch.items[ITEM_ROW].values()[batch.candidate_B]
    known = network.token_cross.is_known_LK
    assert known.sum() > 3
    for level, code in known.nonzero().tolist():
        found = network.token_cross.mean_LKC[level, code]
        assert (found >= cross.min(0).values - 1e-6).all()
        assert (found <= cross.max(0).values + 1e-6).all()
    whole = torch.zeros(network.cross_dim)
    codes = network_codes_before(model, batch)
    for code, number in zip(*torch.unique(codes[item_of, 0], return_counts=True), strict=True):
        whole += network.token_cross.mean_LKC[0, code] * number
    torch.testing.assert_close(whole / len(item_of), cross.mean(0))


def network_codes_before(model, batch):
    """SIDs that the first step saw: those of a model of the same seed before its codebooks move."""
    other = dig_model(config=variant(retrieval_u2t="mean"))
    other.network.quantizer.start(other.network.encode_catalogue())
    return other.network.catalogue_codes()


def test_the_statistic_reaches_the_loss_where_it_is_asked_for(batch):
    found = {}
    for kind in ("statistic", "none"):
        model = dig_model(config=variant(impression_u2t=kind, num_negatives=0))
        model(batch)
        found[kind] = model(batch)[1].losses
    assert found["statistic"]["recall"] != found["none"]["recall"]
    assert found["statistic"]["u2t"] == found["none"]["u2t"]
    assert found["statistic"]["discriminative"] == found["none"]["discriminative"]


@pytest.mark.parametrize("training", [True, False])
def test_a_share_of_the_cross_features_is_given(batch, training):
    whole, half = dig_model(), dig_model(config=variant(cross_share=0.5))
    for model in (whole, half):
        model.train(training)
    with torch.no_grad():
        given = half.network.cross(batch, half.sparse(batch)[0])
        every = whole.network.cross(batch, whole.sparse(batch)[0])
    is_given = drawn_rows(batch.row_B, share=0.5)
    assert 0 < is_given.sum() < len(is_given)
    torch.testing.assert_close(given, every * is_given[:, None])


def test_evaluation_depends_on_each_row_alone(batch):
    model = dig_model()
    model(batch)
    model.eval()
    with torch.no_grad():
        whole = model(batch)[1].logits_BN
        part, _ = take_rows(batch, 5, 9)
        torch.testing.assert_close(model(part)[1].logits_BN, whole[5:9])
