"""Visual inputs, with a tiny, randomly initialised LLaVA and Idefics3 and images of one colour."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor

from tokenization.captioning import (
    caption_loss,
    encode_contents,
    is_generative,
    load_model,
    pooled,
)
from tokenization.catalogue import Content
from tokenization.representation import Representation

torch.set_num_threads(1)  # matrices this small are not worth a second thread

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
WORDS = [
    *("[PAD]", "[UNK]", "[END]", "<image>", "<fake_token_around_image>", "<end_of_utterance>"),
    *("<global-img>", "a", "thing", *COLOURS),
]
PATCHES = 4  # 2 x 2 of 8 x 8 pixels
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def text_config(**more):
    return LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=2, **SIZES, **more)


def tokenizer():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[END]",
        additional_special_tokens=WORDS[3:7],
    )


def llava(folder):
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="full",
        image_token="<image>",
    ).save_pretrained(folder)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **SIZES)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config(),
        image_token_id=WORDS.index("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=PATCHES,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)


def idefics3(folder):
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )
    Idefics3Processor(
        image_processor=images, tokenizer=tokenizer(), image_seq_len=PATCHES
    ).save_pretrained(folder)
    config = Idefics3Config(
        vision_config={"image_size": 16, "patch_size": 8, **SIZES},
        text_config=text_config(pad_token_id=0),
        image_token_id=WORDS.index("<image>"),
        scale_factor=1,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)


@pytest.fixture(scope="module", params=[llava, idefics3])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.__name__)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        request.param(folder)
    return folder


def picture(colour, size=16):
    file = io.BytesIO()
    Image.new("RGB", (size, size), COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


@torch.no_grad()
def test_images_come_before_the_text_and_change_what_the_model_sees(folder):
    model, preparation = load_model(folder)
    model.eval()
    red, blue = (Content(text="a thing", image=picture(name)) for name in ("red", "blue"))
    batch = preparation.batch([red, blue, Content(text="a thing")], max_length=2)
    image = WORDS.index("<image>")
    assert (batch["input_ids"] == image).sum(dim=1).tolist() == [PATCHES, PATCHES, 0]
    words = [WORDS.index("a"), WORDS.index("thing")]
    lengths = batch["attention_mask"].sum(dim=1)
    for row, length in enumerate(lengths.tolist()):
        assert batch["input_ids"][row, length - 2 : length].tolist() == words
    states = pooled(model, batch)
    assert not torch.allclose(states[0], states[1], atol=1e-4)
    alone = pooled(model, preparation.batch([blue], max_length=2))
    torch.testing.assert_close(states[1:2], alone, rtol=1e-3, atol=1e-5)
    # A long text is cut, never the image.
    long = Content(text="a thing " * 20, image=picture("red"))
    cut = preparation.batch([long], max_length=2)
    assert cut["input_ids"][0].tolist() == batch["input_ids"][0, : lengths[0]].tolist()


@torch.no_grad()
def test_the_caption_is_predicted_from_image_and_text(folder):
    model, preparation = load_model(folder)
    model.eval()
    content = Content(text="a thing", image=picture("red"))
    other = Content(text="a", image=picture("green"))
    batch = preparation.batch([content, other], ["red", "green thing"], max_length=8)
    expected = []
    for item, caption in ((content, ["red"]), (other, ["green", "thing"])):
        prompt = preparation.batch([item], max_length=8)
        total = 0.0
        for word in [*caption, "[END]"]:
            logits = model(**prompt).logits[0, -1]
            total -= float(torch.log_softmax(logits, dim=0)[WORDS.index(word)])
            token = torch.tensor([[WORDS.index(word)]])
            prompt["input_ids"] = torch.cat([prompt["input_ids"], token], dim=1)
            prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
        expected.append(total)
    assert float(caption_loss(model, batch)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_captions_of_what_only_the_image_shows_are_learnt(folder, tmp_path):
    contents = [Content(text="a thing", image=picture(colour)) for colour in COLOURS]
    config = Representation(align_weight=0.0, num_steps=80, batch_size=3, learning_rate=1e-2)
    losses = config.fit(
        folder,
        tmp_path / "model",
        contents=contents,
        captions=list(COLOURS),
        pairs=np.zeros((0, 2), dtype=np.int64),
    )
    assert losses[-1] < 0.6 < losses[0]  # without the image at best log 3
    embeddings = encode_contents(tmp_path / "model", contents, batch_size=2, max_length=8)
    assert (embeddings @ embeddings.T < 0.99).sum() == 6


def test_models_and_images_that_do_not_fit(folder, tmp_path):
    assert is_generative(folder)
    assert not is_generative(tmp_path)
    _, preparation = load_model(folder)
    with pytest.raises(ValueError, match="expected an encoded image"):
        preparation.batch([Content(text="a", image=b"no image")], max_length=8)
