"""Nothing read from disk is run: no pickles, no code but the user's own configs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainer", "sharding", "tokenization", "launch", "configs")
MODULES = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal", "yaml"}
CALLS = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "FileSystemReader",
    "FileSystemWriter",
    "dist_cp.load",
    "eval",
    "exec",
    "compile",
    "__import__",
}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_source_unpickles_or_runs_what_it_reads(package):
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert not MODULES & {name.split(".")[0] for name in imports(tree)}, path
        for function, keywords in calls(tree):
            assert function not in CALLS, (path, function)
            assert not function.endswith(("FileSystemReader", "FileSystemWriter")), path
            if function == "np.load":  # which refuses pickles unless it is told
                assert keywords.get("allow_pickle", "False") == "False", path
            if function.endswith(".from_pretrained"):  # as transformers does by default
                assert keywords.get("weights_only", "True") == "True", path
                assert keywords.get("trust_remote_code", "False") == "False", path


def test_the_check_would_see_a_pickle():
    bad = ast.parse("import pickle\nx = torch.load(path)\nnp.load(p)")
    assert set(imports(bad)) & MODULES
    assert [name for name, _ in calls(bad)] == ["torch.load", "np.load"]


TEMPLATES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.j2"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_no_template_lets_markup_through(template):
    assert "|safe" not in template.read_text().replace(" ", "")
    assert "autoescape false" not in template.read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_page_is_written_by_an_environment_that_escapes(package):
    """jinja2 escapes nothing unless it is told to."""
    for path in (ROOT / package).rglob("*.py"):
        for function, keywords in calls(ast.parse(path.read_text())):
            if function.startswith("jinja2.") and function.endswith("Environment"):
                assert keywords.get("autoescape") == "True", path
            assert function not in ("Template", "jinja2.Template", "Markup", "Environment"), path


def test_there_are_templates_to_look_at():
    assert len(TEMPLATES) >= 4
