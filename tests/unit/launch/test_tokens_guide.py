"""docs/tokens.md: its commands parse, its options and kinds exist, its links lead somewhere."""

import dataclasses
import re
import shlex
from pathlib import Path

import tyro

from launch.embed_options import EmbedArgs
from launch.tokenize import parse
from launch.tokenize_options import TokenizeArgs
from launch.train import TrainCommand
from tokenization.alignment import Alignment
from tokenization.co_clicks import CoClicks
from tokenization.combinations import MEM_KINDS
from tokenization.representation import Representation
from tokenization.tokenizers import CONFIGS

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "docs" / "tokens.md").read_text()


def test_commands_parse():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)).replace("\\\n", " ")
    commands = re.findall(r"(?:farewell|launch\.cli) (embed|tokenize) (.*)", blocks)
    assert len(commands) >= 6
    for verb, rest in commands:
        words = shlex.split(rest)
        if verb == "tokenize":
            parse(words)
        else:
            tyro.cli(EmbedArgs, args=words)


def test_options_exist():
    def options(kind, prefix=""):
        return {prefix + field.name.replace("_", "-") for field in dataclasses.fields(kind)}

    known = options(EmbedArgs) | options(TokenizeArgs) | options(TrainCommand)
    known |= options(Alignment, "alignment.") | options(Representation, "tuning.")
    known |= options(CoClicks, "co-clicks.")
    for config in CONFIGS.values():
        known |= options(config, "tokenizer.")
    for config in MEM_KINDS.values():
        known |= options(config, "mem.")
    named = set(re.findall(r"--([a-z][a-z.-]*[a-z])", GUIDE)) - {"nproc-per-node", "help"}
    assert named <= known, named - known


def test_kinds_are_all_there():
    rows = re.findall(r"^\| `([a-z_]+)` \|", GUIDE, re.MULTILINE)
    assert rows == [*CONFIGS_IN_GUIDE, *MEM_KINDS]
    assert set(CONFIGS_IN_GUIDE) == set(CONFIGS)


CONFIGS_IN_GUIDE = [
    *("rq_kmeans", "balanced_rq_kmeans", "rq_vae", "opq", "opmq"),
    *("letter", "das", "dos"),
]


def test_links_lead_somewhere_and_the_readme_leads_here():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target
    assert "(docs/tokens.md)" in (ROOT / "README.md").read_text()
