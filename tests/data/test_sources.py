"""What is opened is what was named, and one line says what it was."""

import gc
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as BUILDERS

from layersim.data import Images, LanguageModeling, Text
from layersim.data.pixels import to_image
from layersim.data.sources import Source
from layersim.errors import UserError
from tests.data.pictures import encoded, image_folder, picture

LINES = ["named", "by", "its", "path"]


def write(path: Path, content: str | bytes = "stray\n") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def opened(path: str, **options: Any) -> list[str]:
    return list(Source(path, **options).split("train", option="train_split")["text"])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files of its own, which nobody named."""
    for name in ("a.txt", "train.txt", "b.csv", "c.json"):
        write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["text", "csv", "json", "parquet", "imagefolder", "webdataset"])
def test_a_folder_wins_over_the_format_of_its_name(name: str, here: Path) -> None:
    write(here / name / "lines.txt", "\n".join(LINES))
    for path in (name, f"./{name}", f"{name}/", f"~/{name}", str(here / name), f"nothing/../{name}"):
        (here / "nothing").mkdir(exist_ok=True)
        assert opened(path) == LINES
    assert datasets.load_dataset("text", split="train").num_rows != len(LINES), "the control: `datasets` reads all here"


def test_a_folder_below_wins_too(here: Path) -> None:
    write(here / "below/text/lines.txt", "\n".join(LINES))
    assert opened("below/text") == LINES


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_the_name_of_a_format_reads_nothing(name: str, here: Path) -> None:
    with pytest.raises(UserError, match=f"^{name} is the name of a format, and no file or folder of that name is here"):
        Source(name)


def test_no_path_is_not_the_working_directory(here: Path) -> None:
    with pytest.raises(UserError, match="there is no file or folder"):
        Source("")


@pytest.mark.parametrize("name", ["odd [1].txt", "LOUD.TXT"])
def test_files_of_odd_names(name: str, here: Path) -> None:
    assert opened(write(here / name, "\n".join(LINES))) == LINES


def test_the_line_says_what_is_read_of_a_folder(here: Path, infos: pytest.LogCaptureFixture) -> None:
    rows = "".join(f"good,{number % 2}\n" for number in range(20))
    for name in ("train-1", "train-2", "test"):
        write(here / f"data/{name}.csv", f"text,label\n{rows}")
    for name in ("a.png", "b.png", "notes", ".cache/c.csv", ".hidden", "__pycache__/d.csv"):
        write(here / "data" / name)
    Text("data", tokenizer="bytes", max_train_samples=30, predict_split="test[:5]").setup()
    Text("data", tokenizer="bytes", val_split="train[30:]", train_split="train[:30]").setup()
    assert infos.messages == [
        f"Data: 3 csv files in {here}/data (not read: 2 png files, 1 nameless file, 3 hidden); "
        "30 of 36 samples in train (max_train_samples=30); 4 samples in val (held out of train by val_fraction=0.1); "
        "5 samples in predict (test[:5]).",
        "4 of 4 samples in val are in train too, by their content.",
        f"Data: 2 csv files in {here}/data (not read: 2 png files, 1 nameless file, 3 hidden, split test); "
        "30 samples in train (train[:30]); 10 samples in val (train[30:]).",
        "10 of 10 samples in val are in train too, by their content.",
    ]


def test_images_texts_and_language_models_say_it_alike(here: Path, infos: pytest.LogCaptureFixture) -> None:
    image_folder(here / "pictures")
    write(here / "pictures/ages.csv")
    Images("pictures", max_eval_samples=1).setup()
    write(here / "words.csv", "text,label\n" + "a,0\nb,1\n" * 10)
    Text("words.csv", tokenizer="bytes").setup()
    LanguageModeling("words.csv", tokenizer="bytes", block_size=4).setup()
    datasets.Dataset.from_dict({"text": ["a"] * 4}).save_to_disk(here / "saved")
    LanguageModeling("saved", tokenizer="bytes").setup()
    assert infos.messages == [
        f"Data: 20 png files in {here}/pictures (not read: 1 csv file, split test); 18 samples in train; "
        "1 of 2 samples in val (held out of train by val_fraction=0.1, 1 of 2 classes absent, max_eval_samples=1).",
        f"Data: the file {here}/words.csv; 18 samples in train; 2 samples in val (held out of train by "
        "val_fraction=0.1).",
        "2 of 2 samples in val are in train too, by their content.",
        f"Data: the file {here}/words.csv; 9 blocks in train (36 tokens of 18 documents); "
        "1 block in val (4 tokens of 2 documents, held out of train by val_fraction=0.1).",
        "2 of 2 documents in val are in train too, by their content.",
        f"Data: a data set saved to {here}/saved; 1 block in train (6 tokens of 3 documents); "
        "1 block in val (2 tokens of 1 documents, held out of train by val_fraction=0.1).",
        "1 of 1 documents in val are in train too, by their content.",
    ]


def test_how_many_files_are_of_other_kinds_does_not_change_how_csv_is_read(here: Path) -> None:
    """ "NA" is a word, whatever else is in the folder."""
    for number in range(3):
        write(here / f"data/{number}.npy")
    write(here / "data/train.csv", "text\nNA\nnull\n")
    assert opened("data") == ["NA", "null"]


@pytest.mark.parametrize("name", ["d[1]", "d*", "d?"])
def test_a_folder_whose_name_is_a_pattern_is_refused(name: str, here: Path) -> None:
    """`datasets` would read the folder d1 in its place."""
    write(here / name / "train.csv", "text\nnamed\n")
    write(here / "d1/train.csv", "text\nother\n")
    for path in (name, str(here / name)):
        with pytest.raises(UserError, match=r"has \* \? or \[ in its path, which reads other folders: rename it$"):
            Source(path)
    assert (opened("d1"), opened(f"{name}/train.csv")) == (["other"], ["named"]), "a file is read as it is"


def test_csv_beside_tsv_is_refused(here: Path) -> None:
    write(here / "data/a.csv", "text\na\n")
    write(here / "data/b.tsv", "text\na\n")
    with pytest.raises(UserError, match="holds both csv and tsv files, which are not read alike"):
        Source("data")


def test_a_split_is_read_without_the_others(here: Path) -> None:
    """Of which one lacks a column, and one is broken."""
    write(here / "data/train.csv", "text,label\n" + "a,0\nb,1\n" * 10)
    write(here / "data/test.csv", "text\nc\n")
    write(here / "data/validation.csv", b"\xff")
    data = Text("data", tokenizer="bytes", predict_split="test")
    data.setup()
    assert {role: len(split) for role, split in data.splits.items()} == {"train": 18, "val": 2, "predict": 1}
    assert data.splits["predict"].labels is None
    with pytest.raises(UserError, match=r"validation\.csv, line 1: invalid byte 0xff, expected UTF-8"):
        Text("data", tokenizer="bytes", val_split="validation").setup()


def test_a_folder_is_a_split_by_its_own_name(here: Path) -> None:
    image_folder(here / "pictures")
    for number in range(3):
        (here / "pictures/new").mkdir(exist_ok=True)
        picture(number).save(here / f"pictures/new/{number}.png")
    data = Images("pictures", predict_split="new")
    data.setup()
    predict = data.splits["predict"]
    assert (len(predict), predict.labels, predict.source) == (3, None, "new")


def test_a_folder_that_belongs_to_a_split_already(here: Path, infos: pytest.LogCaptureFixture) -> None:
    for name in ("train", "val"):
        write(here / f"data/{name}/a.csv", "text,label\n" + "a,0\nb,1\n" * 2)
        write(here / f"flat/{name[::-1]}/a.csv", "text,label\n" + "a,0\nb,1\n" * 2)
    Text("data", tokenizer="bytes", val_split="val").setup()  # which `datasets` calls validation
    assert infos.messages == [
        f"Data: 2 csv files in {here}/data; 4 samples in train; 4 samples in val.",
        "4 of 4 samples in val are in train too, by their content.",
    ]
    with pytest.raises(UserError, match=r"the folder lav in flat is a part of the split train, and no split: change"):
        Text("flat", tokenizer="bytes", val_split="lav").setup()


def test_the_line_tells_what_a_folder_of_images_does_not_give(here: Path, infos: pytest.LogCaptureFixture) -> None:
    root = here / "pictures"
    image_folder(root)
    for name in ("top.png", "train/cat/a.heic", "train/cat/.hidden.png", "train/.cache/a.png", "train/__MACOSX/b.png"):
        write(root / name)
    (root / "train/emu").mkdir()
    (root / "train/fox").mkdir()
    write(root / "train/fox/.only")
    (root / "train/linked").symlink_to(root / "test/cat")
    (root / "train/cat/nowhere.png").symlink_to("/nowhere.png")
    for number in range(4):
        (root / "train/gnu").mkdir(exist_ok=True)
        picture(100 + number).save(root / f"train/gnu/{number}.png")
    Images(str(root), test_split="test").setup()
    assert infos.messages == [
        f"Data: 30 png files in {root} (not read: 2 png files, 1 heic file, 4 hidden, 1 linked folder, 2 "
        "empty folders); 21 samples in train; 3 samples in val (held out of train by val_fraction=0.1); "
        "6 samples in test (1 of 3 classes absent)."
    ]


@pytest.mark.parametrize("name", ["train/stray.png", "train/cat/below/stray.png"])
def test_pictures_beside_or_below_folders_of_classes(name: str, here: Path) -> None:
    image_folder(here / "pictures")
    write(here / "pictures" / name, encoded(picture(0)))
    with pytest.raises(UserError, match=rf"^1 of 21 images lie beside or below .* such as .*{name}, .*: move or "):
        Images("pictures", test_split="test").setup()


SHUT = r"would be read twice, for {} \(since train, .*rename the folder"


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train/crash_test", "train/cat", "test/crash_test", "test/cat"), SHUT.format("train and test")),
        (
            ("train/dev board", "train/cat", "validation/dev board", "validation/cat"),
            SHUT.format("train and validation"),
        ),
        (("train/val", "train/cat"), SHUT.format("train and validation")),
        (
            ("bullet_train", "steam-train", "cat", "dog"),
            r"12 images, such as (cat|dog).*, as .*train is taken for the split",
        ),
        (("train", "car", "truck"), r"no column label, .* the names of two folders or more"),
    ],
)
def test_classes_whose_names_hold_the_word_of_a_split(folders: tuple[str, ...], said: str, here: Path) -> None:
    """`datasets` looks for it anywhere in a path: a test set then held training's pictures, and classes were lost."""
    for number, folder in enumerate(folders):
        for place in range(6):
            write(here / "pets" / folder / f"{place}.png", encoded(picture(6 * number + place)))
    with pytest.raises(UserError, match=said):
        Images("pets").setup()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that `datasets` leaves open
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "mark"), [("t.csv", ","), ("t.tsv", "\t")])
def test_rows_with_more_cells_than_the_first_line_names(name: str, mark: str, streaming: bool, here: Path) -> None:
    """Their first cells were taken for the names of rows, and left out."""
    lines = [f"film {row}{mark} which I saw{mark}{row % 2}" for row in range(20)]
    write(here / name, "\n".join([f"text{mark}label", *lines]))
    data = Text(name, streaming=streaming, max_eval_samples=4)
    with pytest.raises(UserError, match=r"more cells than its first line names \(text, label\)"):
        data.setup()
    del data
    gc.collect()


def test_a_mark_of_byte_order_is_no_text_and_a_file_has_no_configurations(here: Path) -> None:
    assert opened(write(here / "marked.txt", b"\xef\xbb\xbffirst\nsecond\n")) == ["first", "second"]
    with pytest.raises(UserError, match=r"has no configurations to choose from, got sst2: leave --data\.name out"):
        Source("marked.txt", name="sst2")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that `datasets` leaves open
def test_pictures_without_a_row_in_metadata_are_counted(here: Path, infos: pytest.LogCaptureFixture) -> None:
    for number in range(24):
        write(here / "pets" / "train" / f"{number}.png", encoded(picture(number)))
    listed = "".join(f"{number}.png,{number % 2}\n" for number in range(20))
    write(here / "pets" / "train" / "metadata.csv", f"file_name,label\n{listed}")
    Images("pets").setup()
    assert "(not read: 4 images without a row in metadata)" in infos.text
    gc.collect()


@pytest.mark.parametrize("value", [-1, 256])
def test_pixels_that_8_bits_do_not_hold_are_refused(value: int, here: Path) -> None:
    """They were taken modulo 256."""
    cells = [[[[value] * 3] * 8] * 8] * 20
    for number, told in enumerate((None, datasets.Array3D((8, 8, 3), "int32"))):
        data = datasets.Dataset.from_dict({"image": cells, "label": [0, 1] * 10})
        path = f"{number}.parquet"
        (data if told is None else data.cast_column("image", told)).to_parquet(path)
        with pytest.raises(UserError, match=rf"holds numbers from {value} to {value}, but pixels are of 8 bits"):
            Images(path).setup()


def test_a_table_of_paths_that_lie_elsewhere_says_where_it_looked(here: Path) -> None:
    write(here / "pets.csv", "image,label\n" + "".join(f"cat/{row}.png,{row % 2}\n" for row in range(20)))
    data = Images("pets.csv")
    data.setup()
    data.splits["train"].preprocessing = lambda image: image  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"no file cat/\d+\.png in the working directory"):
        data.splits["train"][0]


@pytest.mark.parametrize("image", [picture(0).convert("P"), picture(0).convert("1"), picture(0).convert("L")])
def test_an_image_of_other_channels_is_not_stretched(image: Any) -> None:
    with pytest.raises(UserError, match=r"expected images of 4 channels, got one of mode"):
        to_image(image, 4)
    assert to_image(picture(0).convert("RGBA"), 4).shape == (4, 6, 6)


def test_labels_from_1_are_told_to_begin_at_0(here: Path) -> None:
    write(here / "stars.csv", "text,label\n" + "".join(f"film {row},{1 + row % 5}\n" for row in range(50)))
    data = Text("stars.csv")
    data.setup()
    with pytest.raises(UserError, match="the train data has 5, from 1 to 5: number them from 0"):
        data._check_labels("train", [1, 2, 3, 4, 5], 5)
    write(here / "lone.csv", "text,label\n" + "".join(f"film {row},{min(row, 3)}\n" for row in range(20)))
    with pytest.raises(UserError, match=r"3 of 4 classes have a single sample, such as class 0"):
        Text("lone.csv").setup()


@pytest.mark.parametrize(
    "folders",
    [
        ("train_images/a", "train_images/b", "masks"),
        ("train2017/a", "train2017/b", "unlabeled2017"),
        ("images/train/a", "images/train/b", "sample"),
    ],
)
def test_other_folders_beside_those_of_splits_are_left_out(folders: tuple[str, ...], here: Path) -> None:
    for folder in folders:
        for place in range(10):
            write(here / "pets" / folder / f"{place}.png", encoded(picture(place)))
    data = Images("pets")
    data.setup()
    assert sum(len(split) for split in data.splits.values()) == 20


def test_splits_that_a_readme_names_may_share_files(here: Path) -> None:
    files = "data_files: [{split: train, path: a.csv}, {split: full, path: [a.csv, b.csv]}]"
    write(here / "told" / "README.md", f"---\nconfigs: [{{config_name: default, {files}}}]\n---\n")
    for name in ("a", "b"):
        write(here / "told" / f"{name}.csv", "text,label\n" + "".join(f"{name} {row},{row % 2}\n" for row in range(10)))
    assert len(Source("told").split("train", option="train_split")) == 10


def test_a_column_that_pandas_named_for_its_index_is_one(here: Path) -> None:
    rows = "".join(f"film {row},{row % 2},{row}\n" for row in range(10))
    assert opened(write(here / "hub.csv", f"text,label,__index_level_0__\n{rows}"))[0] == "film 0"
