"""Stage 2: the tokenizer and the text encoder.

A stock CLIPTokenizer (byte-level BPE over our own captions: any text tokenises) and a stock CLIPTextModel.
CLIP learns its words from four hundred million pairs; here the encoder first learns to tell what a caption
says (which class, which colour, ...) *and* which token stood where. So it learns who the individuals with a
word of their own are before any picture is drawn, and the second task keeps words such as "sks" represented
although no picture ever showed one.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from atomdiff.pocket import captions, world

from .fitting import Schedule, Workshop, fit

CONTEXT = (
    40  # tokens; SD has 77. Shorter, because keys and values of 77 would cost more than the picture's own
)
VOCABULARY = 2560


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Byte-level BPE merges learned from `captions`, in CLIP's own shape."""
    shape = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = shape.normalizer, shape.pre_tokenizer
    alphabet = _byte_alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2 - len(alphabet),
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=[],
        show_progress=False,
        min_frequency=2,
    )
    bpe.train_from_iterator(captions, trainer)
    learned = _merges(bpe)
    tokens = alphabet + [c + "</w>" for c in alphabet]
    vocabulary = list(dict.fromkeys([*tokens, *("".join(pair) for pair in learned)]))
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={t: i for i, t in enumerate(vocabulary)}, merges=learned, model_max_length=CONTEXT
    )


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _merges(bpe: Tokenizer) -> list[tuple[str, ...]]:
    import json

    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """-> int64 (n, CONTEXT)."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=CONTEXT).input_ids
    return torch.tensor(ids)


def new_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            hidden_act="quick_gelu",
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


@torch.no_grad()
def with_vocabulary(old: CLIPTextModel, was: CLIPTokenizer, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder for another tokenizer: words that both have keep their vectors, and the others begin
    as random ones of the same size."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = old.config.__class__.from_dict(
        {**old.config.to_dict(), **ends, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    )
    new = CLIPTextModel(config)
    tensors = {k: v for k, v in old.state_dict().items() if "token_embedding" not in k}
    new.load_state_dict(tensors, strict=False)
    table, known = old.get_input_embeddings().weight, was.get_vocab()
    mine = new.get_input_embeddings().weight
    mine.normal_(0, float(table.std()))
    for word, row in tokenizer.get_vocab().items():
        if word in known:
            mine[row] = table[known[word]]
    return new


class Reader(nn.Module):
    """The encoder with the heads of its two tasks; the heads are thrown away afterwards."""

    def __init__(self, encoder: CLIPTextModel, sizes: dict[str, int]):
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in sizes.items()})
        self.own_token = nn.Linear(width, encoder.config.vocab_size)

    def forward(self, ids: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """-> logits of the facts, logits of the own token (b, t, v), states (b, t, c)."""
        out = self.encoder(ids)
        facts = {k: head(out.pooler_output) for k, head in self.heads.items()}
        return facts, self.own_token(out.last_hidden_state), out.last_hidden_state


@dataclass(frozen=True)
class Lesson:
    """ids (n, CONTEXT); labels[head] (n,) are the facts of the pictured scene, said in the caption or not,
    and -1 where nothing is known; usual (n,): 1 where every word means what it always did, 0 where there is a
    word of one individual."""

    ids: Tensor
    labels: dict[str, Tensor]
    usual: Tensor


def lesson(tokenizer: CLIPTokenizer, said: list[list[str]], labels: dict[str, np.ndarray]) -> Lesson:
    """All captions, and the unheard words with each class, of which the class is the only fact."""
    own = captions.individuals()
    heard = [text for row in said for text in row]
    unheard = captions.unheard_captions()
    usual = [not any(word in own for word in text.split()) for text in heard] + [False] * len(unheard)
    truth = {}
    for head, values in labels.items():
        answers = [world.CLASSES.index(text.split()[-1]) if head == "class" else -1 for text in unheard]
        truth[head] = torch.cat(
            [torch.from_numpy(values).repeat_interleave(len(said[0])), torch.tensor(answers)]
        )
    return Lesson(tokenize(tokenizer, heard + unheard), truth, torch.tensor(usual).float())


def pretrain(
    encoder: CLIPTextModel,
    lesson: Lesson,
    sizes: dict[str, int],
    schedule: Schedule,
    shop: Workshop,
    anchored: bool = False,
) -> tuple[CLIPTextModel, dict]:
    """anchored: of usual captions the encoder must go on saying what it says now, since a denoiser was
    trained with it."""
    torch.manual_seed(shop.seed + 1)
    reader = Reader(encoder, sizes).to(shop.device)
    before = deepcopy(encoder).requires_grad_(False)

    def loss_at(step: int, g: torch.Generator) -> Tensor:
        rows = torch.randint(len(lesson.ids), (schedule.batch,), generator=g)
        batch = shop.rows(lesson.ids, rows)
        with shop.autocast():
            facts, own, states = reader(batch)
        loss = 0.5 * F.cross_entropy(own.float().flatten(0, 1), batch.flatten())
        for head, logits in facts.items():
            each = F.cross_entropy(
                logits.float(), shop.rows(lesson.labels[head], rows), ignore_index=-1, reduction="none"
            )
            loss = loss + each.mean()
        if anchored:
            with torch.no_grad(), shop.autocast():
                wanted = before(batch).last_hidden_state
            change = (states - wanted).float().pow(2).mean((1, 2))
            loss = loss + 10 * (change * shop.rows(lesson.usual, rows)).mean()
        return loss

    about = fit("words", reader, loss_at, schedule, shop)
    return reader.encoder, about
