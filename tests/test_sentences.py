"""`Qwen3VLEmbedder.encode`: what sentence-transformers' method of that name takes, or a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import InputError, Qwen3VLEmbedder

TEXTS = ["a duck on a pond", "a fox in the snow", ""]
PICTURE = Image.linear_gradient("L").resize((64, 96)).convert("RGB")


@pytest.fixture(scope="module")
def embedder(package: Callable[[Shape, Task], Path]) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedder(package(TINY_2B, "embedding"))


def test_a_list_gives_a_matrix_and_one_text_a_vector(embedder: Qwen3VLEmbedder) -> None:
    expected = embedder.process([{"text": text} for text in TEXTS])
    rows = embedder.encode(TEXTS)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, expected)
    assert np.array_equal(embedder.encode(tuple(TEXTS)), expected)
    vector = embedder.encode(TEXTS[0])
    assert vector.shape == (64,)
    assert np.array_equal(vector, embedder.process([{"text": TEXTS[0]}])[0])
    assert embedder.encode([]).shape == (0, 64)


def test_pictures_and_dicts_stand_beside_texts(embedder: Qwen3VLEmbedder) -> None:
    both = {"image": PICTURE, "text": "a gradient"}
    expected = embedder.process([{"text": "words"}, {"image": PICTURE}, both])
    assert np.array_equal(embedder.encode(["words", PICTURE, both]), expected)
    assert embedder.encode(PICTURE).shape == embedder.encode(both).shape == (64,)


def test_the_prompt_is_the_instruction(embedder: Qwen3VLEmbedder) -> None:
    asked, own = "Find the bird.", {"text": "words", "instruction": "Find the fox."}
    expected = embedder.process([{"text": "words", "instruction": asked}, own])
    assert np.array_equal(embedder.encode(["words", own], prompt=asked), expected)
    assert np.abs(embedder.encode("words") - expected[0]).max() > 1e-3
    none = {"text": "words", "instruction": None}
    assert np.array_equal(embedder.encode([none, none], prompt=asked), expected[[0, 0]])
    assert np.array_equal(embedder.encode(none, prompt=asked), expected[0])


def test_length_and_dimensions(embedder: Qwen3VLEmbedder) -> None:
    items = [{"text": text} for text in TEXTS]
    assert np.array_equal(embedder.encode(TEXTS, truncate_dim=16), embedder.process(items, dimensions=16))
    assert np.array_equal(embedder.encode(TEXTS, normalize_embeddings=False), embedder.process(items, normalize=False))


@pytest.mark.parametrize(
    "text",
    ["car.jpg", "https://example.org/a/car.PNG?width=3", "data:image/png;base64,AAAA", "my clip.mp4"],
)
def test_what_may_be_a_file_must_say_so(text: str, embedder: Qwen3VLEmbedder) -> None:
    with pytest.raises(InputError, match=r"inputs\[1\] is the string .* may mean a file or the words; write"):
        embedder.encode(["words", text])


@pytest.mark.filterwarnings("ignore:.*looks like a picture's path")
def test_a_dict_says_so(embedder: Qwen3VLEmbedder) -> None:
    assert np.array_equal(embedder.encode({"text": "car.jpg"}), embedder.process([{"text": "car.jpg"}])[0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "inputs is of type NoneType, expected a string, a dict or a PIL image"),
        (["a", np.zeros((4, 4, 3), np.uint8)], r"inputs\[1\] is of type ndarray, .*write {'image'"),
        ([["a", "b"]], r"inputs\[0\] is of type list"),
        ([{"audio": "a.wav"}], r"inputs\[0\] has the unknown key 'audio'"),
    ],
)
def test_other_inputs_are_refused(inputs: Any, message: str, embedder: Qwen3VLEmbedder) -> None:
    with pytest.raises(InputError, match=message):
        embedder.encode(inputs)


@pytest.mark.parametrize(
    "option",
    [
        {"prompt_name": "query"},
        {"output_value": "token_embeddings"},
        {"precision": "int8"},
        {"convert_to_numpy": False},
        {"convert_to_tensor": True},
    ],
)
def test_options_for_another_result_are_refused(option: dict[str, Any], embedder: Qwen3VLEmbedder) -> None:
    with pytest.raises(InputError, match=f"encode: {next(iter(option))} is .* but only .* is possible here"):
        embedder.encode(TEXTS, **option)


def test_options_that_ask_for_what_happens_anyway_are_silent(embedder: Qwen3VLEmbedder) -> None:
    rows = embedder.encode(
        TEXTS,
        prompt_name=None,
        batch_size=None,
        show_progress_bar=None,
        output_value="sentence_embedding",
        precision="float32",
        convert_to_numpy=True,
        convert_to_tensor=False,
        device=None,
    )
    assert np.array_equal(rows, embedder.encode(TEXTS))


@pytest.mark.parametrize("option", [{"batch_size": 32}, {"show_progress_bar": True}, {"device": "cuda"}])
def test_options_without_effect_are_explained(option: dict[str, Any], embedder: Qwen3VLEmbedder) -> None:
    with pytest.warns(UserWarning, match=f"{next(iter(option))} has no effect here") as caught:
        rows = embedder.encode(TEXTS, **option)
    assert caught[0].filename == __file__
    assert np.array_equal(rows, embedder.encode(TEXTS))


def test_an_unknown_option_is_an_error(embedder: Qwen3VLEmbedder) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        embedder.encode(TEXTS, batchsize=3)
