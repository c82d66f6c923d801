"""Small files of KuaiRec's format, and what they say as Python values."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUM_USERS, NUM_VIDEOS, NUM_ROWS = 9, 12, 300
FIRST = 1_593_878_400
"""The fifth of July 2020, midnight in Beijing."""
MATRIX = ("user_id", "video_id", "play_duration", "video_duration", "time", "date", "timestamp")
MATRIX += ("watch_ratio",)
USER = ("user_id", "user_active_degree", "is_lowactive_period", "is_live_streamer")
USER += ("is_video_author", "follow_user_num", "follow_user_num_range", "fans_user_num")
USER += ("fans_user_num_range", "friend_user_num", "friend_user_num_range", "register_days")
USER += ("register_days_range", *(f"onehot_feat{number}" for number in range(18)))
DAILY = ("video_id", "date", "author_id", "video_type", "upload_dt", "upload_type")
DAILY += ("visible_status", "video_duration", "video_width", "video_height", "music_id")
DAILY += ("video_tag_id", "video_tag_name", "show_cnt", "play_cnt", "like_cnt")
CAPTION = ("video_id", "manual_cover_text", "caption", "topic_tag")
for _level in ("first", "second", "third"):
    CAPTION += (f"{_level}_level_category_id", f"{_level}_level_category_name")


@dataclass
class Made:
    """Rows of each file: dicts of texts."""

    matrix: list[dict[str, str]]
    users: list[dict[str, str]]
    categories: list[dict[str, str]]
    daily: list[dict[str, str]]
    captions: list[dict[str, str]]

    def write(self, folder: Path, matrix: str = "big") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows, columns in (
            (f"{matrix}_matrix.csv", self.matrix, MATRIX),
            ("user_features.csv", self.users, USER),
            ("item_categories.csv", self.categories, ("video_id", "feat")),
            ("item_daily_features.csv", self.daily, DAILY),
            ("kuairec_caption_category.csv", self.captions, CAPTION),
        ):
            with (folder / name).open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        return folder


def made() -> Made:
    rng = np.random.default_rng(0)
    matrix = []
    for user in range(NUM_USERS):
        times = np.sort(rng.integers(0, 4 * 86_400, NUM_ROWS // NUM_USERS + 1))
        for seconds in times.tolist():
            row = dict.fromkeys(MATRIX, "")
            row |= {"user_id": str(user), "video_id": str(rng.integers(0, NUM_VIDEOS))}
            row["watch_ratio"] = repr(round(float(rng.exponential(0.8)), 3))
            if rng.random() > 0.05:
                row["timestamp"] = f"{FIRST + seconds + 0.438}"
            matrix.append(row)
    users = []
    for user in rng.permutation(NUM_USERS).tolist():
        row = {name: str(rng.integers(0, 4)) for name in USER}
        row |= {"user_id": str(user), "user_active_degree": rng.choice(["full_active", "UNKNOWN"])}
        row["fans_user_num_range"] = rng.choice(["0", "[1,10)", "[10,100)"])
        row["onehot_feat4"] = "" if user % 2 else "1.0"
        users.append(row)
    categories = [
        {"video_id": str(video), "feat": str(rng.choice(31, rng.integers(1, 4), False).tolist())}
        for video in range(NUM_VIDEOS)
    ]
    daily = []
    for video in rng.permutation(NUM_VIDEOS).tolist():
        for day in range(5):
            row = {name: str(rng.integers(0, 9)) for name in DAILY}
            row |= {"video_id": str(video), "date": f"2020070{5 + day}", "upload_dt": "2020-03-30"}
            row |= {"author_id": str(500 + video // 2), "music_id": str(900 + day)}
            row |= {"video_duration": "" if video == 3 else "8000.0", "video_type": "NORMAL"}
            row |= {"play_cnt": str(rng.integers(20, 90)), "video_tag_name": 'a, "b"'}
            daily.append(row)
    captions = []
    for video in range(NUM_VIDEOS - 1):
        row = dict.fromkeys(CAPTION, "UNKNOWN")
        row |= {"video_id": str(video), "caption": f"a cat, {video}\nand more", "topic_tag": "[x]"}
        row |= {"first_level_category_id": str(video % 3), "second_level_category_id": "-124"}
        row["first_level_category_name"] = f"Animals {video % 3}"
        captions.append(row)
    return Made(matrix, users, categories, daily, captions)
