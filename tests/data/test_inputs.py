"""Images and texts as people have them: what becomes of each kind, and what is refused by one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from layersim.data import ByteTokenizer, Images, Text, open_tokenizer
from layersim.data.inputs import Inputs, TextInputs, from_array
from layersim.data.sequences import PadCollate
from layersim.data.tokenizers import PretrainedTokenizer
from layersim.errors import UserError
from tests.tiny import backbone

GREY = np.arange(100, dtype=np.uint8).reshape(10, 10) * 2


class Coloured:
    """A backbone of images of 6 × 6 pixels."""

    input_size = (3, 6, 6)
    data_config = {"input_size": (3, 6, 6), "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}  # noqa: RUF012


def images(**options: Any) -> Inputs:
    return Images("nowhere", **options).inputs(Coloured())


def texts(**options: Any) -> TextInputs:
    return Text("nowhere", tokenizer="bytes", max_length=8, **options).inputs(None)


def test_no_data_are_opened_and_every_form_of_an_image_is_the_same(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(path := tmp_path / "grey.png")
    forms = [path, str(path), path.read_bytes(), Image.open(path), GREY, GREY[..., None], [GREY], (path,)]
    tensors = [images()(form)["image"] for form in forms]
    assert all(torch.equal(each, tensors[0]) for each in tensors)
    assert tensors[0].shape == (1, 3, 6, 6)
    floats = images()(GREY / 255)["image"]
    torch.testing.assert_close(floats, tensors[0], atol=4 * 0.5 / 255 + 1e-3, rtol=0)
    assert images()(np.stack([GREY[..., None]] * 2))["image"].shape == (2, 3, 6, 6)


def test_an_image_is_turned_and_normalised_as_evaluation_does(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways
    Image.fromarray(GREY).save(path := tmp_path / "turned.png", exif=exif)
    tall = Images("nowhere", eval_transforms=[]).inputs(Coloured())
    found = tall(Image.open(path))["image"]
    expected = torch.from_numpy(np.rot90(GREY, -1).copy()).float().div(255).sub(0.5).div(0.25)
    torch.testing.assert_close(found[0, 0], expected)
    torch.testing.assert_close(tall(path)["image"], found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Expected images, but got an empty list"),
        (None, "Expected images, one or a list of them, but got None"),
        ([None], "image 0 is None"),
        ("nowhere.png", r"there is no file nowhere.png in the working directory"),
        (b"no image", "image 0: no image that can be read"),
        (torch.zeros(3, 6, 6), "of type Tensor. A batch is a mapping"),
        (GREY.astype(int), "expected an array of uint8, or of floats within 0 … 1, got int64 within 0 … 198"),
        (GREY * 1.0, "got float64 within 0 … 198"),
        (np.full((6, 6), np.nan), "got float64 within nan"),
        (np.zeros((2, 6, 6)), r"of 1, 3 or 4 channels, got \(2, 6, 6\)"),
        (np.zeros((6, 6, 4)), "the model reads 3 channels, the array has 4"),
        (np.zeros((0, 6)), r"got \(0, 6\)"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images()(given)


def test_channels_of_floats_are_the_models() -> None:
    assert torch.equal(from_array(np.full((2, 2), 0.5), 3), torch.full((3, 2, 2), 0.5))  # type: ignore[arg-type]
    weights = torch.tensor([0.2989, 0.587, 0.114])
    colour = torch.rand(2, 2, 3)
    found = torch.as_tensor(from_array(colour.numpy(), 1))
    torch.testing.assert_close(found, (colour @ weights)[None])


def test_texts_and_pairs() -> None:
    batch = texts()(["ab", "a long text"])
    assert batch["input_ids"].tolist() == [[97, 98, 256, 257, 257, 257, 257, 257], [*b"a long ", 256]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 8]
    for column in (np.array(["ab", "c"]), pd.Series(["ab", "c"]), ("ab", "c")):
        assert torch.equal(texts()(column)["input_ids"], texts()(["ab", "c"])["input_ids"])
    pairs = texts(pair_column="second")
    assert pairs(("a", "b"))["input_ids"].tolist() == [[97, 256, 98, 256]]
    assert pairs([("a", "b"), ["c", "d"]])["input_ids"].shape == (2, 4)


@pytest.mark.parametrize(
    ("given", "pairs", "message"),
    [
        ([], False, "Expected texts, but got an empty list"),
        (["a", None], False, "Expected texts, but number 1 is None"),
        ([("a", "b")], False, "Expected texts, but number 0 is of type tuple"),
        (["a", "b\ud800"], False, "Expected texts of characters that UTF-8 has: .*surrogates not allowed"),
        (3, False, "but got of type int"),
        (b"ab", False, "but got of type bytes"),
        (pd.DataFrame({"text": ["a"]}), False, "but got of type DataFrame"),
        (["a", "b"], True, "Expected pairs of texts, each a tuple of two, but number 0 is of type str"),
        ([("a", "b", "c")], True, "but number 0 is of type tuple"),
    ],
)
def test_what_is_no_text_is_refused(given: Any, pairs: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        texts(**({"pair_column": "second"} if pairs else {}))(given)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("side", ["bytes", "right", "left"])
def test_the_lines_for_a_service_make_the_arrays_that_the_library_makes(
    side: str, paired: bool, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of texts that fit and of longer ones, by bytes and by tokenizers that cut on either side."""
    own = texts(pair_column="second") if paired else texts()
    names = ["input_ids", "attention_mask"]
    if side != "bytes":
        tokenizer = open_tokenizer(bert)
        assert isinstance(tokenizer, PretrainedTokenizer)
        tokenizer.tokenizer.truncation_side = side
        own = TextInputs(tokenizer, 8, "cut", PadCollate({"input_ids": 0, "token_type_ids": 0}), pairs=paired)
        names.append("token_type_ids")
    parts = ["", "a", "good", "é", "a good bad film", "bad film null good a film a film"]
    given = [(one, other) for one in parts for other in parts] if paired else parts
    own.save(tmp_path)
    lines = own.usage(names).splitlines()
    (example,) = (place for place, line in enumerate(lines) if line.startswith("texts = "))
    lines[example] = f"texts = {given!r}"
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec("\n".join(lines), found)
    expected = own(given)
    assert expected["attention_mask"].sum(dim=1).max() == 8
    for name in names:
        assert found[name].tolist() == expected[name].tolist(), name


def test_texts_that_shall_not_be_cut_are_refused() -> None:
    with pytest.raises(UserError, match="row 1 of split the texts given has 12 tokens, but 8 is the most"):
        texts(truncation="refuse")(["a", "a long text"])


def test_a_fingerprint_is_the_tokenizers_and_the_lengths() -> None:
    class Shifted(ByteTokenizer):
        def encode(self, *given: Any, **options: Any) -> Any:
            encoding = super().encode(*given, **options)
            encoding["input_ids"][0][0] += 1
            return encoding

    same, own = texts(), texts()
    assert own.fingerprint == same.fingerprint
    other = TextInputs(Shifted(), 8, "cut", own.collate)
    longer = TextInputs(ByteTokenizer(), 9, "cut", own.collate)
    assert len({own.fingerprint, other.fingerprint, longer.fingerprint}) == 3


def test_a_batch_alone_is_taken_where_nothing_tells_how_inputs_become_one() -> None:
    from layersim import EarlyExit, SharedHead
    from layersim.exits import Confidence

    model = backbone()
    early = EarlyExit(model, SharedHead(model), Confidence(), 0.5)
    with pytest.raises(UserError, match=r"Expected a batch \(a mapping\), but got str"):
        early("a.png")
    with pytest.raises(UserError, match="The batch has no image, which the model reads; it is pixels"):
        early({"pixels": torch.zeros(1, 1, 8, 8)})
