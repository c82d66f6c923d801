"""The named sizes are the paper's."""

from dataclasses import replace

import pytest

from configs import towers
from trainer.structure import compare_structure
from trainer.structure_report import missed, ratio_to_published

NEXT_TOKEN_SHARE = 0.10


@pytest.fixture(scope="module")
def table1():
    return {entry["title"]: entry for entry in compare_structure(towers.trm_table1())["models"]}


def test_every_row_of_table_1_has_the_papers_parameters_and_flops(table1):
    assert len(table1) == 11
    for title, entry in table1.items():
        assert missed(entry) == [], title
        sparse = ratio_to_published(entry, "sparse_parameters")
        assert sparse == pytest.approx(1, abs=0.01), title


def test_generative_module_costs_within_a_tenth_of_the_total(table1):
    entry = table1["TRM, RankMixer"]
    assert 0 < entry["training_flops_of_next_token"] < NEXT_TOKEN_SHARE * entry["training_flops"]


@pytest.mark.slow
def test_largest_sizes_of_figure_4_are_the_papers():
    comparison = towers.trm_fig4()
    published = [m for m in comparison.models if m.published.dense_parameters is not None]
    assert {m.published.dense_parameters / 1e6 for m in published} == {
        *(335, 345, 352, 355, 242, 1768, 1843, 1888, 1900, 1170)
    }
    for entry in compare_structure(replace(comparison, models=tuple(published)))["models"]:
        assert missed(entry) == [], entry["title"]
