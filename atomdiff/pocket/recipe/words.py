"""Stage 2: the tokenizer and the text encoder.

A stock CLIPTokenizer (byte-level BPE over our own captions: any text tokenises) and a stock CLIPTextModel.
CLIP learns its words from four hundred million pairs; here the encoder first learns to tell what a caption
says (which class, which colour, ...) *and* which token stood where. The second task keeps names and rare
words such as "sks" represented although they mean nothing in any picture, as they are in CLIP.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .fitting import Schedule, Workshop, fit

CONTEXT = (
    40  # tokens; SD has 77. Shorter, because keys and values of 77 would cost more than the picture's own
)
VOCABULARY = 1536


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


class Reader(nn.Module):
    """The encoder with the heads of its two tasks; the heads are thrown away afterwards."""

    def __init__(self, encoder: CLIPTextModel, sizes: dict[str, int]):
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in sizes.items()})
        self.own_token = nn.Linear(width, encoder.config.vocab_size)

    def forward(self, ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        out = self.encoder(ids)
        return {k: head(out.pooler_output) for k, head in self.heads.items()}, self.own_token(
            out.last_hidden_state
        )


def pretrain(
    tokenizer: CLIPTokenizer,
    ids: Tensor,
    labels: dict[str, Tensor],
    sizes: dict[str, int],
    schedule: Schedule,
    shop: Workshop,
) -> tuple[CLIPTextModel, dict]:
    """ids (n, CONTEXT); labels[head] (n,) are the facts of the pictured scene, said in the caption or not."""
    torch.manual_seed(shop.seed + 1)
    reader = Reader(new_encoder(tokenizer), sizes).to(shop.device)

    def loss_at(step: int, g: torch.Generator) -> Tensor:
        rows = torch.randint(len(ids), (schedule.batch,), generator=g)
        batch = ids[rows].to(shop.device)
        with shop.autocast():
            facts, own = reader(batch)
        told = sum(F.cross_entropy(facts[k].float(), labels[k][rows].to(shop.device)) for k in facts)
        return told + 0.5 * F.cross_entropy(own.float().flatten(0, 1), batch.flatten())

    about = fit("words", reader, loss_at, schedule, shop)
    return reader.encoder, about
