"""The loss on a held-out text is Hugging Face's on each window, and the text is none that edits were made to spare."""

import math

import numpy as np
import pytest
import tiny
import torch

from editscale.editing import corpora, moments
from editscale.metrics import text_loss

TEXT = " ".join(tiny.TEXT.split())


@pytest.fixture
def files(tmp_path):
    """A held-out text, and second moments of another one."""
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "corpus.txt").write_text("Lund is in Sweden.\n\nThe river runs through the town, and no one answered.")
    return tmp_path / "text.txt", collected(tiny.tiny_model("gpt2"), tmp_path / "corpus.txt")


def collected(lm, corpus, max_length=8):
    documents = list(corpora.documents_from_file(lm.tokenizer, corpus, max_length))
    found = moments.collect(lm, documents, [1], progress=False)
    moments.save(found, path := corpus.with_suffix(".safetensors"))
    return path


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma2"))
def test_the_loss_of_each_window_is_hugging_faces(model_type, files):
    lm = tiny.tiny_model(model_type)
    texts = text_loss.windows(lm, files[0], 60, 16, collected(lm, files[0].with_name("corpus.txt")))
    assert len(texts) == 4 and {len(ids) for ids in texts} == {16}
    n_before = len(lm.tokenizer("")["input_ids"])  # a BOS begins every window, not the text alone
    read = [token for ids in texts for token in ids[n_before:]]
    assert lm.tokenizer(TEXT)["input_ids"][n_before:][: len(read)] == read
    expected = []
    for ids in map(torch.tensor, texts):
        expected.append(lm.model(ids[None], labels=ids[None]).loss.item())
    for batch_tokens in (16, 40, 4096):
        assert text_loss.losses(lm, texts, batch_tokens=batch_tokens) == pytest.approx(expected, rel=1e-5)


def test_a_model_without_preference_loses_the_log_of_its_vocabulary_on_every_window(files):
    lm = tiny.tiny_model("gpt2")
    texts = text_loss.windows(lm, files[0], 60, 16, files[1])
    for parameter in lm.model.parameters():
        parameter.data.zero_()
    found = text_loss.losses(lm, texts)
    assert found == pytest.approx(math.log(tiny.N_TOKENS), rel=1e-6)
    summary = text_loss.summary(found, found)
    assert summary["held_out_nll_se"] == pytest.approx(0, abs=1e-6) and summary["held_out_windows"] == 4


def test_the_standard_error_is_over_windows_and_that_of_a_rise_has_no_spread_of_the_text():
    unedited, edited = np.array([1.0, 2.0, 4.0, 5.0]), np.array([1.5, 2.5, 4.5, 5.7])
    found = text_loss.summary(edited, unedited)
    assert found["held_out_nll"] == edited.mean()
    assert found["held_out_nll_se"] == pytest.approx(edited.std(ddof=1) / 2)
    assert found["held_out_rise_se"] == pytest.approx(np.std([0.5, 0.5, 0.5, 0.7], ddof=1) / 2)
    assert text_loss.summary(unedited, unedited)["held_out_rise_se"] == 0


def test_a_broken_model_loses_everything_and_has_no_standard_error(files):
    lm = tiny.tiny_model("gpt2")
    texts = text_loss.windows(lm, files[0], 60, 16, files[1])
    unedited = text_loss.losses(lm, texts)
    lm.weight(1).fill_(math.nan)
    found = text_loss.losses(lm, texts)
    assert (found == math.inf).all()
    for before in (unedited, found):
        summary = text_loss.summary(found, before)
        assert summary["held_out_nll"] == math.inf
        assert math.isnan(summary["held_out_nll_se"]) and math.isnan(summary["held_out_rise_se"])


@pytest.mark.parametrize("max_length", (8, 128))
def test_the_text_of_the_second_moments_is_refused_whatever_it_is_called(files, max_length):
    lm, copy = tiny.tiny_model("gpt2"), files[0].with_name("another name.txt")
    copy.write_bytes(files[0].read_bytes())
    of_text = collected(lm, files[0], max_length)
    with pytest.raises(
        ValueError, match="another name.txt is the text that the second moments in .* were collected on"
    ):
        text_loss.windows(lm, copy, 60, 16, of_text)
    copy.write_text("Once more: " + TEXT)
    assert len(text_loss.windows(lm, copy, 60, 16, of_text)) == 4


@pytest.mark.parametrize(
    ("n_tokens", "size", "message"),
    [
        (10**6, 16, r"text.txt has \d+ tokens, and 66667 windows of 16 need 1,066,672"),
        (15, 16, "15 tokens are 1 windows of 16, and a standard error needs two"),
        (-3, 16, "-3 tokens are 0 windows of 16"),
        (60, 1, "a window of 1 tokens predicts nothing; give 2 or more"),
        (600, 129, "longer than max_position_embeddings = 128"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(files, n_tokens, size, message):
    with pytest.raises(ValueError, match=message):
        text_loss.windows(tiny.tiny_model("gpt2"), files[0], n_tokens, size, files[1])


def test_a_missing_text_or_missing_second_moments_are_named(files):
    lm = tiny.tiny_model("gpt2")
    with pytest.raises(FileNotFoundError, match="there is no held-out text nowhere.txt"):
        text_loss.windows(lm, "nowhere.txt", 60, 16, files[1])
    with pytest.raises(FileNotFoundError, match="no second moments for tiny_gpt2 at nowhere.safetensors"):
        text_loss.windows(lm, files[0], 60, 16, "nowhere.safetensors")
