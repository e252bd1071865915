"""The places that rows are profiled from."""

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from homeostat.data.profiler import make_profile
from homeostat.data.table import open_table
from homeostat.errors import ConfigError, DataInvalid


def make_frame(rows: int = 200) -> pd.DataFrame:
    return pd.DataFrame({"x": np.arange(rows) / 7, "k": np.arange(rows) % 3, "t": ["a", "b"] * (rows // 2)})


def test_every_place_gives_the_same_profile(tmp_path: Path):
    frame = make_frame()
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    with duckdb.connect(str(tmp_path / "rows.duckdb")) as database:
        database.register("frame", frame)
        database.execute("CREATE TABLE people AS SELECT * FROM frame")
    wanted = make_profile(frame)
    places = (tmp_path / "rows.parquet", str(tmp_path / "*.csv"), f"duckdb://{tmp_path / 'rows.duckdb'}#people")
    for place in places:
        found = make_profile(place)
        assert [c.name for c in found.columns] == ["x", "k", "t"]
        for column, same in zip(found.columns, wanted.columns, strict=True):
            assert (column.counts, column.categories, column.distinct) == (same.counts, same.categories, same.distinct)
            assert column.mean == (same.mean and pytest.approx(same.mean))
            assert column.quantiles == pytest.approx(same.quantiles)


def test_a_folder_with_an_older_file(tmp_path: Path):
    make_frame(100).to_parquet(tmp_path / "b.parquet")
    make_frame(100).drop(columns="x").to_parquet(tmp_path / "a.parquet")
    profile = make_profile(tmp_path)
    assert profile.rows == 200
    assert {c.name: c.null_share for c in profile.columns} == {"x": 0.5, "k": 0, "t": 0}


def test_what_is_not_there_or_not_whole(tmp_path: Path):
    frame = make_frame(2000)
    frame.to_parquet(tmp_path / "rows.parquet")
    whole = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    for place, message in (
        (tmp_path / "half.parquet", r"half\.parquet cannot be read"),
        (tmp_path / "none.parquet", "no such file"),
        (str(tmp_path / "*.json.parquet"), "cannot be read"),
    ):
        with pytest.raises(DataInvalid, match=message):
            make_profile(place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataInvalid, match="holds no files"):
        make_profile(tmp_path / "empty")
    with pytest.raises(DataInvalid, match="no rows to profile"):
        make_profile(frame.head(0))
    with pytest.raises(ConfigError, match="nosuch: Ibis cannot connect"):
        make_profile("nosuch://host/db#rows")
    with duckdb.connect(str(tmp_path / "rows.duckdb")) as database:
        database.execute("CREATE TABLE people (x INT)")
    with pytest.raises(DataInvalid, match="no table 'pets' there; there are: people"):
        make_profile(f"duckdb://{tmp_path / 'rows.duckdb'}#pets")


def test_an_ibis_table_is_taken_as_it_is():
    with open_table(make_frame()) as table:
        few = make_profile(table.filter(table["k"] == 1))
    assert few.rows == 67


def test_odd_columns_of_a_frame():
    frame = pd.DataFrame(
        {
            "half": np.arange(6, dtype=np.float16),
            "mixed": pd.Series([1, "a", None, 2.5, "a", True], dtype=object),
            "nothing": pd.Series([None] * 6, dtype=object),
            "category": pd.Categorical(["u", "v"] * 3),
            "time": pd.date_range("2026-01-01", periods=6, freq="D"),
            "yes": [True, False] * 3,
            7: np.arange(6),
        }
    )
    profile = {column.name: column for column in make_profile(frame).columns}
    assert (profile["half"].dtype, profile["half"].maximum) == ("float16", 5)
    assert profile["mixed"].categories == (("a", 2), ("1", 1), ("2.5", 1), ("True", 1))
    assert (profile["nothing"].null_share, profile["nothing"].categories) == (1, ())
    assert profile["category"].categories == (("u", 3), ("v", 3))
    assert profile["time"].maximum == pd.Timestamp("2026-01-06").timestamp()
    assert profile["yes"].categories == ((0, 3), (1, 3))
    assert profile["7"].categories == tuple((i, 1) for i in range(6))
