"""Data sets as people have them on disk, good and bad."""

import io
import pickle
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from calibration.dataset import (
    DataError,
    Dataset,
    DataSource,
    MissingData,
    OverlapError,
    Sample,
    check_disjoint,
    identity,
    load,
)
from calibration.sample import content_digest


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_npz_gives_samples_with_labels_and_slices(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    saved(tmp_path / "d.npz", x=x, y=np.array([0, 1, 2]), who=np.array(list("aba")))
    data = load(DataSource("d.npz", "x", "y", ("who",)), tmp_path)
    assert [one.id for one in data] == ["d[0]", "d[1]", "d[2]"]
    assert data.labels == [0, 1, 2]
    assert data.slice_values == {"who": ["a", "b", "a"]}
    np.testing.assert_array_equal(data[1].value, x[1])


def test_npz_packed_and_named_inputs(tmp_path: Path) -> None:
    saved(
        tmp_path / "d.npz", audio=np.arange(6.0), offsets=np.array([0, 2, 6]),
        rate=np.array([[8], [16]]),
    )  # fmt: skip
    source = DataSource("d.npz", {"sound": ["audio", "offsets"], "rate": "rate"})
    data = load(source, tmp_path)
    assert [len(one.value["sound"]) for one in data] == [2, 4]
    assert data[1].value["rate"].tolist() == [16]
    assert data.labels is None


def test_limit_takes_the_first(tmp_path: Path) -> None:
    saved(tmp_path / "d.npz", x=np.arange(10)[:, None])
    assert len(load(DataSource("d.npz", limit=4), tmp_path)) == 4


def test_table_rows_with_row_names_as_r_writes_them(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(
        '"date","a","b","label"\n"7","monday",1,2.5,yes\n"9","tuesday",3,4,no\n'
    )
    data = load(DataSource("t.txt", ["b", "a"], "label", ("date",)), tmp_path)
    np.testing.assert_array_equal(data[0].value, np.float32([2.5, 1]))
    assert data[0].value.dtype == np.float32
    assert data.labels == ["yes", "no"]
    assert data.slice_values == {"date": ["monday", "tuesday"]}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_of_both_kinds_are_the_same(tmp_path: Path, suffix: str) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    table = pa.table({"a": [1.0, 2.0], "b": [3, 4], "y": [0, 1]})
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    data = load(DataSource(path.name, label="y"), tmp_path)
    np.testing.assert_array_equal([one.value for one in data], [[1, 3], [2, 4]])
    assert data.labels == [0, 1]


def test_folder_per_class_gives_bytes_and_numbers(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.png").write_bytes(name.encode())
    (tmp_path / "pets" / "dog" / ".hidden").write_bytes(b"x")
    data = load(DataSource("pets", slices=("class",)), tmp_path)
    assert [(one.id, one.value, one.label) for one in data] == [
        ("cat/1.png", b"cat", 0), ("dog/1.png", b"dog", 1),
    ]  # fmt: skip
    assert data.classes == ("cat", "dog")
    assert data.slice_values == {"class": ["cat", "dog"]}


def test_flat_folder_of_wav_files_has_no_labels(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as stream:
        stream.setparams((1, 2, 8000, 0, "NONE", ""))
        stream.writeframes(bytes(20))
    data = load(DataSource("."), tmp_path)
    assert data.labels is None
    assert data[0].value.startswith(b"RIFF")


CODE = """
import numpy as np
from calibration.dataset import Sample
def pair(): return np.arange(6.).reshape(3, 2), [0, 1, 0]
def columns():
    return {"inputs": {"a": [np.zeros(2), np.zeros(3)]}, "slices": {"s": [1, 2]}}
def samples():
    yield Sample("one", np.ones(2), slices={"s": "x"})
def broken(): raise KeyError("no such thing")
def leaves(): raise SystemExit(3)
def nothing(): return []
def number(): return 7
def misspelt(): return {"input": [1]}
"""


def test_functions_give_samples_in_three_ways(tmp_path: Path) -> None:
    (tmp_path / "mine_a.py").write_text(CODE)
    assert load(DataSource("mine_a:pair"), tmp_path).labels == [0, 1, 0]
    columns = load(DataSource("mine_a:columns", slices=("s",)), tmp_path)
    assert columns.slice_values == {"s": ["1", "2"]}
    assert columns[1].value["a"].shape == (3,)
    assert load(DataSource("mine_a:samples"), tmp_path)[0].id == "one"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("broken", "KeyError"), ("leaves", "SystemExit"), ("nothing", "no samples"),
        ("number", "gave a int"), ("misspelt", "expected inputs"),
        ("absent", "AttributeError"),
    ],
)  # fmt: skip
def test_functions_that_fail_are_named(
    tmp_path: Path, function: str, says: str
) -> None:
    (tmp_path / "mine_b.py").write_text(CODE)
    with pytest.raises(DataError, match=f"mine_b:{function}.*{says}"):
        load(DataSource(f"mine_b:{function}"), tmp_path)


def test_code_comes_from_its_own_recipe(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples_c.py").write_text(
            f"import numpy as np\ndef all(): return np.full((1, 1), {value}), [0]\n"
        )
    first = load(DataSource("samples_c:all"), tmp_path / "one")
    second = load(DataSource("samples_c:all"), tmp_path / "two")
    assert (first[0].value.item(), second[0].value.item()) == (1.0, 2.0)


def bad_npz(tmp_path: Path) -> dict[str, tuple[DataSource, str]]:
    good = io.BytesIO()
    np.savez(good, x=np.arange(1000.0).reshape(100, 10))
    (tmp_path / "cut.npz").write_bytes(good.getvalue()[:900])
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps([1]))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    np.savez(tmp_path / "nan.npz", x=np.array([[1.0], [np.nan]]))
    np.savez(tmp_path / "ragged.npz", x=np.zeros((3, 1)), y=np.zeros(2))
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 3)))
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    np.savez(tmp_path / "offsets.npz", a=np.zeros(4), o=np.array([0, 3, 9]))
    np.savez(tmp_path / "label.npz", x=np.ones((2, 1)), y=np.array([1.0, np.inf]))
    np.savez(tmp_path / "scalar.npz", x=np.float32(3))
    (tmp_path / "x.bin").write_bytes(b"")
    (tmp_path / "gap.csv").write_text("a,y\n1,0\n,1\n")
    (tmp_path / "word.csv").write_text("a,y\nred,0\n")
    (tmp_path / "void.csv").write_text("")
    (tmp_path / "head.csv").write_text("a,y\n")
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    (tmp_path / "rag.csv").write_text("a,y\n1,2\n1,2,3,4\n")
    (tmp_path / "f.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "odd" / "cat").mkdir(parents=True)
    (tmp_path / "odd" / "cat" / "notes.doc").write_bytes(b"x")
    return {
        "absent": (DataSource("no.npz"), "no such file"),
        "cut": (DataSource("cut.npz"), "cut.npz cannot be read as npz"),
        "pickle": (DataSource("pickle.npz"), "cannot be read as npz"),
        "objects": (DataSource("objects.npz"), "Python objects"),
        "nan": (DataSource("nan.npz"), r"nan\[1\] holds NaN"),
        "ragged": (DataSource("ragged.npz", "x", "y"), "input 3, label 2"),
        "empty": (DataSource("empty.npz"), "no samples"),
        "text": (DataSource("text.npz"), "expected numbers"),
        "which": (DataSource("two.npz"), "which key.*a, b"),
        "key": (DataSource("nan.npz", "x", "lab"), "no key 'lab'; it has x"),
        "offsets": (DataSource("offsets.npz", ["a", "o"]), "grow from 0 to 4"),
        "label": (DataSource("label.npz", "x", "y"), r"label of sample label\[1\]"),
        "scalar": (DataSource("scalar.npz"), "one number"),
        "kind": (DataSource("x.bin"), "expected .npz"),
        "gap": (DataSource("gap.csv", ["a"], "y"), "row 1 .*no value in column 'a'"),
        "word": (DataSource("word.csv", ["a"], "y"), "'red'"),
        "void": (DataSource("void.csv"), "is empty"),
        "head": (DataSource("head.csv"), "no rows"),
        "twice": (DataSource("twice.csv"), "two columns"),
        "rag": (DataSource("rag.csv"), "cannot be read as a table"),
        "parquet": (DataSource("f.parquet"), "cannot be read as a table"),
        "column": (DataSource("word.csv", ["b"]), "no column 'b'; it has a, y"),
        "hollow": (DataSource("hollow"), "no samples"),
        "odd": (DataSource("odd"), "notes.doc is no sample"),
        "set": (DataSource("set:nowhere/train"), "no data set 'nowhere'"),
        "split": (DataSource("set:digits/test"), "it has train, validation"),
        "escape": (DataSource("set:../x/y"), "expected set:NAME/SPLIT"),
    }


CASES = (
    "absent", "cut", "pickle", "objects", "nan", "ragged", "empty", "text", "which",
    "key", "offsets", "label", "scalar", "kind", "gap", "word", "void", "head",
    "twice", "rag", "parquet", "column", "hollow", "odd", "set", "split", "escape",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    cases = bad_npz(tmp_path)
    assert cases.keys() == set(CASES)
    source, says = cases[case]
    with pytest.raises(DataError, match=says) as caught:
        load(source, tmp_path)
    assert "\n" not in str(caught.value)


def test_absent_data_is_told_apart_from_damaged_data(tmp_path: Path) -> None:
    with pytest.raises(MissingData):
        load(DataSource("no.npz"), tmp_path)


def test_a_size_that_lies_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(DataError, match="at most"):
        load(DataSource("bomb.npz"), tmp_path)


def test_disjoint_splits_pass_and_overlapping_ones_name_the_samples() -> None:
    def split(name: str, values: range) -> Dataset:
        return Dataset(tuple(Sample(f"{name}{i}", np.array([i])) for i in values))

    check_disjoint(split("c", range(5)), split("v", range(5, 9)))
    with pytest.raises(OverlapError, match=r"7 validation.*c3 = v3, .*c7 = v7, …"):
        check_disjoint(split("c", range(10)), split("v", range(3, 13)))


def test_folders_that_number_their_classes_differently_are_refused() -> None:
    one = Dataset((Sample("a", b"a", 0),), ("cat", "dog"))
    other = Dataset((Sample("b", b"b", 0),), ("dog",))
    with pytest.raises(DataError, match="only one of them has cat"):
        check_disjoint(one, other)


ARRAYS = arrays.arrays(
    st.sampled_from([np.uint8, np.float32, np.int64]),
    arrays.array_shapes(max_dims=3, max_side=3),
    elements=st.integers(0, 3),
)


@given(ARRAYS, ARRAYS)
def test_digest_is_equal_exactly_for_equal_content(
    a: np.ndarray, b: np.ndarray
) -> None:
    same = a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    assert (content_digest(a) == content_digest(b)) == same
    assert content_digest(a) == content_digest(np.asfortranarray(a))


def test_data_set_digest_sees_labels_slices_and_order() -> None:
    a, b = Sample("a", b"1", 0), Sample("b", b"2", 1)
    variants = [
        Dataset((a, b)), Dataset((b, a)), Dataset((a, Sample("b", b"2", 0))),
        Dataset((a, Sample("b", b"2", 1, {"s": "x"}))), Dataset((a,)),
    ]  # fmt: skip
    assert len({one.digest for one in variants}) == len(variants)
    assert Dataset((a, b)).digest == variants[0].digest


def test_an_identity_stays_while_the_samples_do(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", x=np.arange(4), y=np.arange(4))
    source = DataSource("d.npz", "x", "y")
    first = identity(source, tmp_path)
    path.touch()
    assert identity(source, tmp_path) == first
    assert identity(DataSource("d.npz", "x"), tmp_path) != first
    saved(path, x=np.arange(4) + 1, y=np.arange(4))
    assert identity(source, tmp_path) != first


def test_an_identity_covers_every_file_of_a_folder(tmp_path: Path) -> None:
    source, picture = DataSource("."), tmp_path / "cat" / "a.png"
    picture.parent.mkdir()
    picture.write_bytes(b"one")
    first = identity(source, tmp_path)
    picture.rename(picture.with_name("b.png"))
    renamed = identity(source, tmp_path)
    picture.with_name("b.png").write_bytes(b"two")
    assert len({first, renamed, identity(source, tmp_path)}) == 3


def test_an_own_function_has_no_identity_and_a_described_set_has_one() -> None:
    assert identity(DataSource("mine:samples"), Path()) is None
    train = identity(DataSource("set:digits/train"), Path())
    assert train is not None
    assert train != identity(DataSource("set:digits/validation"), Path())
