"""Small files of the format of Taobao's ad log, and what they say as Python values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUM_USERS, NUM_ADS, NUM_ROWS = 15, 20, 400
FIRST = 1_493_996_400
"""The fifth of May 2017, 23:00 in Beijing."""
# The published file of profiles has a space behind the last name.
PROFILE = ("userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level")
PROFILE += ("pvalue_level", "shopping_level", "occupation", "new_user_class_level ")


@dataclass
class Made:
    """Rows of each file: dicts of texts."""

    impressions: list[dict[str, str]]
    ads: list[dict[str, str]]
    profiles: list[dict[str, str]]
    behaviour: list[dict[str, str]]

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (
            ("raw_sample.csv", self.impressions),
            ("ad_feature.csv", self.ads),
            ("user_profile.csv", self.profiles),
            ("behavior_log.csv", self.behaviour),
        ):
            lines = [",".join(row.values()) for row in rows]
            (folder / name).write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
        return folder


def made() -> Made:
    rng = np.random.default_rng(0)
    impressions, behaviour = [], []
    users = 100 + 7 * np.arange(NUM_USERS)
    for _ in range(NUM_ROWS):
        click = int(rng.random() < 0.25)
        row = {
            "user": str(rng.choice(users)),
            "time_stamp": str(FIRST + rng.integers(0, 90) * 1_000),
            "adgroup_id": str(900 + rng.integers(0, NUM_ADS)),
            "pid": str(rng.choice(["430548_1007", "430539_1007"])),
            "nonclk": str(1 - click),
            "clk": str(click),
        }
        impressions.append(row)
        row = {
            # Some users were never shown an ad.
            "user": str(rng.choice(users) + (1 if rng.random() < 0.2 else 0)),
            "time_stamp": str(FIRST + rng.integers(-90, 90) * 1_000),
            "btag": str(rng.choice(["pv", "cart", "fav", "buy"])),
            "cate": str(rng.integers(1, 5)),
            "brand": str(rng.integers(0, 4)),
        }
        behaviour.append(row)
    ads = [
        {
            "adgroup_id": str(900 + ad),
            "cate_id": str(rng.integers(1, 5)),
            "campaign_id": str(rng.integers(0, 9)),
            "customer": str(rng.integers(0, 9)),
            "brand": "NULL" if ad % 3 == 0 else str(rng.integers(0, 4)),
            "price": f"{rng.integers(1, 500)}.0",
        }
        # One ad was never shown.
        for ad in rng.permutation(NUM_ADS + 1).tolist()
    ]
    profiles = []
    for user in users[:-2].tolist():
        row = {name: str(rng.integers(1, 3)) for name in PROFILE} | {"userid": str(user)}
        row["occupation"] = str(rng.integers(0, 2))
        row["pvalue_level"] = "" if user % 2 else "2"
        profiles.append(row)
    return Made(impressions, ads, profiles, behaviour)
