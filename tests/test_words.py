"""Words that must not come back in `unet/`: private names for common terms, and phrases that said them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

from conftest import ROOT

NAMES = {  # identifier -> the term to use
    "heart": "watchdog",
    "overlook": "watch_store",
    "verdict": "failure",
    "sparing": "recompute_activations",
    "spent": "release",
    "tied": "inference_settings",
    "foot": "metric_notes",
    "compose": "setup",
    "meet": "init_distributed",
    "misfit": "schema_error",
    "silence": "LOCK_TIMEOUT",
    "unlike": "mismatch",
}
METHODS = {"asked": "requested"}  # as a method only: `asked` is a fine name of a value
PHRASES = {
    "what is learnt": "task to run",
    "made data": "synthetic data",
    "hang together": "structure",
    "mend the": "repair the",
    "the seed's": "the project's name (Argonne, Habana, MLPerf)",
    "what is in force": "every setting and where it came from",
}


def bad_names(path: Path) -> list[str]:
    """`file:line: message` for each identifier (a whole name, or a word of it) that is not to be used."""
    found, text, where = [], path.read_text(), path.relative_to(ROOT).as_posix()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            for word in set(token.string.lower().split("_")) & NAMES.keys():
                found.append(f"{where}:{token.start[0]}: {token.string}: use {NAMES[word]}")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name in METHODS:
                    found.append(f"{where}:{item.lineno}: {item.name}(): use {METHODS[item.name]}")
    return found


def bad_phrases(path: Path) -> list[str]:
    """`file:line: message` for each phrase that is not to be used, also where it is broken over two lines."""
    text, where = path.read_text(), path.relative_to(ROOT).as_posix()
    found = []
    for phrase, better in PHRASES.items():
        gap = r"[\s\"'#]+f?[\"']?"  # a line break within a comment, a docstring or adjacent literals
        for match in re.finditer(rf"\b{gap.join(map(re.escape, phrase.split()))}\b", text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{where}:{line}: {match[0]!r}: use {better}")
    return found


def test_words_that_must_not_come_back() -> None:
    paths = sorted((ROOT / "unet").rglob("*.py"))
    found = [line for path in paths for line in (*bad_names(path), *bad_phrases(path))]
    assert not found, "\n".join(found)


def test_each_word_is_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "a.py"
    for name in NAMES:
        path.write_text(f"x = 1\nrun_{name} = 2\n")
        assert bad_names(path) == [f"a.py:2: run_{name}: use {NAMES[name]}"]
    path.write_text("class Stop:\n    def asked(self) -> bool: ...\n\n\nasked = 1\n")
    assert len(bad_names(path)) == 1
    for phrase in PHRASES:
        path.write_text(f'"""A word, {phrase.replace(" ", chr(10), 1)} and another."""\n')
        assert len(bad_phrases(path)) == 1, phrase
    path.write_text('x = "unmade data, the meetings, spend"\n')
    assert not bad_names(path) and not bad_phrases(path)
