"""Training data as a stream: every row once an epoch, gone on with where it was, and nothing of it held out twice."""

import gc
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from torchvision.transforms import v2

from layersim.data import Images, LanguageModeling, Text
from layersim.data.streams import Stream, StreamLoader, hold_out_rows
from layersim.errors import UserError
from layersim.runs.place import dealt
from tests.data import texts
from tests.data.pictures import BACKBONE, encoded, image_folder, parquet_folder, picture, saved_to_disk, typed


@pytest.fixture(autouse=True)
def _without_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` sleeps 5 s at the end of each pass over parquet files, for fear of its threads."""
    base = datasets.iterable_dataset._BaseExamplesIterable
    monkeypatch.setattr(base, "sleep_on_threads_shutdown", property(lambda self: False))


def shards(root: Path) -> str:
    """Three files for training, of 7, 7 and 6 rows."""
    root.mkdir(exist_ok=True)
    for number, (start, count) in enumerate([(0, 7), (7, 7), (14, 6)]):
        typed(start, count).to_parquet(root / f"train-{number}.parquet")
    typed(20, 6).to_parquet(root / "test.parquet")
    return str(root)


def web_dataset(root: Path) -> str:
    """Tar files, as webdataset writes them: NUMBER.png beside NUMBER.cls."""
    for name, start, count in (("train-0", 0, 12), ("train-1", 12, 8), ("test-0", 20, 6)):
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            for number in range(start, start + count):
                for suffix, content in (("png", encoded(picture(number))), ("cls", str(number % 2).encode())):
                    told = tarfile.TarInfo(f"{number:04}.{suffix}")
                    told.size = len(content)
                    tar.addfile(told, BytesIO(content))
    return str(root)


def images(path: str, **options: Any) -> Images:
    defaults: dict[str, Any] = {"streaming": True, "val_split": "test", "batch_size": 3, "shuffle_buffer": 5}
    data = Images(path, train_transforms=[], eval_transforms=[], **{**defaults, **options})
    data.check(BACKBONE)
    return data


def epoch(data: Any, number: int = 0, read: int = 0) -> list[dict[str, torch.Tensor]]:
    """The batches of an epoch that begins, or goes on after so many of them."""
    told = SimpleNamespace(current_epoch=number, world_size=1)
    loader = data.train_dataloader()
    loader.trainer, loader.place = told, lambda: read
    return list(loader)


def pictures(batches: list[dict[str, torch.Tensor]]) -> list[tuple[float, int]]:
    """What tells the pictures apart, and their labels."""
    return [
        (round(float(image.double().sum()), 3), int(label))
        for batch in batches
        for image, label in zip(batch["image"], batch["label"], strict=True)
    ]


def mapped(data: Images) -> Counter[tuple[float, int]]:
    return Counter(pictures([{**batch, "label": batch["label"]} for batch in data.train_dataloader()]))


@pytest.mark.parametrize("source", [parquet_folder, shards, image_folder, saved_to_disk, web_dataset])
def test_a_stream_of_every_source_has_the_rows_that_the_source_has(source: Any, tmp_path: Path) -> None:
    columns = {"image_column": "png", "label_column": "cls"} if source is web_dataset else {}
    path = source(tmp_path)
    streamed = images(path, **columns)
    whole = images(path, streaming=False, **columns)
    assert Counter(pictures(epoch(streamed))) == mapped(whole)
    assert "train" not in streamed.splits
    one, other = ([*data.val_dataloader()] for data in (streamed, whole))
    assert pictures(one) == pictures(other)  # evaluation is the same, order and all
    assert streamed.class_names == whole.class_names


@pytest.mark.parametrize("workers", [0, 1, 2])  # of three files
def test_each_row_is_read_once_an_epoch_and_each_epoch_in_another_order(workers: int, tmp_path: Path) -> None:
    data = images(shards(tmp_path), num_workers=workers)
    first, again, second = (pictures(epoch(data, number)) for number in (0, 0, 1))
    assert len(first) == len(set(first)) == 20
    assert first == again != second
    assert set(first) == set(second)
    indices = [int(index) for batch in epoch(data) for index in batch["index"]]
    assert len(set(indices)) == 20


def test_what_is_random_in_a_stream_leaves_the_models_numbers_alone(tmp_path: Path) -> None:
    data = images(shards(tmp_path))
    data.train_transforms = [v2.RandomHorizontalFlip()]
    data.adapt(BACKBONE)
    torch.manual_seed(5)
    expected = torch.rand(7)
    torch.manual_seed(5)
    assert torch.equal(torch.stack([torch.rand(()) for _ in data.train_dataloader()]), expected)


def test_the_first_sample_is_checked_without_drawing_from_the_models_numbers(tmp_path: Path) -> None:
    data = Images(shards(tmp_path), streaming=True, val_split="test", train_transforms=[v2.RandomResizedCrop(6)])
    state = torch.get_rng_state()
    data.check(BACKBONE)
    assert torch.equal(torch.get_rng_state(), state)
    assert data.stream is not None
    assert torch.equal(data.stream.first()["image"], data.stream.first()["image"])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_training_goes_on_after_any_batch(workers: int, tmp_path: Path) -> None:
    data = images(shards(tmp_path), num_workers=workers)
    data.train_transforms = [v2.RandomHorizontalFlip(), v2.RandomResizedCrop(6)]
    data.adapt(BACKBONE)
    unbroken = epoch(data, 2)
    for read in range(len(unbroken) + 1):
        rest = epoch(data, 2, read)
        assert [batch["index"].tolist() for batch in rest] == [batch["index"].tolist() for batch in unbroken[read:]]
        for one, other in zip(rest, unbroken[read:], strict=True):
            assert torch.equal(one["image"], other["image"])


def test_what_was_read_is_passed_over_without_being_decoded(tmp_path: Path) -> None:
    data = images(shards(tmp_path))
    decoded = []
    assert data.stream is not None
    sample = data.stream.sample
    assert sample is not None
    data.stream.sample = lambda row: decoded.append(row) or sample(row)  # type: ignore[func-returns-value]
    epoch(data, 0, 4)
    assert len(decoded) == 20 - 4 * 3


@pytest.mark.parametrize("processes", [2, 3])  # which does not divide the three files, and which does
def test_processes_read_each_row_once_and_then_anew(processes: int, tmp_path: Path) -> None:
    data = images(shards(tmp_path))
    assert data.stream is not None
    data.stream.processes = processes
    for turn in (0, 1):
        shares = []
        for rank in range(processes):
            data.stream.rank = rank
            shares.append([row["image"]["bytes"] for row in data.stream.dealt(5, turn)])
        assert sorted(map(len, shares)) == ([10, 10] if processes == 2 else [6, 7, 7])
        assert len({image for share in shares for image in share}) == 20
    data.stream.begin(5, 0)
    endless = iter(data.stream)
    indices = [next(endless)["index"] for _ in range(30)]
    assert indices == [*range(processes - 1, 30 * processes, processes)]  # so that no other has them


def test_of_several_processes_none_knows_when_the_others_end(tmp_path: Path) -> None:
    data = images(shards(tmp_path))
    assert data.stream is not None

    def loader(**trainer: Any) -> StreamLoader:
        told = SimpleNamespace(world_size=2, global_rank=1, current_epoch=0, **trainer)
        assert data.stream is not None
        return StreamLoader(data.stream, told, data.collate, batch_size=3)  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"none of 2 processes knows .* --trainer\.limit_train_batches"):
        loader(limit_train_batches=1.0, max_steps=-1)
    loader(limit_train_batches=5, max_steps=-1)
    steps = {"limit_train_batches": 1.0, "max_steps": 10}
    with pytest.raises(UserError, match=r"no epoch ends and nothing is validated: .* --trainer\.val_check_interval"):
        loader(**steps, limit_val_batches=1.0, val_check_interval=1.0)
    loader(**steps, limit_val_batches=0, val_check_interval=1.0)
    read = loader(**steps, limit_val_batches=1.0, val_check_interval=4)
    told = SimpleNamespace(train_dataloader=read, world_size=2)
    assert dealt(told) == {"batch size": 3, "processes": 2, "loader workers": 0}  # type: ignore[arg-type]
    assert (data.stream.rank, data.stream.processes) == (1, 2)


def test_what_is_held_out_is_not_trained_on_whatever_the_order(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": [f"row {number % 150}" for number in range(200)]})
    stream = rows.to_iterable_dataset(num_shards=4)
    kept, held = hold_out_rows(stream, ["text"], 0.3, 1000, "a stream")
    trained = [row["text"] for row in kept]
    assert {*trained, *held["text"]} == {*rows["text"]}
    assert not {*trained} & {*held["text"]}  # 50 rows are there twice: both copies are on one side
    assert len(trained) + len(held) == 200
    assert 30 < len(held) < 90
    for shuffled in (kept.shuffle(seed=1, buffer_size=50), kept.shuffle(seed=2, buffer_size=7)):
        assert Counter(row["text"] for row in shuffled) == Counter(trained)
    few, some = hold_out_rows(stream, ["text"], 0.3, 5, "a stream")
    assert some["text"] == held["text"][:5]
    assert [row["text"] for row in few] == trained


def test_images_are_held_out_by_their_content(tmp_path: Path) -> None:
    one = images(shards(tmp_path), val_split=None, val_fraction=0.4, max_eval_samples=50)
    (tmp_path / "folder").mkdir()
    other = images(image_folder(tmp_path / "folder"), val_split=None, val_fraction=0.4, max_eval_samples=50)
    for data in (one, other):
        trained, held = pictures(epoch(data)), pictures([*data.val_dataloader()])
        assert held
        assert len(trained) + len(held) == 20
        assert not {*trained} & {*held}
        assert data.trained_on("val") == 0


# `datasets` leaves a csv file open that is not read to its end
left_open = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")


@left_open
@pytest.mark.parametrize("source", [texts.csv, texts.tsv, texts.json_lines, texts.parquet])
def test_texts_are_what_they_are_when_read_whole(source: Any, tmp_path: Path, bert: str) -> None:
    path = source(tmp_path)
    whole = texts.whole(path, bert)
    streamed = texts.whole(path, bert, streaming=True)
    read = [streamed.stream.sample(row) for row in streamed.stream.rows]  # type: ignore[union-attr, misc]
    assert len(read) == len(texts.LENGTHS)
    for one, other in zip(read, [whole.splits["train"][place] for place in range(len(read))], strict=True):
        assert {key: list(one[key]) for key in ("input_ids", "token_type_ids")} == {
            key: list(other[key]) for key in ("input_ids", "token_type_ids")
        }
        assert one["label"] == other["label"]
    batches = list(streamed.train_dataloader())
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == sum(texts.LENGTHS)
    gc.collect()


@left_open
def test_long_texts_are_cut_or_refused(tmp_path: Path, bert: str) -> None:
    cut = texts.whole(texts.csv(tmp_path), bert, streaming=True, max_length=8)
    assert max(batch["input_ids"].shape[1] for batch in cut.train_dataloader()) == 7
    path = tmp_path / "long.csv"
    path.write_text(f"sentence,label\n{'good ' * 20},1\n")
    data = Text(str(path), tokenizer=bert, text_column="sentence", val_split="train", max_length=8, streaming=True)
    data.setup()
    (batch,) = data.train_dataloader()
    assert batch["input_ids"].shape == (1, 8)
    data.truncation = "refuse"
    data._encode({}, data.tokenizer)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="22 tokens, but 8 is the most"):
        list(data.train_dataloader())
    gc.collect()


DOCUMENTS = ["to be", "", "or not", "to be that is", "the question " * 40, "a"]


def corpus(folder: Path, **options: Any) -> LanguageModeling:
    (folder / "train.txt").write_text("\n".join(DOCUMENTS) + "\n")
    data = LanguageModeling(str(folder / "train.txt"), tokenizer="bytes", val_split="train", block_size=16, **options)
    data.setup()
    return data


@pytest.mark.parametrize("boundaries", ["join", "separate"])
def test_blocks_of_a_stream_are_those_of_the_corpus(boundaries: Any, tmp_path: Path) -> None:
    whole, streamed = corpus(tmp_path, boundaries=boundaries), corpus(tmp_path, streaming=True, boundaries=boundaries)
    assert streamed.stream is not None
    blocks = [tokens.tolist() for tokens in streamed.stream.pieces(iter(streamed.stream.rows))]
    assert blocks == [whole.splits["train"][place]["input_ids"].tolist() for place in range(len(whole.splits["train"]))]
    batches = list(streamed.train_dataloader())
    assert all(
        torch.equal(batch["input_ids"][batch["label"] >= 0], batch["label"][batch["label"] >= 0]) for batch in batches
    )
    if boundaries == "separate":  # then the order of documents changes none of the blocks
        read = [
            row[mask.bool()].tolist()
            for b in batches
            for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
        ]
        assert sorted(read) == sorted(blocks)
    else:
        assert sum(int(batch["attention_mask"].sum()) for batch in batches) == sum(map(len, blocks))


def test_a_corpus_held_out_of_a_stream(tmp_path: Path, infos: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.txt").write_text("\n".join(f"document {number}" for number in range(200)) + "\n")
    path = str(tmp_path / "train.txt")
    data = LanguageModeling(
        path, tokenizer="bytes", streaming=True, val_fraction=0.1, max_eval_samples=12, block_size=16
    )
    data.setup()
    text = bytes(token for batch in data.train_dataloader() for token in batch["input_ids"].flatten() if token < 256)
    held = bytes(token for batch in data.val_dataloader() for token in batch["input_ids"].flatten() if token < 256)
    assert text.count(b"document ") + held.count(b"document ") <= 200
    assert 150 < text.count(b"document ") < 195
    assert any("the rows of train in train as they come (each drawn out of 1000)" in told for told in infos.messages)


def refused(path: str, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match):
        images(path, **options)


def test_what_a_stream_cannot_do_is_refused(tmp_path: Path) -> None:
    path = shards(tmp_path)
    refused(path, "can be found beforehand", on_bad_sample="skip")
    refused(path, "can be found beforehand", find_duplicates=True)
    refused(path, "can be found beforehand", max_train_samples=5)
    refused(path, "shuffle_buffer must be at least 1", shuffle_buffer=0)
    refused(path, "whole split of .* has train, test, but got train.:5.", train_split="train[:5]")
    refused(path, "whole split of .* but got extra", train_split="extra")
    refused(path, "no column picture", image_column="picture")
    refused(path, "no column kind", label_column="kind")
    refused(path, "set --data.max_eval_samples to a number", val_split=None)
    refused(path, "no row of .* is held out", val_split=None, val_fraction=1e-9, max_eval_samples=3)


def test_labels_are_checked_as_they_come(tmp_path: Path) -> None:
    rows = typed(0, 4).cast_column("label", datasets.Value("int64"))
    rows.to_parquet(tmp_path / "test.parquet")
    changed = rows.map(lambda row, number: {"label": number}, with_indices=True)
    changed.to_parquet(tmp_path / "train.parquet")
    data = images(str(tmp_path))
    with pytest.raises(UserError, match=r"labels must lie in 0\.\.1, .* a row of the stream train .* has [23]"):
        epoch(data)
    words = rows.remove_columns("label").add_column("label", ["cat", "dog", "cat", "dog"])
    words.to_parquet(tmp_path / "train.parquet")
    refused(str(tmp_path), "labels of a stream must be integers, but a row has 'cat'")
    with pytest.raises(UserError, match="a stream does not tell its classes"):
        _ = data.num_classes


def test_what_was_trained_on_can_be_told_by_name(tmp_path: Path) -> None:
    path = shards(tmp_path)
    assert images(path).trained_on("val") == 0
    both = images(path, val_split="train")
    assert both.trained_on("val") == 20


@pytest.mark.parametrize(
    ("train", "val", "common"),
    [
        ("train", "train", True),
        ("train[:50%]", "train", True),
        ("train", "train[50%:]", True),
        ("train[:50%]", "train[:50%]", True),
        ("train[:50%]", "train[50%:]", False),
        ("train", "test", False),
        ("train", None, False),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_blocks_that_were_trained_on_can_be_told_by_name(
    train: str, val: str | None, common: bool, streaming: bool, tmp_path: Path
) -> None:
    if streaming and "[" in train:
        pytest.skip("a stream has no slices")
    for name in ("train", "test"):
        datasets.Dataset.from_dict({"text": [f"{name} {row}" * 9 for row in range(20)]}).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    options: dict[str, Any] = {"streaming": streaming, "train_split": train, "val_split": val, "block_size": 16}
    data = LanguageModeling(str(tmp_path), tokenizer="bytes", max_eval_samples=5, **options)
    data.setup()
    assert data.trained_on("val") == common * len(data.splits["val"])


@pytest.mark.parametrize("kind", [Text, LanguageModeling])
def test_texts_with_nul_are_refused_in_a_stream_too(kind: Any, tmp_path: Path) -> None:
    rows = {"text": ["one word", "bad\0text"], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    datasets.Dataset.from_dict({"text": ["two words"], "label": [0]}).to_parquet(tmp_path / "test.parquet")
    shape = {"max_length": 8} if kind is Text else {"block_size": 2}
    data = kind(str(tmp_path), streaming=True, val_split="test", tokenizer="bytes", batch_size=1, **shape)
    data.setup()
    with pytest.raises(UserError, match=r"texts must be strings without NUL, but a row .*has .bad"):
        list(data.stream)


def test_a_stream_without_rows(tmp_path: Path) -> None:
    rows = typed(0, 3).to_iterable_dataset().filter(lambda row: False)
    empty = Stream(rows, "train", "the stream", seed=0, buffer=1)
    with pytest.raises(UserError, match="the stream has no rows"):
        empty.first()
