import json

from launch import compare


def test_smoke_comparison_prints_and_writes_a_report(tmp_path, capsys):
    folder = tmp_path / "report"
    compare.main(["towers.smoke", "--folder", str(folder), "--json", str(tmp_path / "copy.json")])
    printed = capsys.readouterr().out
    assert "RankMixer" in printed and "over 6 P B" in printed
    report = json.loads((folder / "structure_report.json").read_text())
    assert report == json.loads((tmp_path / "copy.json").read_text())
    assert [model["title"] for model in report["models"]] == ["RankMixer", "TRM"]
    assert (folder / "structure.png").exists()
    assert "structure.png" in (folder / "structure_report.md").read_text()
