"""Lookup of extension parts: by name, by `package.module:Attribute`, from the working directory, with one line for a failure."""

import sys
from collections import OrderedDict

import pytest

from mmtune.errors import DataError, RecipeError
from mmtune.runtime.plugins import register, resolve


def test_by_name_by_target_and_as_an_object():
    table = {"ordered": "collections:OrderedDict", "own": dict}
    assert resolve(table, "ordered", "mapping") is OrderedDict
    assert resolve(table, "own", "mapping") is dict
    assert resolve(table, "collections:OrderedDict.fromkeys", "mapping") == OrderedDict.fromkeys
    register(table, "late", "collections:deque", "mapping")
    assert resolve(table, "late", "mapping").__name__ == "deque"


def test_a_module_of_the_working_directory_is_found_and_the_path_is_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "only_in_this_folder.py").write_text("class Part:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert resolve({}, "only_in_this_folder:Part", "loss").__name__ == "Part"
    assert sys.path == before
    del sys.modules["only_in_this_folder"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inf_nce", "objective.loss: no loss 'inf_nce'; did you mean 'info_nce'?"),
        ("zzz", "objective.loss: no loss 'zzz'; there are: info_nce"),
        ("no_such_module:f", "no module 'no_such_module' among the installed packages nor in "),
        ("collections:OrderedDic", "collections has no 'OrderedDic'; did you mean 'OrderedDict'?"),
        ("broken_on_import:f", "importing 'broken_on_import' failed: ZeroDivisionError: division by zero"),
        ("needs_another:f", "importing 'needs_another' failed: No module named 'not_installed_anywhere'"),
    ],
)
def test_a_failure_is_one_line_that_says_where_it_looked(name, message, tmp_path, monkeypatch):
    (tmp_path / "broken_on_import.py").write_text("1 / 0\n")
    (tmp_path / "needs_another.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as e:
        resolve({"info_nce": "a:b"}, name, "loss", key="objective.loss")
    assert message in str(e.value) and "\n" not in str(e.value)
    if "nor in" in message:
        assert str(tmp_path) in str(e.value)


def test_the_error_class_is_the_callers_and_names_are_plain():
    with pytest.raises(DataError, match="no store 'x'"):
        resolve({}, "x", "store", error=DataError)
    with pytest.raises(RecipeError, match="letters, digits"):
        register({}, "a:b", "c:d", "store")
    with pytest.raises(RecipeError, match="not of the form"):
        register({}, "a", "c.d", "store")
