"""Files of facts: each form is told by its content and read alike, and every other file is refused by name and line."""

import gzip
import io
import json
import pickle
import zipfile

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editscale.data import fact_files, fact_report, facts
from editscale.data.facts import Fact
from editscale.workflow import cli

PROPERTY = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ROW = {
    "subject": "Ada Example",
    "prompt": "Ada Example plays the",
    "target_new": "harp",
    "target_true": "cello",
    "paraphrases": ["The instrument of Ada Example is the", "Ada Example is good at the"],
    "neighbors": ["Bo Sample plays the", "Cy Other plays the"],
    "neighbor_answers": ["lute", "drum"],
}
FACT = Fact(
    0,
    "Ada Example",
    "{} plays the",
    "harp",
    "cello",
    paraphrase_prompts=tuple(ROW["paraphrases"]),
    neighborhood_prompts=tuple(ROW["neighbors"]),
    neighborhood_answers=("lute", "drum"),
)
MINIMAL = {name: ROW[name] for name in ("subject", "prompt", "target_new")}
MINIMAL_FACT = Fact(0, "Ada Example", "{} plays the", "harp")
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)


def parquet(rows):
    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer)
    return buffer.getvalue()


def csv(row, separator=",", between=" | "):
    cells = [between.join(value) if isinstance(value, list) else value for value in row.values()]
    return f"{separator.join(row)}\n{separator.join(cells)}\n".encode()


FORMS = {
    "JSON": lambda row: json.dumps([row]).encode(),
    "JSON with a byte order mark": lambda row: b"\xef\xbb\xbf" + json.dumps([row]).encode(),
    "JSON in UTF-16": lambda row: json.dumps([row]).encode("utf-16"),
    "JSON lines": lambda row: json.dumps(row).encode() + b"\n\n",
    "CSV": csv,
    "CSV of Excel": lambda row: b"\xef\xbb\xbf" + csv(row, ";").replace(b"\n", b"\r\n"),
    "CSV with spaces": lambda row: csv(row, ", "),
    "TSV": lambda row: csv(row, "\t", between="|"),
    "CSV of pandas": lambda row: pd.DataFrame([row]).to_csv(index=False).encode(),
    "parquet": lambda row: parquet([row]),
}


@pytest.mark.parametrize("packed", (False, True))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ("facts.json", "facts.csv", "facts"))
def test_one_fact_is_read_alike_from_every_form_whatever_the_files_name(tmp_path, form, packed, name):
    for row, fact in ((ROW, FACT), (MINIMAL, MINIMAL_FACT)):
        data = FORMS[form](row)
        (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
        found = facts.read(tmp_path / name)
        assert found.facts == [fact] and found.notes == []
        assert found.form.endswith(", gzipped") == packed


def read(tmp_path, data):
    path = tmp_path / "own facts.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return facts.load(path)


def test_a_cell_may_hold_newlines_separators_and_quotation_marks(tmp_path):
    (fact,) = read(tmp_path, 'subject,prompt,target_new\nAda,"{} plays,\nwith ""joy"", the",harp\n')
    assert fact.prompt == '{} plays,\nwith "joy", the'


def test_values_of_one_kind_may_stand_in_numbered_columns(tmp_path):
    header = (
        "subject,prompt,target_new,paraphrase_1,paraphrase_2,Neighbor 2,neighbor 1,neighbor_answer_1,neighbor_answer_2"
    )
    (fact,) = read(tmp_path, f"{header}\nAda,{{}} plays the,harp,a b,,Cy is,Bo is,one,two\n")
    assert fact.paraphrase_prompts == ("a b",)
    assert fact.neighborhood_prompts == ("Bo is", "Cy is") and fact.neighborhood_answers == ("one", "two")


@pytest.mark.parametrize("cell", ('"[""a b"", ""c | d""]"', "\"['a b', 'c | d']\""))
def test_a_list_in_a_cell_is_json_or_as_pandas_writes_it(tmp_path, cell):
    (fact,) = read(tmp_path, f"subject,prompt,target_new,paraphrases\nAda,{{}} plays the,harp,{cell}\n")
    assert fact.paraphrase_prompts == ("a b", "c | d")


def test_facts_are_numbered_where_no_record_has_a_number(tmp_path):
    numbered = read(tmp_path, "subject,prompt,target_new\nAda,{} is,x\nBo,{} is,x\n")
    assert [fact.case_id for fact in numbered] == [0, 1]
    given_ids = read(tmp_path, "case_id;subject;prompt;target_new\n7;Ada;{} is;x\n3.0;Bo;{} is;x\n")
    assert [fact.case_id for fact in given_ids] == [7, 3]


HEAD = "subject,prompt,target_new"
REFUSED = {
    "nothing": (b"", "is empty \\(0 bytes\\)"),
    "blanks": (b" \n\n", "is empty \\(3 bytes\\)"),
    "a zip archive": (b"PK\x03\x04..", "is a zip archive or an Excel workbook; unpack it, or save the sheet"),
    "a pickle": (pickle.dumps([MINIMAL]), "is a pickle .*; pickles are not read, save the records as JSON"),
    "a web page": (b"<!DOCTYPE html>", "is a web page or XML; fetch the file itself"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "gzip twice": (gzip.compress(gzip.compress(b"[]")), "is packed with gzip twice; unpack it once"),
    "half a gzip file": (gzip.compress(json.dumps([ROW]).encode())[:-9], "is a damaged or incomplete gzip file"),
    "half a parquet file": (parquet([ROW])[:-20], "is a damaged or incomplete parquet file"),
    "Latin-1": (f"{HEAD}\nZoë,{{}} is,x\n".encode("latin-1"), "no UTF-8 text \\(line 2: .*save it as UTF-8"),
    "prose": (b"Some text.\nMore.", "is neither JSON nor a table of facts: its first line is 'Some text.'"),
    "no header": (b"Ada,{} plays the,harp\n", "its first line is 'Ada,{} plays the,harp', expected the names of its"),
    "a JSON number": (b"3", "is neither JSON nor a table of facts"),
    "a header alone": (HEAD.encode(), "holds no records"),
    "columns of something else": (
        b"prompt,answer\nWho?,x\n",
        "or else subject, target_new .fields there: prompt, answer",
    ),
    "a missing column": (b"subject,prompt\nAda,{} is\n", r"record 0 \(line 2\): missing target_new"),
    "an empty cell": (f"{HEAD}\nAda,{{}} is,x\n,{{}} is,x\n".encode(), r"record 1 \(line 3\): missing subject"),
    "a cell too many": (f"{HEAD}\nAda,{{}} plays, the,x\n".encode(), r"record 0 \(line 2\) has 4 cells, expected 3"),
    "a cell too few": (f"{HEAD}\nAda,{{}} plays\n".encode(), r"has 2 cells, expected 3 .*separators of empty cells"),
    "an open quotation mark": (f'{HEAD}\nAda,"{{}} is,x\n'.encode(), "line 2: unexpected end of data; a cell with"),
    "two columns of a name": (b"subject,prompt,target_new,Subject\na,b,c,d\n", "has two columns 'subject'"),
    "two names of a field": (f"{HEAD},target_true,ground_truth\nAda,{{}} is,x,y,z\n".encode(), "both give target_true"),
    "no list": (f"{HEAD},paraphrases\nAda,{{}} is,x,[a b]\n".encode(), "looks like a list and is none in JSON"),
    "an empty value": (
        f"{HEAD},paraphrases\nAda,{{}} is,x,a |\n".encode(),
        r"\(case_id 0\): paraphrases\[1\] is empty",
    ),
    "answers that do not fit": (
        f"{HEAD},neighbors,neighbor_answers\nAda,{{}} is,x,a|b,c\n".encode(),
        "2 prompts in neighbors and 1 answers to them",
    ),
    "an answer without a prompt": (
        f"{HEAD},neighbor_1,neighbor_answer_1\nAda,{{}} is,x,,c\n".encode(),
        "neighbor_answer_1 answers no prompt; fill neighbor_1",
    ),
    "a text as number": (b"case_id,subject,prompt,target_new\nx,Ada,{} is,y\n", "case_id is 'x', expected an integer"),
    "some numbers": (
        b"case_id,subject,prompt,target_new\n4,Ada,{} is,y\n,Bo,{} is,y\n",
        "has a case_id and 1 others have none; give every fact one, or none",
    ),
    "half of JSON lines": (json.dumps(ROW) + "\n" + json.dumps(ROW)[:-9], "line 2 is not complete JSON"),
    "a list in JSON lines": (json.dumps(ROW) + "\n[1]\n", r"record 1 \(line 2\) is a JSON list, expected an object"),
    "columns in JSON": (json.dumps({"subject": {"0": "Ada"}}), "it holds columns: write records .*orient='records'"),
    "records in a field": (json.dumps({"data": [ROW]}), "its field 'data' holds a list: give that list alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_facts_is_refused_by_name_and_place(tmp_path, name):
    data, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"own facts.txt.*{message}") as caught:
        read(tmp_path, data)
    assert "delete" not in str(caught.value)


def test_an_error_says_how_many_other_records_are_refused(tmp_path):
    rows = "".join(f"Ada{i},He is,x\n" for i in range(9))
    with pytest.raises(
        ValueError, match=r"record 0 \(line 2\): prompt 'He is' holds .* 0 times.*record 5 .*\(8 more\)"
    ):
        read(tmp_path, f"{HEAD}\n{rows}")


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fact_files, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="holds more than 1,000 bytes; split it"):
        read(tmp_path, gzip.compress(b" " * 2000))


def test_a_zip_archive_by_the_name_of_a_table_is_called_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "facts.csv", "w") as archive:
        archive.writestr("facts.csv", csv(ROW))
    with pytest.raises(ValueError, match="facts.csv is a zip archive"):
        facts.load(tmp_path / "facts.csv")


@PROPERTY
@given(data=st.data())
def test_a_changed_or_cut_file_is_read_or_refused_by_name_and_nothing_else(tmp_path, data):
    content = bytearray(FORMS[data.draw(st.sampled_from(sorted(FORMS)))](ROW))
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    content = bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        read_facts = read(tmp_path, gzip.compress(content) if data.draw(st.booleans()) else content)
    except ValueError as error:
        assert "own facts.txt" in str(error)
    else:
        assert all(fact.prompt.count("{}") == 1 for fact in read_facts)


@PROPERTY
@given(subject=TEXT, target=TEXT, paraphrases=st.lists(TEXT, min_size=1, max_size=3))
def test_any_texts_come_back_from_a_table_that_pandas_wrote(tmp_path, subject, target, paraphrases):
    row = {"subject": subject, "prompt": "{}: in a word,\nthe", "target_new": target}
    row["paraphrases"] = json.dumps(paraphrases, ensure_ascii=False)
    if subject in row["prompt"]:
        return
    (fact,) = read(tmp_path, pd.DataFrame([row]).to_csv(index=False))
    assert (fact.subject, fact.prompt, fact.target_new) == (subject, row["prompt"], target)
    assert fact.paraphrase_prompts == tuple(paraphrases)


def test_the_command_prints_what_was_understood(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_bytes(csv(ROW | {"paraphrse": "x y"}))
    assert cli.main(["facts", str(path)]) == 0
    out = capsys.readouterr().out
    assert "mine.csv: 1 facts, plain format, CSV" in out
    assert [line.split() for line in out.splitlines() if "true answer" in line] == [
        ["with", "a", "true", "answer:", "1"]
    ]
    assert "note: field paraphrse is not read (did you mean paraphrase?) (1 of 1 records)" in out
    assert "first fact, case 0: 'Ada Example plays the' shall go on with 'harp' instead of 'cello'" in out
    assert "neighborhood: 'Bo Sample plays the', where 'lute' is right" in out


def test_the_command_names_the_facts_that_a_model_cannot_be_edited_with(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text(f"{HEAD}\nAda,{{}} is,x\nBo,{{}}s harp is,x\n")
    assert cli.main(["facts", str(path), "--model", "tests/golden/tiny_gpt2"]) == 1
    out = capsys.readouterr().out
    assert "tiny_gpt2 can be edited with 1 of them\nnot usable: case 1: subject 'Bo' not found" in out


def test_the_command_keeps_what_can_be_used_in_a_new_file_and_names_the_rest(tmp_path, capsys):
    path, kept = tmp_path / "mine.csv", tmp_path / "kept.jsonl"
    path.write_text(f"{HEAD}\nAda,{{}} is,x\nBo,He is,x\nCy,{{}}s harp is,x\nDi,{{}} was,y\n")
    command = ["facts", str(path), "--keep", str(kept), "--model", "tests/golden/tiny_gpt2"]
    assert cli.main(command) == 1
    out = capsys.readouterr().out
    assert "record 1 (line 3): prompt 'He is' holds" in out and "case 1: subject 'Cy' not found" in out
    assert [fact.subject for fact in facts.load(kept)] == ["Ada", "Di"]
    assert cli.main(command) == 2
    assert "kept.jsonl is there already; choose another name" in capsys.readouterr().err


@PROPERTY
@given(texts=st.lists(TEXT, min_size=3, max_size=9), true=st.booleans(), own=st.booleans())
def test_a_fact_that_is_written_is_the_fact_that_is_read(tmp_path, texts, true, own):
    subject, new, *others = texts
    fact = Fact(
        7,
        subject,
        "{} and " + subject.replace("{}", "x"),
        new,
        "a " + new if true else "",
        paraphrase_prompts=tuple(others),
        neighborhood_prompts=tuple(others),
        neighborhood_answers=tuple(others) if own else (),
        portability_prompts=tuple(others),
        portability_answers=tuple(others),
    )
    (tmp_path / "kept.jsonl").unlink(missing_ok=True)
    fact_report.write_facts([fact], tmp_path / "kept.jsonl")
    assert facts.load(tmp_path / "kept.jsonl") == [fact]


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(f"{HEAD}\nAda,He is,x\n")
    assert cli.main(["facts", str(path)]) == 2
    assert "mine.json, record 0 (line 2): prompt 'He is' holds the subject" in capsys.readouterr().err
    assert cli.main(["facts", str(tmp_path / "no.csv")]) == 2
    assert "no facts file" in capsys.readouterr().err


def test_fields_that_are_not_read_are_named_once(tmp_path):
    with pytest.warns(UserWarning, match="own facts.txt: field note is not read \\(2 of 2 records\\)") as caught:
        read(tmp_path, f"{HEAD},note\nAda,{{}} is,x,1\nBo,{{}} is,x,2\n")
    assert len(caught) == 1
