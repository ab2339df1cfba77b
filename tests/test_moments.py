"""C is the mean of k kᵀ over the tokens of a corpus, however batched, and never taken for another model's."""

import random
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from tiny import N_TOKENS, tiny_model, tiny_tokenizer

from editscale.editing import corpora, moments
from editscale.kernels import transfer
from editscale.models.anatomy import FAMILIES
from editscale.workflow import timing

LENGTHS = (12, 3, 30, 7, 1, 19)


def random_documents(seed=0, lengths=LENGTHS):
    rng = np.random.default_rng(seed)
    return [rng.integers(N_TOKENS, size=length).tolist() for length in lengths]


def collected(lm, documents, layers, *args, **options):
    return moments.collect(lm, documents, layers, *args, progress=False, **options)


def keys_one_by_one(lm, documents, layer):
    """Keys (tokens, d_key) from full forwards, one document at a time: no padding, no mask."""
    seen = []
    handle = lm.projection(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for document in documents:
        lm.model(torch.tensor([document]))
    handle.remove()
    return torch.cat(seen)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_moment_is_the_mean_product_of_keys(model_type):
    lm, documents = tiny_model(model_type, dtype=torch.float64), random_documents()
    result = collected(lm, documents, [1], batch_tokens=50)
    keys = keys_one_by_one(lm, documents, 1).numpy()
    assert result.n_tokens == len(keys) == sum(LENGTHS)
    # All families but GPT-2 compute something in float32 whatever the model's dtype (norms, softmax, rotations, scores
    # of attention), and how that rounds depends on the processor and on the shape of a batch.
    tolerance = 1e-12 if model_type == "gpt2" else 1e-6
    assert relative(result.moments[1], torch.tensor(keys.T @ keys / len(keys))) < tolerance


def test_blocks_of_columns_make_the_whole_matrix(monkeypatch):
    lm, documents = tiny_model("gpt2", dtype=torch.float64), random_documents()
    whole = collected(lm, documents, [2]).moments[2]
    monkeypatch.setattr(moments, "COLUMNS", 7)
    assert relative(collected(lm, documents, [2]).moments[2], whole) < 1e-14
    assert torch.equal(whole, whole.T)


@pytest.mark.parametrize("width", [7, 48, 96])
@pytest.mark.parametrize("square", [5, 12, 1024])
def test_halves_of_squares_on_the_diagonal_make_the_whole_matrix(width, square, monkeypatch):
    """Of any width: where a square has no halves, it is one product."""
    monkeypatch.setattr(moments, "SQUARE", square)
    keys = torch.randn(2, 30, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(width, width, dtype=torch.float64)
    for of in keys:
        moments._add_halves(total, of)
    expected = sum(of.T @ of for of in keys)
    assert relative(moments._symmetric(total), expected) < 1e-14


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_gpu_collects_what_a_cpu_collects(model_type, monkeypatch):
    monkeypatch.setattr(moments, "SQUARE", 12)
    lm, documents = tiny_model(model_type, dtype=torch.float64), random_documents()
    expected = collected(lm, documents, [1, 3], batch_tokens=50).moments
    lm.model.to("cuda")
    found = collected(lm, documents, [1, 3], batch_tokens=50).moments
    for layer, moment in found.items():
        assert moment.device.type == "cpu"
        assert relative(moment, expected[layer]) < (1e-12 if model_type == "gpt2" else 1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(0, 3), (3, 5), (1000, 333)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_comes_from_a_gpu_bit_for_bit(shape, dtype, monkeypatch):
    """In more chunks than there are buffers, the last of them short."""
    monkeypatch.setattr(transfer, "CHUNK", 2**18)
    matrix = torch.randn(shape, dtype=dtype, device="cuda")
    for given in (matrix, matrix.T):
        assert torch.equal(transfer.Room(given, 1).to_cpu(given), given.cpu())


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_one_pass_over_layers_equals_one_pass_for_each(model_type):
    lm, documents = tiny_model(model_type), random_documents()
    together = collected(lm, documents, [3, 0, 2]).moments
    assert sorted(together) == [0, 2, 3]
    for layer, moment in together.items():
        # A pass that ends at another layer runs the same operations below it.
        assert torch.equal(moment, collected(lm, documents, [layer]).moments[layer])


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("batch_tokens", [1, 45, 10_000])
def test_batches_and_padding_do_not_matter(model_type, batch_tokens, monkeypatch):
    lm, documents = tiny_model(model_type, dtype=torch.float64), random_documents()
    reference = collected(lm, documents, [3]).moments[3]
    monkeypatch.setattr(moments, "GROUP", 4)
    other = collected(lm, documents[::-1], [3], batch_tokens=batch_tokens).moments[3]
    # Llama's and Gemma's norms and softmax compute in float32 whatever the model's dtype.
    assert relative(other, reference) < (1e-12 if model_type == "gpt2" else 1e-6)


def test_keys_in_float32_are_accumulated_in_float64():
    lm, documents = tiny_model("gpt2"), random_documents()
    keys = keys_one_by_one(lm, documents, 3).double()
    moment = collected(lm, documents, [3]).moments[3]
    assert moment.dtype == torch.float64
    assert relative(moment, keys.T @ keys / len(keys)) < 1e-6


def test_forward_ends_with_the_deepest_layer():
    lm, ran = tiny_model("gpt2"), []
    for layer in range(4):
        lm.block(layer).register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        lm.projection(layer).register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    collected(lm, random_documents(lengths=[5]), [0, 1])
    assert set(ran) == {0, 1}


def test_moments_along_the_way_equal_those_of_the_first_documents():
    lm, documents = tiny_model("llama"), random_documents()
    first, second, all_ = moments.collect_at(lm, documents, [1], [13, 45, sum(LENGTHS)], progress=False)
    assert [part.n_tokens for part in (first, second, all_)] == [15, 45, sum(LENGTHS)]
    assert first.identity["n_documents"] == "2" and second.identity["n_documents"] == "3"
    for part, n_documents in ((first, 2), (second, 3), (all_, 6)):
        alone = collected(lm, documents[:n_documents], [1])
        # float32 keys from batches of other widths
        assert relative(part.moments[1], alone.moments[1]) < 1e-6
        assert part.identity == alone.identity


def test_each_group_of_documents_is_timed(monkeypatch):
    monkeypatch.setattr(moments, "GROUP", 3)
    times, lm = timing.Timing(), tiny_model("gpt2")
    moments.collect_at(lm, random_documents(), [1], [sum(LENGTHS)], progress=False, times=times)
    assert [row["n"] for row in times.rows] == [sum(LENGTHS[i : i + 3]) for i in range(0, len(LENGTHS), 3)]
    assert all(row["part"] == "second moments" and row["seconds"] > 0 for row in times.rows)


def test_no_more_documents_are_read_than_asked_for():
    documents = iter(random_documents())
    result = collected(tiny_model("gpt2"), documents, [0], 14)
    assert result.n_tokens == 15
    assert len(list(documents)) == len(LENGTHS) - 2


def test_identity_names_the_tokens():
    lm = tiny_model("gpt2")
    one = collected(lm, random_documents(), [0], corpus="random ids").identity
    assert one == collected(lm, random_documents(), [0], corpus="random ids").identity
    assert one["corpus"] == "random ids" and one["weights_sha256"] == lm.identity["weights_sha256"]
    assert one["tokens_sha256"] != collected(lm, random_documents(seed=1), [0]).identity["tokens_sha256"]
    joined = [sum(random_documents(), [])]
    assert one["tokens_sha256"] != collected(lm, joined, [0]).identity["tokens_sha256"]


@pytest.mark.parametrize(
    "documents, message",
    [
        (random_documents(), "after 6 documents with 72 tokens; 100 were asked for"),
        ([[1, 2], [], [3] * 200], "empty document, after 1 documents"),
        ([[3] * 129], "129 tokens is longer than max_position_embeddings"),
    ],
)
def test_corpus_that_is_too_short_or_too_long_is_refused(documents, message):
    with pytest.raises(ValueError, match=message):
        collected(tiny_model("llama"), documents, [0], 100)


@pytest.mark.parametrize("layers, message", [([4], "layer 4 is not one of"), ([], "need layers")])
def test_unknown_layers_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        collected(tiny_model("gpt2"), random_documents(), layers)


# Files


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    lm = tiny_model("gpt2")
    result = collected(lm, random_documents(), [1, 2])
    path = tmp_path_factory.mktemp("moments") / "deep" / "moments.safetensors"
    moments.save(result, path)
    return lm, result, path


def test_loaded_moments_are_the_saved_ones_bit_for_bit(stored):
    lm, result, path = stored
    loaded = moments.load(path, lm, [1, 2])
    assert loaded.n_tokens == result.n_tokens and result.identity.items() < loaded.identity.items()
    assert all(torch.equal(loaded.moments[layer], result.moments[layer]) for layer in (1, 2))
    assert list(moments.load(path, lm, [2]).moments) == [2]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_altered_matrix_or_identity_is_refused_and_another_one_has_another_identity(stored, tmp_path):
    lm, result, path = stored
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    places = {"layer.1 is not what": 8 + header + 80, "does not hold": content.index(b'"n_documents":"') + 15}
    for message, place in places.items():
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=f"damaged.safetensors .*{message}"):
            moments.load(damaged, lm, [1, 2])
    other = replace(result, moments={**result.moments, 1: result.moments[1] + torch.eye(lm.d_key)})
    moments.save(other, tmp_path / "other.safetensors")
    one, two = (
        moments.load(path, lm, [1, 2]).identity,
        moments.load(tmp_path / "other.safetensors", lm, [1, 2]).identity,
    )
    assert {name for name in one if one[name] != two[name]} == {"layer.1"}
    assert moments.load(path, lm, [2]).identity == moments.load(tmp_path / "other.safetensors", lm, [2]).identity


def test_moments_of_another_model_or_other_weights_are_refused(stored):
    _, _, path = stored
    with pytest.raises(ValueError, match="have model 'tiny_gpt2', but the model is tiny_llama"):
        moments.load(path, tiny_model("llama"), [1])
    with pytest.raises(ValueError, match="have weights_sha256 .* run notebook 01 for this model"):
        moments.load(path, tiny_model("gpt2", seed=1), [1])


def test_layer_that_was_not_collected_is_named(stored):
    lm, _, path = stored
    with pytest.raises(ValueError, match="no second moment for tiny_gpt2 layer 3 .*only layer.1, layer.2"):
        moments.load(path, lm, [1, 3])
    with pytest.raises(ValueError, match="layer 7 is not one of"):
        moments.load(path, lm, [7])


def test_missing_or_damaged_file_is_named(stored, tmp_path):
    lm, _, path = stored
    with pytest.raises(FileNotFoundError, match="no second moments for tiny_gpt2 at .*run notebook 01"):
        moments.load(tmp_path / "none.safetensors", lm, [1])
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="cut.safetensors is damaged"):
        moments.load(tmp_path / "cut.safetensors", lm, [1])


# What notebook 01 shows


def test_spectrum_and_condition_number_of_a_matrix_with_known_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator))
    eigenvalues = torch.tensor([8, 4, 2, 1, 0.5], dtype=torch.float64)
    moment = rotation * eigenvalues @ rotation.T
    torch.testing.assert_close(moments.spectrum(moment), eigenvalues)
    assert moments.condition_number(moments.spectrum(moment)) == pytest.approx(16)
    assert moments.condition_number(moments.spectrum(torch.ones(3, 3))) == float("inf")


def test_convergence_grows_with_the_tokens_and_is_exact_at_the_end():
    lm = tiny_model("gpt2", dtype=torch.float64)
    documents, counts = random_documents(lengths=[40] * 60), [40, 300, 1200, 2400]
    parts = moments.collect_at(lm, documents, [1], counts, progress=False)
    keys = {1: keys_one_by_one(lm, random_documents(seed=9), 1)}
    rows = moments.convergence(parts, keys)
    assert [(row["n_tokens"], row["layer"]) for row in rows] == [(40, 1), (320, 1), (1200, 1), (2400, 1)]
    difference, cosine = [row["difference"] for row in rows], [row["cosine"] for row in rows]
    assert difference == sorted(difference, reverse=True) and difference[-1] == 0
    # 40 keys of 48 entries span no inverse.
    assert np.isnan(cosine[0]) and cosine[1:] == sorted(cosine[1:]) and cosine[-1] == pytest.approx(1)

    last, k = parts[-1].moments[1].numpy(), keys[1].numpy().T
    u, v = np.linalg.solve(parts[1].moments[1].numpy(), k), np.linalg.solve(last, k)
    by_hand = (u * v).sum(0) / np.linalg.norm(u, axis=0) / np.linalg.norm(v, axis=0)
    assert cosine[1] == pytest.approx(by_hand.mean())


# Corpora


def sampled(lm, *args, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return list(corpora.sampled_documents(lm, *args, generator, progress=False, **options))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_sampled_text_follows_the_models_probabilities(model_type):
    lm = tiny_model(model_type)
    documents = sampled(lm, 300, 3)
    start = [0]
    bos = lm.tokenizer("")["input_ids"]
    assert all(document[: len(bos)] == bos and len(document) == 3 for document in documents)
    # The observed log-probability of what was drawn must be near its expectation, minus the entropy: here for
    # the second token drawn, given the first, from full forwards without cache.
    texts = torch.tensor([start + document[len(bos) :] for document in documents])
    log_p = lm.model(texts[:, :-1]).logits[:, -1].double().log_softmax(-1)
    drawn = log_p.gather(1, texts[:, -1:])[:, 0]
    expected = (log_p.exp() * log_p).sum(-1)
    spread = ((log_p.exp() * log_p**2).sum(-1) - expected**2).mean().sqrt() / len(drawn) ** 0.5
    assert abs((drawn - expected).mean()) < 4 * spread


def test_same_seed_samples_the_same_text_and_another_seed_other_text():
    lm = tiny_model("gpt2")
    assert sampled(lm, 5, 9, batch_size=2) == sampled(lm, 5, 9, batch_size=2)
    assert sampled(lm, 5, 9, batch_size=2) != sampled(lm, 5, 9, batch_size=2, seed=1)
    assert sampled(lm, 2, 9, batch_size=2) == sampled(lm, 5, 9, batch_size=2)[:2]


def test_text_longer_than_the_model_reads_is_not_sampled():
    with pytest.raises(ValueError, match="longer than max_position_embeddings"):
        sampled(tiny_model("llama"), 1, 128)


@pytest.mark.parametrize("bos", [True, False])
def test_blank_lines_separate_documents_and_long_ones_are_cut(bos, tmp_path):
    tokenizer = tiny_tokenizer(bos)
    (tmp_path / "corpus.txt").write_text("The harp of Ada\nExample\n\n \n\nLund\n\n" + "the town " * 50)
    documents = list(corpora.documents_from_file(tokenizer, tmp_path / "corpus.txt", 20))
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in documents]
    assert texts[:2] == ["The harp of Ada\nExample", "Lund"] and texts[2].startswith("the town the town")
    assert len(documents) == 3 and len(documents[2]) == 20
    assert all((ids[0] == 1) == bos for ids in documents)


def test_missing_and_empty_corpus_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no text file"):
        corpora.documents_from_file(tiny_tokenizer(), tmp_path / "none.txt", 20)
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match="holds no text"):
        corpora.documents_from_file(tiny_tokenizer(), tmp_path / "empty.txt", 20)


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A folder with a data set of 600 short texts, some of them blank, in parquet."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    texts = ["" if i % 50 == 7 else f"town {i}" for i in range(600)]
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "data" / "train.parquet")
    return tmp_path / "data"


def test_documents_of_a_data_set_come_in_the_order_of_the_rome_code(data_folder):
    tokenizer = tiny_tokenizer()
    documents = list(corpora.documents_from_dataset(tokenizer, data_folder, 30, n_documents=500))
    order = list(range(600))
    random.Random(1).shuffle(order)
    expected = [f"town {i}" for i in order[:500] if i % 50 != 7]
    assert [tokenizer.decode(ids) for ids in documents] == expected


def test_data_set_that_cannot_be_read_is_named(data_folder):
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match="no column 'body', only text"):
        corpora.documents_from_dataset(tokenizer, data_folder, 30, field="body")
    with pytest.raises(FileNotFoundError, match="split 'validation'"):
        corpora.documents_from_dataset(tokenizer, data_folder, 30, split="validation")
    with pytest.raises(ValueError, match="40 hexadecimal digits"):
        corpora.documents_from_dataset(tokenizer, "wikimedia/wikipedia", 30, config="20231101.en")
    with pytest.raises(FileNotFoundError, match="wikimedia/wikipedia.* could not be read"):
        corpora.documents_from_dataset(tokenizer, "wikimedia/wikipedia", 30, revision="0" * 40)
